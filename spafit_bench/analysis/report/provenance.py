"""Where the numbers come from: machines, versions, data, weights and commands."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from html import escape

from spafit_bench.analysis.report.runs import Anchors
from spafit_bench.analysis.tables.settings import tasks_of
from spafit_bench.results.record import RunRecord
from spafit_bench.results.store import Store


def environments(anchors: Anchors) -> str:
    """Write each machine with its versions once."""
    parts = ['<section id="environments"><h2>Environments</h2>']
    for anchor, found in anchors.environments.items():
        threads = f"{found.num_threads} thread{'s' * (found.num_threads != 1)}"
        packages = ", ".join(f"{name} {version}" for name, version in found.packages.items())
        facts = {
            "Device": f"{found.device_name} ({found.device}), {threads}, {found.precision}",
            "Host": found.host,
            "Python": found.python,
            "Packages": packages,
            "Git commit": found.git_commit or "not in a checkout",
        }
        rows = "".join(
            f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in facts.items() if value
        )
        number = anchor.rpartition("-")[2]
        parts.append(f'<h3 id="{anchor}">Environment {number}</h3><dl>{rows}</dl>')
    return "\n".join([*parts, "</section>"])


def provenance(store: Store, records: Sequence[RunRecord]) -> str:
    """Say how to make the runs and this page again."""
    commands = Counter(run.environment.command for run in records)
    listed = "\n".join(
        f"{command}   # {count} run{'s' * (count != 1)}" for command, count in commands.items()
    )
    results = shlex.quote(store.root.resolve().name or "results")
    again = "\n".join(
        f"spafit-bench {command} --results {results}" for command in ("table", "plot", "report")
    )
    return "\n".join(
        [
            '<section id="reproduce"><h2>Reproduce</h2>',
            "<p>A run is named by everything that changes its result: configuration, data, "
            "weights, tokenizer, precision and threads. The same command finds it finished, or "
            "makes it again. These commands made the runs:</p>",
            f"<pre>{escape(listed)}</pre>",
            "<p>These make the tables, the figures and this page from their records:</p>",
            f"<pre>{escape(again)}</pre>",
            _sources(records),
            "</section>",
        ]
    )


def _sources(records: Sequence[RunRecord]) -> str:
    """List data and weights by their hashes."""
    data = Counter(
        (run.task, run.data.source, run.data.official_basis, run.data.fingerprint)
        for run in records
    )
    weights = Counter((run.model, run.weights.weights_sha256) for run in records)
    titles = {task.name: task.title for task in tasks_of(records)}
    lines = [
        (titles[task], f"{source} ({basis})", digest, count)
        for (task, source, basis, digest), count in data.items()
    ]
    lines += [("model", name, digest, count) for (name, digest), count in weights.items()]
    rows = "".join(
        f'<tr><th scope="row">{escape(what)}</th><td class="wrap">{escape(source)}</td>'
        f'<td class="text"><code>{escape(digest[:16])}</code></td><td>{count}</td></tr>'
        for what, source, digest, count in lines
    )
    return (
        '<div class="scroll" role="region" tabindex="0" aria-label="Data and weights"><table>'
        "<caption>Data and weights, by the beginning of their SHA-256</caption><thead><tr>"
        '<th scope="col" class="text">What</th><th scope="col" class="text">From</th>'
        '<th scope="col" class="text">SHA-256</th><th scope="col">Runs</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )
