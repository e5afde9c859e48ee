"""Comparisons: which runs meet, which tests are shown, and what a tired reader is told."""

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats as reference
from typer.testing import CliRunner

from spafit_bench.analysis.compare import Comparison, TaskComparison, compare
from spafit_bench.base.errors import UserError
from spafit_bench.cli import app
from spafit_bench.cli.views.compare import comparison_json, comparison_text
from spafit_bench.data.metrics import METRICS
from spafit_bench.data.tasks import get_task
from spafit_bench.results.record import RunRecord
from spafit_bench.results.run_folder import prediction_rows
from spafit_bench.results.store import Store
from tests.support.records import make_record, write_run

SKILL = {"spafit": 0.85, "lora": 0.80, "bitfit": 0.70, "full": 0.85}


def add_run(
    store: Store,
    task: str = "mrpc",
    method: str = "spafit",
    seed: int = 0,
    *,
    skill: float | None = None,
    spread: float = 0.01,
    n: int = 200,
    **fields: Any,
) -> RunRecord:
    """Store a run whose models answer examples of graded difficulty, at some skill."""
    facts = get_task(task)
    rng = np.random.default_rng([seed, *map(ord, task + method)])
    level = (SKILL[method] if skill is None else skill) + rng.normal(0, spread)
    labels, predictions, metrics = {}, {}, {}
    for number, split in enumerate(facts.dev_splits):
        data = np.random.default_rng([number, *map(ord, task)])
        hardness = data.random(n)
        if facts.is_regression:
            y = np.round(data.uniform(0, 5, n), 1)
            x = y + rng.normal(0, 2 * (1.2 - level), n)
        else:
            y = data.integers(0, facts.num_labels, n).astype(float)
            right = hardness + rng.normal(0, 0.1, n) < level
            x = np.where(right, y, (y + 1) % facts.num_labels)
        labels[split], predictions[split] = y, x
        metrics[split] = {
            m: float(METRICS[m](np.ones((1, n)), x[None], y)[0]) for m in facts.metrics
        }
    record = make_record(task, method, seed, metrics, score=facts.score(metrics), **fields)
    logits = {split: x[:, None] for split, x in predictions.items()}
    save(store, record, prediction_rows(logits, predictions, labels))
    return record


def save(store: Store, record: RunRecord, predictions: bytes | None = None) -> None:
    """Write a run folder."""
    files = {} if predictions is None else {"predictions.parquet": predictions}
    write_run(store.runs, record, files)


def add_runs(
    store: Store, methods: Iterable[str], tasks: Iterable[str], seeds: int = 5, **options: Any
) -> Store:
    """Store every combination."""
    for task in tasks:
        for method in methods:
            for seed in range(seeds):
                add_run(store, task, method, seed, **options)
    return store


def add_scores(store: Store, scores: Mapping[str, Iterable[float]], task: str = "rte") -> Store:
    """Store runs without predictions, seeds from 0."""
    for method, values in scores.items():
        for seed, value in enumerate(values):
            save(store, make_record(task, method, seed, value))
    return store


def only(store: Store, *names: str) -> Comparison:
    """Compare within the only table."""
    (found,) = compare(store, names)
    return found


