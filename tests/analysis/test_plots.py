"""Figures: what they show against the tables and by hand, what they admit, and their files."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from spafit_bench.analysis.compare import compare, compare_with
from spafit_bench.analysis.plots import (
    Gallery,
    Plot,
    Skipped,
    build_galleries,
    figure_files,
    inline_svg,
)
from spafit_bench.analysis.plots.adaptation import _moved, adaptation
from spafit_bench.analysis.plots.boundaries import Boundaries, _grids, boundaries_of, boundary_map
from spafit_bench.analysis.plots.curves import SCORES, _panel, learning_curves
from spafit_bench.analysis.plots.differences import _panels, _reach
from spafit_bench.analysis.plots.drawing import (
    COLORS,
    DASHES,
    MARKERS,
    WIDTH,
    line_styles,
    plotting_style,
    spread_out,
)
from spafit_bench.analysis.plots.pareto import _points, score_parameters
from spafit_bench.analysis.plots.ranks import critical_difference
from spafit_bench.analysis.plots.scene import MOST_SHOWN, Scene
from spafit_bench.analysis.tables import build_tables
from spafit_bench.analysis.tables.render import write_tables
from spafit_bench.analysis.tables.settings import Setting, group_runs
from spafit_bench.base.errors import UserError
from spafit_bench.data.custom_tasks import find_task
from spafit_bench.data.tasks import get_task
from spafit_bench.results.record import Movement, RunRecord
from spafit_bench.results.store import Store
from tests.analysis.test_compare import add_run
from tests.conftest import Cli
from tests.support.finished_runs import finished, save, strata, write_results
from tests.support.records import METHODS, scores

NAMES = (
    *("score-parameters", "differences", "critical-difference", "learning-curves"),
    *("training-loss", "adaptation", "boundaries"),
)
Found = TypeVar("Found")


def scene_of(*records: RunRecord, baseline: str = "full") -> Scene:
    """Set the scene of the only table of some records."""
    (group,) = group_runs(records)
    named = [row for row in group.rows if row.method == baseline]
    return Scene(group, named[0] if named else next(iter(group.rows)))


def runs(
    methods: tuple[str, ...] = tuple(METHODS),
    tasks: tuple[str, ...] = ("mrpc", "rte"),
    seeds: int = 3,
) -> list[RunRecord]:
    """Make runs of some methods on some tasks."""
    return [finished(t, m, s) for m in methods for t in tasks for s in range(seeds)]


def shown(plot: Plot | Skipped) -> Plot:
    """Insist that there is a figure."""
    assert isinstance(plot, Plot), plot
    return plot


def why(plot: Plot | Skipped) -> str:
    """Insist that there is none."""
    assert isinstance(plot, Skipped), plot.name
    return plot.why


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Four methods on three tasks with three seeds, without predictions."""
    return write_results(tmp_path_factory.mktemp("plots") / "results")


@pytest.fixture(scope="module")
def gallery(store: Store) -> Gallery:
    """Figures of it."""
    (found,) = build_galleries(store, group_runs(store.records()))
    return found


def test_averages_are_those_of_the_scores_table() -> None:
    """The points of the scatter plot stand where the table's last columns say."""
    records = runs()
    table = scores(records)
    column = [column.key for column in table.columns].index("avg")
    cells = {row.name: row.cells[column] for row in table.rows}
    for point in _points(scene_of(*records)):
        assert point.average.mean == pytest.approx(cells[point.label].value, abs=1e-9)
        assert point.average.sd == pytest.approx(cells[point.label].sd, abs=1e-9)
        assert point.parameters == METHODS[point.label]


@pytest.mark.parametrize(("apart", "close"), [(0, 0.0), (0, 0.02), (0, 0.5), (90_000, 0.5)])
def test_no_name_covers_a_point_a_bar_or_another_name(apart: int, close: float) -> None:
    """Where a name has no free place beside its point, all stand in a legend beside the axes."""
    records = [
        finished(
            "rte", f"0-{layer}:frozen;{layer + 1}-23:bias", seed, final=0.6 + close * spread
        ).model_copy(update={"trainable_parameters": 5_000_000 + apart * layer})
        for layer in range(12)
        for seed, spread in ((0, 0.1 * layer), (1, 0.2 - 0.01 * layer), (2, 0.3))
    ]
    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    with plotting_style():
        shown(score_parameters(scene_of(*records))).draw(figure)
        figure.draw_without_rendering()
    (axes,) = figure.axes
    names = [text.get_window_extent() for text in axes.texts]
    bars = [
        Bbox(axes.transData.transform(segment))
        for collection in axes.collections
        for segment in collection.get_segments()
    ]
    points = [
        Bbox(axes.transData.transform([*line.get_xydata()] * 2)).padded(3)
        for line in axes.lines
        if line.get_marker() in MARKERS
    ]
    assert len(points) == 12
    for index, name in enumerate(names):
        assert not name.count_overlaps([*bars, *points, *names[:index], *names[index + 1 :]])
    legends = [len(legend.get_texts()) for legend in figure.legends]
    assert (len(names), legends) == ((0, [12]) if apart else (12, []))


def test_the_front_is_what_no_smaller_method_equals() -> None:
    """By brute force over scores that are in another order than sizes."""
    finals = {"bitfit": 0.80, "spafit": 0.86, "lora": 0.84, "full": 0.86}
    records = [finished("rte", m, 0, final=final) for m, final in finals.items()]
    points = _points(scene_of(*records))
    front = {point.label for point in points if point.on_front}
    dominated = {
        a for a in finals if any(finals[b] >= finals[a] and METHODS[b] < METHODS[a] for b in finals)
    }
    assert front == finals.keys() - dominated == {"bitfit", "spafit"}
    assert "Pareto front: bitfit, spafit" in shown(score_parameters(scene_of(*records))).alt


def test_what_collapsed_is_never_the_best() -> None:
    """It stays in the figures, marked; it is on no front and in no frame, however high it is."""
    finals = {"bitfit": (0.90, True), "spafit": (0.80, False), "lora": (0.70, False)}
    records = [finished("rte", m, 0, final=f, collapsed=c) for m, (f, c) in finals.items()]
    plot = shown(score_parameters(scene_of(*records)))
    assert "Pareto front: spafit. " in plot.alt
    assert "Methods with a collapsed run are not on it." in plot.caption
    grid = [grid_run(a, b) for a in range(3) for b in range(a, 4)]
    grid[-1] = grid[-1].model_copy(update={"collapsed": True})
    found = shown(boundary_map(scene_of(*grid)))
    assert "best 52.20 at N1 2, N2 2" in found.alt
    assert "†" in found.caption
    lost = [record.model_copy(update={"collapsed": True}) for record in (*records, *grid)]
    for every in (score_parameters(scene_of(*lost[:3])), boundary_map(scene_of(*lost[3:]))):
        plot = shown(every)
        assert "none" in plot.alt or "each with a collapsed run" in plot.alt
        assert "</svg>" in inline_svg(plot)


def test_averages_are_over_tasks_that_methods_share() -> None:
    """A method that lacks a task is left out and named; if all lack some, shared ones count."""
    records = [*runs(), finished("mrpc", "other", 0)]
    scene = scene_of(*records)
    assert [task.name for task in scene.averaged] == ["mrpc", "rte"]
    assert "Not shown: other." in shown(score_parameters(scene)).caption
    ragged = [finished("mrpc", "full", 0), finished("rte", "full", 0), finished("rte", "lora", 0)]
    assert [task.name for task in scene_of(*ragged).averaged] == ["rte"]
    apart = [finished("mrpc", "full", 0), finished("rte", "lora", 0)]
    assert "fewer than two methods" in why(score_parameters(scene_of(*apart)))


def test_wnli_is_in_no_average() -> None:
    """As in comparisons: its dev set misleads, and the caption of what shows it says so."""
    scene = scene_of(*runs(tasks=("mrpc", "rte", "wnli")))
    assert "wnli" not in [task.name for task in scene.averaged]
    assert "adversarial" in shown(learning_curves(scene, SCORES)).caption
    assert "adversarial" not in shown(score_parameters(scene)).caption


