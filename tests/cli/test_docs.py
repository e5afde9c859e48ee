"""The documentation is true: what can be run is run, and what cannot is at least well formed.

Fences of README.md, ARCHITECTURE.md, docs/*.md and what explains benchmarks and results:

- `console`: lines after `$ ` are run in order, in one folder per page; the lines below a command
  are its output, numbers aside (`...` leaves lines out).
- `bash`, with `<!-- not run: why -->` above: flags and commands must exist.
- `yaml`, `csv`, `python`: must parse; with `<!-- file: NAME -->` above, it is a file of the page's
  folder.
- `mermaid`: a diagram; `text`: anything else.

`<!-- shortened: FLAGS -->` above a console block: the test adds these flags to `run`.
`<!-- output not compared: why -->`: only the exit code must be 0.
"""

from __future__ import annotations

import ast
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from spafit_bench.cli import app
from tests.conftest import REPOSITORY, Cli, clean_environment

PAGES = sorted(
    [
        *(REPOSITORY / "docs").glob("*.md"),
        REPOSITORY / "README.md",
        REPOSITORY / "ARCHITECTURE.md",
        REPOSITORY / "benchmarks" / "README.md",
        *(REPOSITORY / "results").glob("*/README.md"),
    ]
)


def page_name(page: Path) -> str:
    """What a test of a page is called."""
    return str(page.relative_to(REPOSITORY))


MARK = r"(?:<!-- (?P<mark>[^>]*?) -->\n\n?)?"
FENCE = re.compile(MARK + r"^( *)```(?P<kind>\w*)\n(?P<body>.*?)^ *```$", re.M | re.S)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")


@dataclass(frozen=True)
class Block:
    """A fenced block and the comment above it."""

    kind: str
    mark: str
    body: str

    def marked(self, name: str) -> str:
        """Return what the comment says after `name:`, or nothing."""
        head, _, rest = self.mark.partition(":")
        return rest.strip() if head.strip() == name else ""


def blocks(page: Path) -> list[Block]:
    """Return every fenced block of a page."""
    text = page.read_text(encoding="utf-8")
    found = [Block(m["kind"], m["mark"] or "", m["body"]) for m in FENCE.finditer(text)]
    assert len(found) * 2 == len(re.findall(r"^ *```", text, re.M)), f"{page.name}: odd fences"
    return found


def steps(block: Block) -> Iterator[tuple[str, list[str]]]:
    """Yield each command of a console block with the output shown."""
    for part in re.split(r"^\$ ", block.body, flags=re.M)[1:]:
        command, _, shown = part.replace("\\\n", "").partition("\n")
        yield command, [line for line in shown.splitlines() if line.strip()]


def shape(line: str) -> str:
    """Return a line of output without what differs from machine to machine and run to run."""
    line = re.sub(r"[●○*†‡↑↓]|COLLAPSED: it predicts one constant", "", line)
    line = re.sub(r"-s(\d+)-[0-9a-f]{10}", r"-s\1-HASH", line)
    line = re.sub(r"[-+]?\d[\d,.]*", "N", line)
    line = re.sub(r"\b(ms|s|min|h|B|kB|MB|GB)\b", "UNIT", line)
    return re.sub(r"\s+|─+", " ", line).strip()


def commands_of(text: str) -> list[list[str]]:
    """Return the command lines of this package in a text."""
    lines = text.replace("\\\n", " ").splitlines()
    found = []
    for line in (line for line in lines if "spafit-bench " in line):
        words = shlex.split(line, comments=True)
        for word in ("srun", "$"):
            words = words[1:] if words[:1] == [word] else words
        for group in " ".join(shlex.quote(w) for w in words).split(" '&&' "):
            if group.startswith("spafit-bench "):
                found.append(shlex.split(group)[1:])
    return found


def parse(words: list[str]) -> None:
    """Let the command line read flags and arguments, and carry nothing out."""
    command: Any = typer.main.get_command(app)
    if words[0].startswith("-"):  # flags that act as soon as they are read
        assert words[0] in [flag for parameter in command.params for flag in parameter.opts]
        return
    context = command.make_context("spafit-bench", list(words))
    while hasattr(command, "commands"):
        rest = [*context._protected_args, *context.args]
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_block_says_what_it_is(page: Path) -> None:
    """Runnable, parsed, a file, or not run with a reason; flags exist."""
    for block in blocks(page):
        assert block.kind in ("console", "bash", "yaml", "csv", "python", "text", "mermaid"), block
        if block.kind == "bash":
            assert block.marked("not run"), f"{page.name}: why is this not run?\n{block.body}"
            for words in commands_of(block.body):
                parse(words)
        elif block.kind == "yaml":
            assert isinstance(yaml.safe_load(block.body), dict)
        elif block.kind == "python":
            ast.parse(block.body)
        elif block.kind == "text":
            assert not commands_of(block.body), block.body