def first_task(comparison: Comparison) -> TaskComparison:
    """The first task of the first pair."""
    return comparison.pairs[0].tasks[0]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty results folder."""
    return Store(tmp_path / "results")


def test_a_clear_difference_is_better_in_both_senses(store: Store) -> None:
    """The verdict stands on a paired t test over seeds and a test on the predictions."""
    add_runs(store, ["spafit", "bitfit"], ["mrpc"])
    task = first_task(only(store, "spafit", "bitfit"))
    scores = [
        [100 * r.score for r in store.records() if r.method == method and r.score is not None]
        for method in ("spafit", "bitfit")
    ]
    over, on = task.over_seeds, task.on_predictions
    expected = reference.ttest_rel(*scores)
    assert over.tested.p == over.tested.holm == pytest.approx(expected.pvalue)
    assert over.interval is not None
    assert (over.interval.low, over.interval.high) == pytest.approx(
        tuple(expected.confidence_interval())
    )
    assert (over.seeds, over.ahead) == ((0, 1, 2, 3, 4), 5)
    assert on.difference == pytest.approx(over.difference)
    assert on.tested.separable
    assert len(on.mcnemar) == on.pairs == 5
    assert task.verdict == "spafit is better"
    assert first_task(only(store, "bitfit", "spafit")).verdict == "spafit is better"


def test_no_difference_is_not_separable(store: Store) -> None:
    """Two methods of one skill."""
    add_runs(store, ["spafit", "full"], ["mrpc"])
    task = first_task(only(store, "spafit", "full"))
    assert task.verdict == "not separable"
    assert task.over_seeds.interval is not None
    assert task.over_seeds.interval.low < 0 < task.over_seeds.interval.high


def test_one_seed_is_tested_on_predictions_alone(store: Store) -> None:
    """One seed says nothing of training noise: the text says how many would."""
    add_runs(store, ["spafit", "bitfit"], ["rte"], seeds=1)
    found = only(store, "spafit", "bitfit")
    task = first_task(found)
    assert (task.over_seeds.tested.p, task.over_seeds.tested.needs) == (None, 3)
    assert task.verdict == "spafit is ahead on these predictions, seeds untested"
    assert "no test with 1 seed pair; 3 would do" in comparison_text([found])


def test_seeds_decide_apart_from_predictions(store: Store) -> None:
    """Training noise hides what these very models show, and the verdict says which is which."""
    for seed, skill in enumerate((0.95, 0.70, 0.9)):
        add_run(store, "rte", "spafit", seed, skill=skill)
        add_run(store, "rte", "lora", seed, skill=0.75)
    assert first_task(only(store, "spafit", "lora")).verdict == (
        "spafit is ahead on these predictions, not separable over seeds"
    )


def test_equal_differences_are_not_called_certain(store: Store) -> None:
    """Three seeds that all differ by 2 points have no spread: no p-value of zero."""
    found = only(
        add_scores(store, {"spafit": (0.72, 0.74, 0.73), "lora": (0.7, 0.72, 0.71)}),
        "spafit",
        "lora",
    )
    tested = first_task(found).over_seeds.tested
    assert (tested.p, tested.needs) == (None, 6)
    assert "only signs can be tested: 6 pairs would do" in " ".join(
        comparison_text([found]).split()
    )


def test_different_seeds_are_compared_unpaired(store: Store) -> None:
    """Without common seeds, Welch's test; predictions take as many models of each."""
    for seed in range(4):
        add_run(store, "rte", "spafit", seed)
    for seed in range(10, 13):
        add_run(store, "rte", "bitfit", seed)
    task = first_task(only(store, "spafit", "bitfit"))
    assert (task.over_seeds.paired, task.over_seeds.tested.test) == (False, "Welch t")
    assert task.on_predictions.pairs == 3
    assert task.verdict == "spafit is better"


def test_the_tested_difference_is_that_of_the_means_shown(store: Store) -> None:
    """Where one method has more seeds, all of them are tested; predictions meet on common seeds."""
    add_runs(store, ["spafit"], ["rte"], seeds=5)
    for seed in (2, 3, 4):
        add_run(store, "rte", "lora", seed)
    task = first_task(only(store, "spafit", "lora"))
    assert (task.first.seeds, task.second.seeds) == ((0, 1, 2, 3, 4), (2, 3, 4))
    over = task.over_seeds
    assert (over.paired, over.seeds, over.tested.test) == (False, (), "Welch t")
    assert over.difference == pytest.approx(task.first.mean - task.second.mean)
    met = [
        [run.rpartition("-")[0][-1] for run in pair.runs] for pair in task.on_predictions.mcnemar
    ]
    assert met == [["2", "2"], ["3", "3"], ["4", "4"]]


def test_constant_scores_have_no_interval(store: Store) -> None:
    """Seeds that all agree bound nothing: no interval of zero width."""
    add_scores(store, {"spafit": [0.8] * 8, "lora": [0.7 + 0.01 * seed for seed in range(8)]})
    task = first_task(only(store, "spafit", "lora"))
    assert (task.first.t_interval, task.first.bootstrap_interval) == (None, None)
    assert None not in (task.second.t_interval, task.second.bootstrap_interval)