def test_every_mark_of_the_tables_is_in_the_captions() -> None:
    """Not official, limited, chosen by dev score, collapsed in some seeds, left out."""
    special = {"official_split": False, "train_limit": 100, "select": "best"}
    records = [finished(t, m, s, **special, collapsed=s == 0)
               for t in ("rte", "mrpc") for m in METHODS for s in range(3)]  # fmt: skip
    records.append(finished("rte", "full", 7, status="failed", metrics={}))
    scene = scene_of(*records)
    for plot in (score_parameters(scene), learning_curves(scene, SCORES), adaptation(scene)):
        caption = shown(plot).caption
        assert "Not the official GLUE data: all runs." in caption
        assert "Trained on only part of the training set: all runs." in caption
        assert "Checkpoint chosen by its dev score, which flatters that score: all" in caption
        assert "same prediction: 8 of 24 runs." in caption
        assert "1 run without a result left out." in caption
        assert "2 tasks (MRPC, RTE), 3 seeds each; 24 runs" in shown(plot).subtitle


def test_curves_are_means_and_ranges_over_seeds() -> None:
    """At each epoch that all seeds have."""
    records = [*runs(methods=("full",), tasks=("mrpc",)), finished("mrpc", "full", 9, epochs=2)]
    (curve,) = _panel(scene_of(*records), get_task("mrpc"), SCORES).curves
    by_hand = np.array(
        [[100 * e.metrics["validation"]["f1"] for e in run.evaluations[:2]] for run in records]
    )
    assert curve.epochs == (1.0, 2.0)
    assert curve.means == pytest.approx(by_hand.mean(axis=0))
    assert curve.lows == pytest.approx(by_hand.min(axis=0))
    assert curve.highs == pytest.approx(by_hand.max(axis=0))


def test_one_evaluation_is_no_curve() -> None:
    """It says what would make one; a task that has none beside others is named."""
    single = finished("rte", "full", 0, epochs=1)
    assert "train for several epochs" in why(learning_curves(scene_of(single), SCORES))
    both = scene_of(single, finished("mrpc", "full", 0))
    assert "without a curve: RTE." in shown(learning_curves(both, SCORES)).caption


def test_a_method_without_a_curve_is_named() -> None:
    """Beside one that was evaluated more often, one evaluation draws nothing."""
    records = [*runs(methods=("lora",), tasks=("mrpc",)), finished("mrpc", "full", 0, epochs=1)]
    plot = shown(learning_curves(scene_of(*records), SCORES))
    assert "Evaluated only once, so without a curve: full on MRPC." in plot.caption


def test_differences_are_those_of_compare(store: Store, gallery: Gallery) -> None:
    """Every point and interval is `compare`'s, method first and baseline second.

    The intervals shown are corrected for all methods that are compared, so they are wider.
    """
    panels = {panel.title: panel for panel in _panels(gallery.scene, gallery.comparison)}
    assert panels.keys() == METHODS.keys() - {"full"}
    (compared,) = compare(store, ["spafit", "full"])
    for task in compared.pairs[0].tasks:
        title = get_task(task.task).title
        (found,) = [d for d in panels["spafit"].differences if d.task == title]
        assert found.value == pytest.approx(task.over_seeds.difference)
        assert found.over_seeds is not None
        assert task.over_seeds.interval is not None
        assert found.over_seeds.low <= task.over_seeds.interval.low
        assert found.over_seeds.high >= task.over_seeds.interval.high
    overall = compared.pairs[0].overall
    assert overall is not None
    assert panels["spafit"].differences[-1].value == pytest.approx(overall.over_seeds.difference)


def test_one_far_difference_does_not_flatten_the_others(gallery: Gallery) -> None:
    """The axis ends at four times the usual distance, and never short of the only one."""
    (panel, *_) = _panels(gallery.scene, gallery.comparison)
    assert _reach([panel]) <= 4 * np.median([abs(d.value) + 60 for d in panel.differences])
    wild = type(panel)(panel.title, panel.style, tuple(
        type(d)(d.task, value, None, None, False)
        for d, value in zip(panel.differences, (1.0, -1.0, 1.0, 90.0), strict=True)
    ))  # fmt: skip
    assert _reach([wild]) == 4.0
    misleading = type(panel.differences[0])("WNLI", 90.0, None, None, False)
    others = (*wild.differences[:3], misleading)
    assert _reach([type(panel)(panel.title, panel.style, others)]) == 1.0


