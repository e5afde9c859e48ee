"""The whole page, and the sections that are about one table's runs."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from string import Template

from spafit_bench import __version__
from spafit_bench.analysis.plots import Gallery, Plot, Skipped, build_galleries, inline_svg
from spafit_bench.analysis.references import References
from spafit_bench.analysis.report.overview import overview
from spafit_bench.analysis.report.provenance import environments, provenance
from spafit_bench.analysis.report.runs import Anchors, run_details, run_table
from spafit_bench.analysis.report.verdicts import verdicts
from spafit_bench.analysis.selection import Selection, read_runs
from spafit_bench.analysis.tables import ResultTable, build_tables
from spafit_bench.analysis.tables.html import html_block
from spafit_bench.analysis.tables.settings import RunGroup
from spafit_bench.base.escaping import printable
from spafit_bench.results.record import RunRecord
from spafit_bench.results.store import Store

TITLE = "spafit-bench results"


def build_report(
    store: Store,
    groups: Sequence[RunGroup],
    baseline: str | None = None,
    references: References | None = None,
    selection: Selection | None = None,
) -> str:
    """Write the page.

    The same results give the same page, byte for byte.

    Args:
        store: the results.
        groups: from `group_runs`.
        baseline: the row that others are compared with, as the tables name it.
        references: published scores to set below ours.
        selection: which runs the page is of, as `groups` are (default: all).

    Raises:
        UserError: no such row, or no published score is like ours.
    """
    records = read_runs(store, selection)
    anchors = Anchors(records)
    tables = build_tables(records, references)
    galleries = build_galleries(store, groups, baseline)
    sections = [
        *(
            _section(f"table-{number}", gallery, tables, anchors)
            for number, gallery in enumerate(galleries, start=1)
        ),
        *_trials(tables),
        run_table(records, anchors),
        run_details(records, anchors),
        environments(anchors),
        provenance(store, records),
    ]
    links = [
        (f"table-{n}", f"{g.scene.group.model}, {g.scene.group.data}")
        for n, g in enumerate(galleries, start=1)
    ]
    links += [("trials", "Trials")] * any(table.kind == "trials" for table in tables)
    links += [("runs", "Runs"), ("details", "Each run"), ("environments", "Environments")]
    links += [("reproduce", "Reproduce")]
    return _page(
        title=TITLE,
        lead=_lead(records),
        contents="\n".join(f'<li><a href="#{at}">{escape(name)}</a></li>' for at, name in links),
        body="\n".join(sections),
    )


def _page(**parts: str) -> str:
    """Fill the template; the policy allows the page's own script and no other."""
    folder = files("spafit_bench") / "assets" / "report"
    script = (folder / "script.js").read_text(encoding="utf-8")
    digest = hashlib.sha256(script.encode()).digest()
    return Template((folder / "page.html").read_text(encoding="utf-8")).substitute(
        {name: printable(part) for name, part in parts.items()},
        style=(folder / "style.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=base64.b64encode(digest).decode(),
        version=__version__,
    )


def _lead(records: Sequence[RunRecord]) -> str:
    counts = Counter(record.status for record in records)
    states = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    days = sorted({record.started_at[:10] for record in records})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return escape(f"{len(records)} runs ({states}), {when}.")


def _section(name: str, gallery: Gallery, tables: Sequence[ResultTable], anchors: Anchors) -> str:
    group = gallery.scene.group
    own = [table for table in tables if (table.model, table.data) == (group.model, group.data)]
    own = [table for table in own if table.kind != "trials"]
    return "\n".join(
        [
            f'<section id="{name}">',
            f"<h2>{escape(group.model)}, {escape(group.data)}</h2>",
            overview(group, anchors),
            *(_table(table) for table in own if table.kind == "scores"),
            verdicts(gallery),
            *(_table(table) for table in own if table.kind != "scores"),
            "<h3>Figures</h3>",
            *_figures(gallery.figures),
            "</section>",
        ]
    )


def _trials(tables: Sequence[ResultTable]) -> Iterator[str]:
    found = [table for table in tables if table.kind == "trials"]
    if found:
        yield '<section id="trials"><h2>Trials</h2>'
        yield from map(_table, found)
        yield "</section>"


def _table(table: ResultTable) -> str:
    title = escape(table.title, quote=True)
    return (
        f"<h3>{escape(table.kind.capitalize())}</h3>\n"
        f'<div class="scroll" role="region" tabindex="0" aria-label="{title}">'
        f"{html_block(table)}</div>"
    )


def _figures(figures: Sequence[Plot | Skipped]) -> Iterator[str]:
    for figure in figures:
        if isinstance(figure, Plot):
            yield (
                f'<figure class="plot"><h4>{escape(figure.title)}</h4>{inline_svg(figure)}'
                f"<figcaption>{escape(figure.subtitle)}. {escape(figure.caption)}</figcaption>"
                "</figure>"
            )
    skipped = [figure for figure in figures if isinstance(figure, Skipped)]
    if skipped:
        yield '<p class="note">Not drawn, because there are too few data:</p><ul class="notes">'
        yield from (f"<li>{escape(one.title)}: {escape(one.why)}.</li>" for one in skipped)
        yield "</ul>"