def test_unlike_seeds_without_spread_are_not_tested(store: Store) -> None:
    """No number of such seeds would do, and none is promised."""
    add_scores(store, {"spafit": [0.8] * 5, "lora": [0.7] * 3})
    found = only(store, "spafit", "lora")
    assert first_task(found).over_seeds.tested.needs is None
    assert "seeds: no test; neither has any spread over its seeds" in comparison_text([found])


def test_swapping_names_swaps_signs(store: Store) -> None:
    """A - B is the negative of B - A to the last digit, resampling included."""
    add_runs(store, ["spafit", "lora"], ["mrpc", "stsb"], seeds=3)
    ab, ba = only(store, "spafit", "lora"), only(store, "lora", "spafit")
    for left, right in zip(ab.pairs[0].tasks, ba.pairs[0].tasks, strict=True):
        for one, other in (
            (left.over_seeds, right.over_seeds),
            (left.on_predictions, right.on_predictions),
        ):
            assert one.difference == pytest.approx(-other.difference)
            assert one.interval is not None
            assert other.interval is not None
            assert one.interval.low == pytest.approx(-other.interval.high)
            assert one.tested.p == pytest.approx(other.tested.p)


def test_the_same_results_give_the_same_text(store: Store) -> None:
    """Resampling is seeded, and the seed is stated."""
    add_runs(store, ["spafit", "lora"], ["cola", "stsb"], seeds=3)
    texts = {comparison_text(compare(store, ["spafit", "lora"])) for _ in range(2)}
    assert len(texts) == 1
    assert "1999 resamples, seed 0" in " ".join(texts.pop().split())


def test_holm_is_over_the_shown_tests_of_a_family(store: Store) -> None:
    """Three pairs on two tasks are six tests; a task with one seed adds none over seeds."""
    add_runs(store, ["spafit", "lora", "bitfit"], ["mrpc", "rte"], seeds=3)
    add_runs(store, ["spafit", "lora", "bitfit"], ["qnli"], seeds=1)
    found = only(store, "spafit", "lora", "bitfit")
    tests = [t.over_seeds.tested for pair in found.pairs for t in pair.tasks]
    shown = [t for t in tests if t.p is not None]
    assert found.families["tasks over seeds"] == len(shown) == 6
    assert found.families["tasks on predictions"] == 9
    ordered = sorted(shown, key=lambda t: t.p or 0)
    assert ordered[0].holm == pytest.approx(min(1, 6 * (ordered[0].p or 0)))


def test_intervals_are_corrected_as_the_verdicts_are(store: Store) -> None:
    """An interval over seeds excludes zero exactly where its difference is separable."""
    tasks = ["cola", "sst2", "mrpc", "qnli", "rte", "qqp"]
    for number, task in enumerate(tasks):
        for seed in range(5):
            add_run(store, task, "lora", seed, skill=0.8)
            add_run(store, task, "spafit", seed, skill=0.8 + 0.012 * number)
    comparison = only(store, "spafit", "lora")
    tasks_compared = comparison.pairs[0].tasks
    families: list[list[Any]] = [
        [task.over_seeds for task in tasks_compared],
        [task.on_predictions for task in tasks_compared],
    ]
    for found in families:
        separable = sum(one.tested.separable for one in found)
        assert 0 < separable < len(tasks)
        for step, one in enumerate(sorted(found, key=lambda one: one.tested.p)):
            assert one.tested.alpha == pytest.approx(0.05 / (len(tasks) - min(step, separable)))
            plain, corrected = one.interval, one.corrected_interval
            assert corrected.low <= plain.low < plain.high <= corrected.high

    def excludes_zero(interval: Any) -> bool:
        return bool(interval.low * interval.high > 0)

    over_seeds = families[0]
    for one in over_seeds:
        assert one.tested.separable == excludes_zero(one.corrected_interval)
    assert any(excludes_zero(one.interval) and not one.tested.separable for one in over_seeds)
    shown = over_seeds[-1].corrected_interval
    assert f"[{shown.low:+.2f}, {shown.high:+.2f}]" in comparison_text([comparison])


@pytest.mark.parametrize("task", ["wnli", "rte"])
def test_what_collapsed_gets_no_verdict(store: Store, task: str) -> None:
    """A constant prediction is no evidence for a method, however large the difference."""
    add_runs(store, ["spafit"], [task], seeds=3)
    for seed in range(3):
        add_run(store, task, "bitfit", seed, collapsed=seed == 1)
    found = only(store, "spafit", "bitfit")
    assert first_task(found).over_seeds.tested.separable
    assert first_task(found).verdict == "no verdict: bitfit collapsed"
    assert "; 1 undecided" in " ".join(comparison_text([found]).split())