def test_an_arrowhead_of_either_bar_is_explained(tmp_path: Path) -> None:
    """With one seed only the bar on predictions can go beyond the axis."""
    store = Store(tmp_path / "results")
    tasks = ("cola", "mrpc", "rte", "sst2")
    for method, skill in (("full", 0.85), ("lora", 0.85)):
        for task in tasks:
            add_run(store, task, method, skill=skill, spread=0.0, n=12 if task == "rte" else 4000)
    (found,) = build_galleries(store, group_runs(store.records()))
    (plot,) = [shown(f) for f in found.figures if f.name == "differences"]
    svg = figure_files(plot)["differences.svg"].decode()
    assert found.comparison is not None
    bars = {t.title: t.on_predictions.interval for t in found.comparison.pairs[0].tasks}
    assert bars["RTE"] is not None
    widest = max(map(abs, (bars["RTE"].low, bars["RTE"].high)))
    assert widest > _reach(_panels(found.scene, found.comparison)), "the test tests nothing"
    assert "Arrowhead: the interval continues beyond the axis." in plot.caption
    assert "Arrowhead" in svg


def test_only_pairs_with_the_baseline_are_tested(store: Store) -> None:
    """Three pairs of four methods make one family, and all four are ranked."""
    (group,) = group_runs(store.records())
    rows = {row.method: row for row in group.rows}
    found = compare_with(store, group, rows["lora"], list(rows.values()), list(rows.values()))
    assert found is not None
    assert [(p.first, p.second) for p in found.pairs] == [
        (name, "lora") for name in rows if name != "lora"
    ]
    assert found.families["tasks over seeds"] == 9
    assert found.ranking is not None
    assert set(found.ranking.mean_ranks) == set(rows)
    lonely = [row for row in rows.values() if row.method == "lora"]
    assert compare_with(store, group, rows["lora"], lonely, lonely) is None


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ((("0-4", "frozen"), ("5-9", "bias"), ("10-23", "lora(query,r=8,alpha=8)")), (4, 9)),
        ((("0", "frozen"), ("1-23", "lora(query,r=8,alpha=8)")), (0, 0)),
        ((("0-9", "bias"), ("10-23", "lora(query,r=8,alpha=8)")), (-1, 9)),
        ((("0-9", "lora(query,r=8,alpha=8)"), ("10-23", "frozen")), None),
        ((("0-4", "bias"), ("5-9", "frozen"), ("10-23", "lora(query,r=8,alpha=8)")), None),
        ((("0-23", "lora(query,r=8,alpha=8)"),), (-1, -1)),
        ((("0-3", "frozen"), ("5-23", "lora(query,r=8,alpha=8)")), None),
        ((("0-23", "full"),), None),
    ],
)
def test_boundaries(layers: tuple[tuple[str, str], ...], expected: tuple[int, int] | None) -> None:
    """Only frozen, then bias, then adapted layers have boundaries, whatever the method's name."""
    found = boundaries_of(finished("rte", "x", 0, strata=strata(*layers)))
    wanted = None if expected is None else Boundaries(*expected, "lora(query,r=8,alpha=8)")
    assert found == wanted


def grid_run(n1: int, n2: int, seed: int = 0, task: str = "rte") -> RunRecord:
    """Make a run of one choice of boundaries; the score tells which."""
    late = "lora(query,r=8,alpha=8)"
    layers = (("0" if n1 == 0 else f"0-{n1}", "frozen"),) if n1 >= 0 else ()
    layers += ((f"{n1 + 1}-{n2}" if n2 > n1 + 1 else f"{n2}", "bias"),) if n2 > n1 else ()
    layers += ((f"{n2 + 1}-23", late),)
    return finished(task, f"spafit-{n1}-{n2}-i", seed, strata=strata(*layers),
                    final=0.5 + 0.01 * n1 + 0.001 * n2)  # fmt: skip


def test_the_map_has_every_choice_in_its_place() -> None:
    """Scores by (N1, N2), the best one named; fewer than three choices are no map."""
    records = [grid_run(a, b) for a in range(3) for b in range(a, 4)]
    (grid,) = _grids(scene_of(*records))
    assert len(grid.averages) == len(records)
    for (n1, n2), average in grid.averages.items():
        assert average.mean == pytest.approx(50 + n1 + 0.1 * n2)
    assert "best 52.30 at N1 2, N2 3" in shown(boundary_map(scene_of(*records))).alt
    assert "3 or more choices" in why(boundary_map(scene_of(*records[:2])))
    everywhere = finished(
        "rte", "mine", 0, final=0.9, strata=strata(("0-23", "lora(query,r=8,alpha=8)"))
    )
    assert (
        "best 90.00 at N1 none, N2 none" in shown(boundary_map(scene_of(*records, everywhere))).alt
    )


def test_adaptation_averages_relative_changes() -> None:
    """Mean over runs; a frozen layer is zero; records without the measure are counted."""
    records = [*runs(methods=("spafit", "bitfit"), tasks=("rte",)),
               finished("rte", "spafit", 8, movement=None)]  # fmt: skip
    plot = shown(adaptation(scene_of(*records)))
    assert "1 run lacks the measure." in plot.caption
    assert "spafit 0.040 in layer 3" in plot.alt
    moved = _moved(records[:3])
    assert moved["0"]["attention"] == 0.0
    assert moved["2"]["bias"] == pytest.approx(0.03)
    old = scene_of(finished("rte", "full", 0, movement=None))
    assert "repeat a run" in why(adaptation(old))
    still = {"0": {"bias": Movement(change=0.0, pretrained=1.0)}}
    unmoved = scene_of(finished("rte", "full", 0, movement=still))
    assert "no parameter has moved" in why(adaptation(unmoved))


def test_adaptation_compares_methods_on_the_same_tasks() -> None:
    """A task that one method lacks is left out for all; tasks weigh alike, whatever their seeds."""

    def moved(task: str, method: str, seed: int, change: float) -> RunRecord:
        layer = {"attention": Movement(change=change, pretrained=1.0)}
        return finished(task, method, seed, movement={"0": layer})

    both = [moved("rte", m, 0, c) for m, c in (("full", 0.1), ("lora", 0.3))]
    both += [moved("cola", m, s, 0.5) for m in ("full", "lora") for s in range(3)]
    plot = shown(adaptation(scene_of(*both, moved("mrpc", "full", 0, 9.0))))
    assert "full 0.300 in layer 0" in plot.alt
    assert "lora 0.400 in layer 0" in plot.alt
    assert "Not every method has MRPC" in plot.caption
    apart = adaptation(scene_of(moved("rte", "full", 0, 0.1), moved("cola", "lora", 0, 0.3)))
    assert "no task on which every method" in why(apart)


def test_tasks_beyond_glue_have_figures_and_a_report(tmp_path: Path, call: Cli) -> None:
    """BoolQ beside RTE: drawn, named and counted like any other task."""
    definition = find_task("boolq").definition
    records = runs(tasks=("rte",))
    records += [
        run.model_copy(
            update={"task": "boolq", "task_definition": definition, "run_id": f"boolq{number}-0"}
        )
        for number, run in enumerate(records)
    ]
    save(tmp_path / "results", *records)
    assert call("plot", "--results", "results", "--out", "figures").code == 0
    assert "BoolQ" in (tmp_path / "figures" / "differences.svg").read_text()
    assert call("report", "--results", "results", "--out", "report.html").code == 0
    page = (tmp_path / "report.html").read_text()
    assert page.count('<td class="text">BoolQ</td>') >= 3, "a verdict a method"
    assert '<th scope="col" class="text">BoolQ</th>' in page


def test_what_tables_average_figures_average() -> None:
    """Tasks beyond GLUE alone: no average in tables, so none in figures, which say why."""
    definition = find_task("boolq").definition
    records = [
        run.model_copy(update={"task": name, "task_definition": definition, "run_id": f"{name}{i}"})
        for name in ("boolq", "cb")
        for i, run in enumerate(runs(tasks=("rte",)))
    ]
    scene = scene_of(*records)
    assert not scene.averaged
    for skipped in (score_parameters(scene), critical_difference(scene, None)):
        assert "tasks beyond GLUE not counted" in why(skipped)
    alone = scene_of(*(run for run in records if run.task == "boolq"))
    assert [task.name for task in alone.averaged] == ["boolq"]


def test_the_critical_difference_is_nemenyis(gallery: Gallery) -> None:
    """Ranks in words; with too few tasks it says how many would allow a test."""
    (plot,) = [f for f in gallery.figures if f.name == "critical-difference"]
    assert "full 1.00" in shown(plot).alt
    assert gallery.comparison is not None
    assert gallery.comparison.ranking is not None
    tested = gallery.comparison.ranking.tested
    assert (tested.p is None) == ("would do" in shown(plot).caption)