@pytest.mark.parametrize(
    "page", [p for p in PAGES if any(b.kind == "console" for b in blocks(p))], ids=page_name
)
def test_what_can_be_run_is_run(page: Path, call: Cli, tmp_path: Path) -> None:
    """In order; each command ends well and prints what the page shows."""
    for block in blocks(page):
        if name := block.marked("file"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(block.body, encoding="utf-8")
        if block.kind != "console":
            continue
        for command, shown in steps(block):
            actual = carry_out(command, block.marked("shortened"), call, tmp_path)
            if not block.marked("output not compared"):
                compare_output(command, shown, actual)


def carry_out(command: str, shorter: str, call: Cli, folder: Path) -> str:
    """Run one command of a page; return what it printed."""
    if command.startswith("spafit-bench "):
        words = shlex.split(command)[1:]
        answer = call(*words, *(shlex.split(shorter) if words[0] == "run" else ()))
        assert answer.code == 0, (command, answer.out, answer.err)
        return answer.err + answer.out
    done = subprocess.run(
        ["bash", "-c", command],
        env=clean_environment(),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


SLOW = ("loading PyTorch and transformers ...", "reading data and checking models ...")
"""Lines that a command only prints on a slow machine."""


def compare_output(command: str, shown: list[str], actual: str) -> None:
    """Require the lines that a page shows, in order; without `...`, with nothing in between."""
    lines = [shape(line) for line in actual.splitlines() if line.strip()]
    lines = [line for line in lines if line not in SLOW]
    at, gap = 0, False
    for line in shown:
        if line.strip() == "...":
            gap = True
            continue
        assert shape(line) in lines[at:], f"{command}\nprints no line like\n{line}\nbut\n{actual}"
        found = lines.index(shape(line), at)
        assert gap or found == at, f"{command}\nprints before {line!r}: {lines[at]!r}"
        at, gap = found + 1, False
    assert gap or not shown or at == len(lines), f"{command}\nprints more: {lines[at:]}"


def test_the_reference_is_current() -> None:
    """Pages about commands and settings are what scripts/make_reference.py writes."""
    script = runpy.run_path(str(REPOSITORY / "scripts" / "make_reference.py"))
    for page, name in (("commands.md", "reference"), ("configuration.md", "configuration")):
        written = (REPOSITORY / "docs" / page).read_text(encoding="utf-8")
        assert written == script[name](), "run: python scripts/make_reference.py"


def test_every_command_and_flag_is_documented() -> None:
    """A help text for each, an example for each command, and each in the reference."""
    found = runpy.run_path(str(REPOSITORY / "scripts" / "make_reference.py"))
    written = (REPOSITORY / "docs" / "commands.md").read_text(encoding="utf-8")
    every = list(found["commands"](typer.main.get_command(app)))
    assert len(every) >= 18
    for name, command in every:
        assert command.help, name
        assert command.epilog, f"{name} has no example"
        section = written.partition(f"\n## {name.partition(' ')[2]}\n")[2].partition("\n## ")[0]
        for parameter in command.params:
            if parameter.name == "help":
                continue
            assert parameter.help, f"{name}: {parameter.name} has no help"
            assert all(f"`{flag}" in section for flag in parameter.opts if flag.startswith("-"))


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_somewhere(page: Path) -> None:
    """To files of the repository, and to headings that exist."""
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page.name}: {target}"
        if anchor and path.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
            slugs = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor in slugs, f"{page.name}: {target}#{anchor}"


def test_every_page_is_in_the_index() -> None:
    """docs/README.md leads to each."""
    index = (REPOSITORY / "docs" / "README.md").read_text(encoding="utf-8")
    for page in (REPOSITORY / "docs").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, page.name


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("spafit-bench run --task mr", "mrpc"),
        ("spafit-bench run --task mrpc,rt", "mrpc,rte"),
        ("spafit-bench run --method spafit-", "spafit-ii"),
        ("spafit-bench data ver", "verify"),
    ],
)
def test_the_shell_completes(cli: Cli, line: str, expected: str) -> None:
    """Commands and names of tasks and methods, also in a comma list."""
    words = line.split(" ")
    answer = cli(
        _SPAFIT_BENCH_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1)
    )
    assert expected in answer.out.split(), (answer.out, answer.err)


def test_completing_imports_nothing_heavy(cli: Cli) -> None:
    """It must answer while the user looks at the prompt."""
    code = (
        "import sys; import spafit_bench.cli.options as o; "
        "assert o.complete_tasks('') and o.complete_methods('') and o.complete_sweeps(''); "
        "print(sorted({'torch', 'transformers', 'pandas', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