def test_wilcoxon_over_tasks_needs_enough_tasks(store: Store) -> None:
    """Five tasks cannot reach 0.05, six can, and three pairs need more."""
    tasks = ["cola", "sst2", "mrpc", "qnli", "rte", "wnli", "qqp"]
    add_runs(store, ["spafit", "bitfit"], tasks[:6], seeds=1)
    overall = only(store, "spafit", "bitfit").pairs[0].overall
    assert overall is not None
    assert overall.tasks == tuple(t for t in ("cola", "sst2", "mrpc", "qnli", "rte"))
    assert (overall.over_tasks.p, overall.over_tasks.needs) == (None, 6)
    add_runs(store, ["spafit", "bitfit"], tasks[6:], seeds=1)
    overall = only(store, "spafit", "bitfit").pairs[0].overall
    assert overall is not None
    assert overall.over_tasks.p == 2 / 2**6
    add_runs(store, ["lora"], tasks, seeds=1)
    overall = only(store, "spafit", "bitfit", "lora").pairs[0].overall
    assert overall is not None
    assert (overall.over_tasks.p, overall.over_tasks.needs) == (None, 7)


def test_average_is_tested_over_the_seeds_averages(store: Store) -> None:
    """The mean over tasks is paired by seed; WNLI is left out and the text says why."""
    add_runs(store, ["spafit", "lora"], ["mrpc", "rte", "wnli"], seeds=4)
    found = only(store, "spafit", "lora")
    overall = found.pairs[0].overall
    assert overall is not None
    means = {
        method: [
            np.mean(
                [
                    100 * r.score
                    for r in store.records()
                    if (r.method, r.seed) == (method, seed) and r.task != "wnli" and r.score
                ]
            )
            for seed in range(4)
        ]
        for method in ("spafit", "lora")
    }
    expected = reference.ttest_rel(means["spafit"], means["lora"])
    assert overall.over_seeds.tested.p == pytest.approx(expected.pvalue)
    assert overall.on_predictions.difference == pytest.approx(overall.over_seeds.difference)
    assert "WNLI is in no average" in comparison_text([found])


def test_average_without_common_seeds_has_no_test(store: Store) -> None:
    """One seed on the large task: the average is shown, its training noise is not guessed."""
    add_runs(store, ["spafit", "lora"], ["rte"], seeds=5)
    add_runs(store, ["spafit", "lora"], ["qnli"], seeds=1)
    pair = only(store, "spafit", "lora").pairs[0]
    assert pair.overall is not None
    mean = np.mean([task.over_seeds.difference for task in pair.tasks])
    assert pair.overall.over_seeds.difference == pytest.approx(mean)
    assert pair.overall.over_seeds.tested.p is None


def test_average_over_unlike_seeds_says_so(store: Store) -> None:
    """Three seeds on the large task, five on the small: tested over three, and no silence on it."""
    add_runs(store, ["spafit", "lora"], ["rte"], seeds=5)
    add_runs(store, ["spafit", "lora"], ["qnli"], seeds=3)
    found = only(store, "spafit", "lora")
    overall = found.pairs[0].overall
    assert overall is not None
    assert (overall.over_seeds.seeds, overall.over_seeds.tested.n) == ((0, 1, 2), 3)
    assert "seeds: over those that its tasks share: paired t, 3 pairs" in comparison_text([found])
    add_runs(store, ["spafit", "lora"], ["qnli"], seeds=5)
    assert "tasks share" not in comparison_text([only(store, "spafit", "lora")])