def test_many_methods_are_cut_to_the_best_and_the_baseline() -> None:
    """No more than can be told apart; the caption says that choosing favours them."""
    records = [finished("rte", f"m{i:02d}", 0, final=0.5 + i / 100) for i in range(MOST_SHOWN + 4)]
    scene = scene_of(*records, baseline="m00")
    assert {row.method for row in scene.shown} == {"m00", *(f"m{i:02d}" for i in range(5, 12))}
    caption = shown(learning_curves(scene, SCORES)).caption
    assert f"{MOST_SHOWN} of 12 settings are shown" in caption
    assert "favours them" in caption
    assert "settings are shown" not in shown(score_parameters(scene)).caption
    lacking = scene_of(*records, finished("mrpc", "m00", 0), finished("mrpc", "m01", 0))
    points = shown(score_parameters(lacking))
    assert "favours" not in points.caption, "what lacks a task is not there for its score"
    assert "2 of 12 settings are shown, the others lack a task" in points.caption


def test_methods_can_be_told_apart_in_grey() -> None:
    """Every shown method has its own colour or marker; contrast with white is 1.9 or more."""
    styles = line_styles(MOST_SHOWN)
    assert len({(style.color, style.marker) for style in styles}) == MOST_SHOWN
    assert len({style.marker for style in styles}) >= len(MARKERS)
    assert len({str(style.dash) for style in styles}) == len(DASHES)
    for color in COLORS:
        assert 1.05 / (luminance(color) + 0.05) > 1.9