def test_three_methods_are_ranked_over_tasks(store: Store) -> None:
    """Mean ranks, Friedman and the bars of a critical-difference diagram."""
    tasks = ["cola", "sst2", "mrpc", "qnli", "rte", "qqp"]
    add_runs(store, ["spafit", "full", "bitfit"], tasks, seeds=2, spread=0.0)
    found = only(store, "spafit", "full", "bitfit")
    ranking = found.ranking
    assert ranking is not None
    scores = {
        (t.task, side.label): side.mean
        for pair in found.pairs
        for t in pair.tasks
        for side in (t.first, t.second)
    }
    columns = [[scores[task, m] for task in tasks] for m in ("spafit", "full", "bitfit")]
    assert ranking.chi_square == pytest.approx(reference.friedmanchisquare(*columns).statistic)
    assert list(ranking.mean_ranks)[-1] == "bitfit"
    assert ranking.tested.separable
    assert {"spafit", "full"} in [set(clique) for clique in ranking.cliques]
    assert "Nemenyi" in comparison_text([found])
    assert only(store, "spafit", "full").ranking is None


@pytest.mark.parametrize("damage", ["missing", "cut", "foreign", "short"])
def test_unusable_predictions_are_said_not_crashed_on(store: Store, damage: str) -> None:
    """Each kind of damage leaves the comparison over seeds, and the other pairs of models."""
    add_runs(store, ["spafit", "lora"], ["rte"], seeds=3)
    records = sorted(store.records(), key=lambda r: (r.method, r.seed))
    path = store.runs / records[0].run_id / "predictions.parquet"
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:300])
    elif damage == "foreign":
        save(store, records[0], (path.parents[1] / records[4].run_id / path.name).read_bytes())
    else:
        y = {"validation": np.ones(0)}
        save(store, records[0], prediction_rows({"validation": np.ones((0, 2))}, y, y))
    found = only(store, "spafit", "lora")
    task = first_task(found)
    assert task.on_predictions.pairs == 2
    (why,) = task.on_predictions.missing
    assert records[0].run_id in why
    assert why in " ".join(comparison_text([found], width=300).split())
    assert task.over_seeds.tested.p is not None


def test_without_any_predictions_the_seeds_still_decide(store: Store) -> None:
    """The verdict says what it could not look at."""
    add_scores(store, {"spafit": (0.9, 0.905, 0.901), "lora": (0.8, 0.801, 0.799)})
    found = only(store, "spafit", "lora")
    assert first_task(found).verdict == "spafit is ahead over seeds, predictions untested"
    assert "no test, predictions are missing" in comparison_text([found])


def test_marks_are_carried_along(store: Store) -> None:
    """A collapsed seed, unofficial data: signs beside the scores and their meaning below."""
    for seed in range(3):
        add_run(store, "rte", "spafit", seed, official_split=False, collapsed=seed == 1)
        add_run(store, "rte", "lora", seed, official_split=False)
    found = only(store, "spafit", "lora")
    text = comparison_text([found])
    assert "spafit*†1/3 " in text
    assert "lora* " in text
    assert "† collapsed" in text
    assert "Marks differ between the methods on RTE" in text
    body = json.loads(comparison_json([found]))["comparisons"][0]
    side = body["pairs"][0]["tasks"][0]["first"]
    assert side["marks"] == ["unofficial", "collapsed 1/3"]


def test_rows_are_named_as_in_tables(store: Store) -> None:
    """Two learning rates are two rows: the method's name alone is ambiguous, a label is not."""
    for seed in range(3):
        add_run(store, "rte", "lora", seed, config={"train.learning_rate": 1e-3})
        add_run(store, "rte", "lora", seed, config={"train.learning_rate": 2e-3})
        add_run(store, "rte", "spafit", seed)
    with pytest.raises(
        UserError, match=r"(?s)'lora' is 2 rows.*'lora · lr 1e-3'.*'lora · lr 2e-3'"
    ):
        compare(store, ["spafit", "lora"])
    assert only(store, "lora · lr 1e-3", "spafit").methods == ("lora · lr 1e-3", "spafit")
    assert only(store, "lora lr 1e-3", "lora lr 2e-3").pairs[0].second == "lora · lr 2e-3"


def test_methods_meet_only_within_a_table(store: Store) -> None:
    """Other data or weights are another table; methods that share none are an error."""
    add_runs(store, ["spafit", "lora"], ["rte"], seeds=1)
    add_run(store, "rte", "spafit", 0, official_split=False)
    add_run(store, "rte", "lora", 0, official_split=False)
    add_run(store, "rte", "bitfit", 0, weights="beef" * 16)
    assert len(compare(store, ["spafit", "lora"])) == 2
    with pytest.raises(UserError, match="same weights, same data"):
        compare(store, ["spafit", "bitfit"])


def test_a_table_that_is_not_compared_is_named(store: Store) -> None:
    """A name that is several rows of one table and one row of another answers for the other."""
    for seed in range(3):
        for rate in (1e-3, 2e-3):
            add_run(store, "rte", "lora", seed, config={"train.learning_rate": rate})
        add_run(store, "rte", "spafit", seed)
        for method in ("lora", "spafit"):
            add_run(store, "mrpc", method, seed, official_split=False, weights="beef" * 16)
    found = only(store, "spafit", "lora")
    assert [task.task for task in found.pairs[0].tasks] == ["mrpc"]
    (note,) = found.notes
    assert "official GLUE, where 'lora' is 2 rows" in note
    assert "'lora · lr 1e-3', 'lora · lr 2e-3'" in note
    assert note in " ".join(comparison_text([found]).split())
    assert json.loads(comparison_json([found]))["comparisons"][0]["notes"] == [note]


def test_runs_without_a_result_are_counted(store: Store) -> None:
    """A mean over the seeds that survived says so; other methods' losses are no matter here."""
    add_scores(store, {"lora": (0.7, 0.71, 0.72), "full": (0.6, 0.61, 0.62)})
    for method, status in (("lora", "diverged"), ("bitfit", "failed")):
        for seed in (3, 4):
            save(store, make_record("rte", method, seed, {}, status=status))
    found = only(store, "lora", "full")
    assert found.notes == ("Left out: 2 diverged runs of lora on RTE.",)
    assert "Left out: 2 diverged runs of lora on RTE." in comparison_text([found])


def test_user_mistakes_are_one_message(store: Store) -> None:
    """Too few, unknown or repeated names, and methods without a common task."""
    with pytest.raises(UserError, match="does not exist"):
        compare(store, ["spafit", "lora"])
    add_run(store, "rte", "spafit")
    add_run(store, "mrpc", "lora")
    for names, message in (
        ([], "two methods"),
        (["spafit"], "two methods"),
        (["spafit", "loar"], "did you mean 'lora'"),
        (["spafit", "spafit"], "named twice"),
        (["spafit", "lora"], "no scored task in common"),
    ):
        with pytest.raises(UserError, match=message):
            compare(store, names)


def test_command_prints_text_and_json(store: Store) -> None:
    """The command line: 80 columns, verdict first; one strict JSON object."""
    add_runs(store, ["spafit", "lora", "bitfit"], ["mnli", "stsb", "wnli"], seeds=3)
    arguments = ["compare", "spafit", "lora", "bitfit", "--results", str(store.root)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[2].startswith("Is spafit better than lora? ")
    heads = [line for line in lines if line.startswith(("MNLI ", "STS-B ", "WNLI ", "Average "))]
    assert len([line for line in heads if "is in no average" not in line]) == 12
    body = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    (comparison,) = body["comparisons"]
    assert (comparison["alpha"], comparison["seed"]) == (0.05, 0)
    assert [len(pair["tasks"]) for pair in comparison["pairs"]] == [3, 3, 3]
    with pytest.raises(UserError, match="two methods"):
        CliRunner().invoke(app, arguments[:2] + arguments[4:], catch_exceptions=False)


def test_false_alarms_of_the_whole_command(tmp_path: Path) -> None:
    """Two methods alike on three tasks, 60 times: any task called better is as rare as stated."""
    rng, alarms = np.random.default_rng(0), 0
    for trial in range(60):
        store = Store(tmp_path / str(trial))
        for task in ("rte", "cola", "mrpc"):
            values = rng.normal(0.8, 0.01, (2, 4)).tolist()
            add_scores(store, {"spafit": values[0], "lora": values[1]}, task)
        pair = only(store, "spafit", "lora").pairs[0]
        alarms += any(task.over_seeds.tested.separable for task in pair.tasks)
    assert alarms <= 7  # of 60 at 5 %: more in 2 % of all seeds


def test_comparing_imports_no_torch(store: Store) -> None:
    """The half that reads results starts without the half that computes."""
    add_runs(store, ["spafit", "lora"], ["rte"], seeds=1)
    code = (
        "import sys; from pathlib import Path; from spafit_bench.cli.results import compare; "
        f"compare(['spafit', 'lora'], Path({str(store.root)!r}), as_json=True); "
        "sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