def luminance(color: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_labels_keep_their_order_distance_and_bounds() -> None:
    """They move no farther than needed."""
    assert spread_out([10.0, 50.0], 8, (0, 100)) == [10.0, 50.0]
    places = spread_out([50.0, 51.0, 49.0, 99.0], 8, (0, 100))
    assert places == pytest.approx([50.0, 58.0, 42.0, 99.0])
    crowded = spread_out([99.0, 100.0, 98.0], 8, (0, 100))
    assert crowded == pytest.approx([92.0, 100.0, 84.0])


def test_plot_writes_what_it_can_and_says_why_not(store: Store, call: Cli, tmp_path: Path) -> None:
    """SVG and PNG of every figure with data, readable; a reason for the one without."""
    answer = call("plot", "--results", store.root, "--out", tmp_path / "figures", "--json")
    assert answer.code == 0, answer.err
    rows: Mapping[str, dict[str, object]] = {row["figure"]: row for row in answer.json["plots"]}
    assert tuple(rows) == NAMES
    assert "choices of the boundaries" in str(rows["boundaries"]["skipped"])
    for name in NAMES[:-1]:
        png = (tmp_path / "figures" / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG")
        text = (tmp_path / "figures" / f"{name}.svg").read_text()
        words = " ".join("".join(ET.fromstring(text).itertext()).split())
        assert "bert-large-cased, official GLUE" in words
        assert "3 seeds each" in words
        assert "<dc:date>" not in text
    assert not list((tmp_path / "figures").glob("boundaries*"))


def test_plot_without_runs_or_with_a_wrong_baseline(
    store: Store, call: Cli, tmp_path: Path
) -> None:
    """One message that says what to do."""
    (tmp_path / "empty").mkdir()
    assert "make one with" in call("plot", "--results", "empty").error
    error = call("plot", "--results", store.root, "--baseline", "lorra").error
    assert "lora" in error


def test_a_baseline_is_named_as_everywhere(store: Store) -> None:
    """The dot and capitals are as in `table` and `compare`; two rows of a name are refused."""
    rates = [
        finished("rte", "lora", seed, config={"train.learning_rate": rate})
        for rate in (1e-3, 2e-3)
        for seed in range(2)
    ]
    (gallery,) = build_galleries(store, group_runs(rates), "LORA lr 2e-3")
    assert gallery.scene.baseline.label == "lora · lr 2e-3"
    with pytest.raises(UserError, match="2 rows of the table have this name"):
        build_galleries(store, group_runs(rates), "lora")


def test_an_attempt_that_was_given_up_is_not_the_baseline(store: Store) -> None:
    """Of several rows of full fine-tuning it is the one with most runs."""
    records = [
        finished(task, "full", seed, config={"train.learning_rate": rate})
        for rate, tasks, seeds in ((1e-5, ("rte",), 1), (2e-5, ("rte", "mrpc"), 2))
        for task in tasks
        for seed in range(seeds)
    ]
    records += [finished("rte", "lora", 0)]
    (gallery,) = build_galleries(store, group_runs(records), None)
    assert gallery.scene.baseline.label == "full · lr 2e-5"


def test_figures_of_two_models_have_names_of_their_own(store: Store) -> None:
    """Folders that differ in signs alone are told apart by a hash, in tables as well."""
    records = [
        finished("rte", method, 0, model=model, weights=weights * 64)
        for method in ("full", "lora")
        for model, weights in (("run_a", "a"), ("run-a", "b"), ("RUN a", "c"))
    ]
    galleries = build_galleries(store, group_runs(records))
    names = [figure.name for gallery in galleries for figure in gallery.figures]
    assert len(set(names)) == len(names)
    assert len(write_tables(build_tables(records))) == 3 * 3 * 2 + 1


def test_an_unknown_baseline_is_an_error_only_if_no_table_has_it(store: Store) -> None:
    """A table without it is compared with its own default."""
    groups = group_runs([*store.records(), finished("rte", "spafit", 0, weights="a" * 64)])
    first, second = build_galleries(store, groups, "lora")
    assert first.scene.baseline == Setting(method="lora")
    assert second.scene.baseline == Setting(method="spafit")
    assert {figure.name for figure in first.figures}.isdisjoint(f.name for f in second.figures)
    with pytest.raises(UserError, match="spafit"):
        build_galleries(store, groups, "spafitt")


def test_inline_svg_keeps_every_digit_of_its_text() -> None:
    """Coordinates are cut to hundredths, labels are not: two rates stay two."""
    records = [
        finished("rte", "lora", seed, config={"train.learning_rate": rate})
        for rate in (0.0125, 0.0126)
        for seed in range(2)
    ]
    text = inline_svg(shown(learning_curves(scene_of(*records), SCORES)))
    words = "".join(ET.fromstring(text).itertext())
    assert "lora · lr 0.0125" in words
    assert "lora · lr 0.0126" in words
    assert not re.search(r' d="[^"]*\.\d{3}', text), "paths are short"


def test_inline_svg_fetches_nothing_and_shares_no_identifier(tmp_path: Path) -> None:
    """Names with markup, mathematics and control characters are text; colours are variables."""
    hostile = '<img src="http://x/" onerror=alert(1)>$\\frac{\x07&'
    records = [finished("rte", hostile, s, model="</svg><b>") for s in range(2)]
    records += [finished("rte", "full", s) for s in range(2)]
    (group,) = group_runs(records)
    (gallery,) = build_galleries(save(tmp_path, *records), [group])
    identifiers: list[str] = []
    for plot in gallery.figures:
        if isinstance(plot, Skipped) or plot.name not in ("score-parameters", "learning-curves"):
            continue
        text = inline_svg(plot)
        root = ET.fromstring(text)
        assert not re.search(r"https?:|<img|<script|xmlns|<!|<\?|</svg>.+", text), text[:500]
        assert "var(--ink)" in text
        assert "var(--series-0)" in text
        assert root.attrib["role"] == "img"
        identifiers += [e.attrib["id"] for e in root.iter() if "id" in e.attrib]
        for used in re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text):
            assert "".join(used) in identifiers
    assert len(identifiers) == len(set(identifiers)) > 0


def test_formats_and_no_title(call: Cli, tmp_path: Path) -> None:
    """PDF on request; without title and caption the picture has only the axes' own words."""
    write_results(tmp_path / "r", tasks=("mrpc", "rte"))
    flags = ("--results", tmp_path / "r", "--out", tmp_path / "o")
    assert call("plot", *flags, "--format", "pdf,svg", "--no-title").code == 0
    assert (tmp_path / "o" / "score-parameters.pdf").read_bytes().startswith(b"%PDF")
    assert not list((tmp_path / "o").glob("*.png"))
    text = (tmp_path / "o" / "score-parameters.svg").read_text(encoding="utf-8")
    assert "Score against trainable parameters" not in text
    assert "mean dev score" in text
    assert "did you mean 'pdf'" in call("plot", *flags, "--format", "pdff").error
