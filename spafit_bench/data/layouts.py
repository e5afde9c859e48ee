"""Where a task's files are: on the hub, inside the package, or in a folder of a known layout."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from spafit_bench.base.errors import UserError, nearest
from spafit_bench.data.readers import Columns, Table, read_parquet, read_text
from spafit_bench.data.tasks import Task, TestSet

HUB_REPO = "nyu-mll/glue"
MINI_GLUE = Path(__file__).resolve().parents[1] / "assets" / "mini-glue"
"""Nine small tasks in the hub's layout; written by `python -m scripts.mini_glue`."""

_DIGITS = "[0-9]" * 5
_SHARDS = f"-{_DIGITS}-of-{_DIGITS}.parquet"
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.parquet")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One split of a task, as it is looked for."""

    key: str
    """Name of the split among the task's own."""
    split: str
    """Name of the split in its configuration: AX is the `test` of `ax`."""
    config: str
    columns: Columns
    """By their hub names, without the label if it is not to be read."""
    test_set: TestSet | None = None


def parts_of(task: Task) -> Iterator[Part]:
    """Yield the splits of `task`: train, dev, then the test sets.

    Labels of GLUE's test sets are never read: on the hub some are real.
    """
    for split in ("train", *task.dev_splits):
        yield Part(key=split, split=split, config=task.name, columns=_columns(task, split))
    for test in task.test_sets:
        columns = _columns(task, test.split)
        yield Part(
            key=test.key,
            split=test.split,
            config=test.config or task.name,
            columns=replace(columns, label=None)
            if task.in_glue
            else replace(columns, label_is_optional=True),
            test_set=test,
        )


def _columns(task: Task, split: str) -> Columns:
    own = task.files.get(split)
    return Columns(
        texts=own.text_columns if own else task.text_columns,
        label=own.label_column if own else task.label_column,
        class_names=task.labels,
    )


@dataclass(frozen=True)
class Layout:
    """One way to lay out the files of a task."""

    task: Task
    places: Mapping[str, tuple[Path, Sequence[str]]]
    """Key of a split -> its folder, and the names that its file may have there, `*` allowed."""

    def expected(self, part: Part) -> str:
        """Name the files that a part is looked for in."""
        folder, names = self.places[part.key]
        return str(folder / " or ".join(names)).replace(_SHARDS, "-00000-of-00001.parquet")

    def files(self, part: Part) -> list[Path]:
        """Return every file of a part, in order; none if it does not exist.

        Raises:
            UserError: it is there in two forms, or a shard is missing.
        """
        folder, names = self.places[part.key]
        there = [files for name in names if (files := sorted(folder.glob(name)))]
        if len(there) > 1:
            raise UserError(
                f"{there[0][0]} and {there[1][0].name} are both there: which one is {part.key}? "
                "Keep one of the two"
            )
        files = there[0] if there else []
        _check_shards(files, part)
        return files

    def read(self, path: Path, part: Part) -> Table:
        """Read one file of a part."""
        if path.suffix == ".parquet":
            return read_parquet(path, part.columns)
        if path.suffix != ".tsv":
            return read_text(path, part.columns)
        tsv, texts, header = self.task.tsv, self.task.tsv_columns, self.task.tsv.headerless
        if part.test_set is not None:
            header = ()
            if part.test_set.tsv_files:
                texts = ("sentence1", "sentence2")
        label = part.columns.label and tsv.label_column
        columns = replace(part.columns, texts=texts, label=label)
        return read_text(path, columns, header=header, torn_rows=tsv.torn_rows)

    def has_labelled_split(self) -> bool:
        """Tell whether train or dev is there.

        Raises:
            UserError: files that contradict each other.
        """
        return any(self.files(part) for part in parts_of(self.task) if part.test_set is None)

    def tables(self, without: Sequence[str] = ()) -> dict[str, list[Table]]:
        """Read every split: the tables of its files by its key; a test set may be missing.

        Args:
            without: keys of the splits that are to be made of train.

        Raises:
            UserError: train or dev is missing, or a file cannot be read.
            MissingSplitError: among them, the first of these.
        """
        files = {part.key: self.files(part) for part in parts_of(self.task)}
        for part in parts_of(self.task):
            if part.key in without and files[part.key]:
                raise UserError(
                    f"{files[part.key][0]} is {part.key}, which --split would take from train; "
                    "leave out --split, or move the file away"
                )
            if not files[part.key] and part.test_set is None and part.key not in without:
                raise MissingSplitError(self, part)
        return {
            part.key: [self.read(path, part) for path in files[part.key]]
            for part in parts_of(self.task)
            if files[part.key]
        }


class MissingSplitError(UserError):
    """A task has files here, but train or dev is not among them."""

    def __init__(self, layout: Layout, part: Part) -> None:
        task = layout.task
        problem = f"{layout.expected(part)} is missing: {task.name} needs it for {part.key}"
        if not layout.places[part.key][1]:
            problem = f"the file of {task.name} names no file for {part.key}"
        if part.key != "train" and len(task.dev_splits) == 1:
            problem += f"; --split 0.1 takes a tenth of train for {part.key}"
        super().__init__(problem)


def _check_shards(files: list[Path], part: Part) -> None:
    shards = [match for path in files if (match := _SHARD.fullmatch(path.name))]
    totals = sorted({int(match[3]) for match in shards})
    if len(totals) > 1:
        raise UserError(
            f"{files[0].parent}: {part.key} is there in {' and in '.join(map(str, totals))} "
            "shards; keep one of the two"
        )
    for number in range(totals[0] if totals else 0):
        shard = files[0].with_name(f"{shards[0][1]}-{number:05d}-of-{totals[0]:05d}.parquet")
        if shard not in files:
            raise UserError(
                f"{shard} is missing: {len(files)} of {totals[0]} shards of {part.key} are there"
            )


def hub_layout(task: Task, folder: Path) -> Layout:
    """Return the layout of the hub: parquet in shards, other configurations in sister folders."""
    parts = parts_of(task)
    return Layout(task, {p.key: (_folder_of(p, folder), [p.split + _SHARDS]) for p in parts})


def _plain_layout(task: Task, folder: Path) -> Layout:
    """Return the layout of CSV or JSON lines with the hub's names of splits and columns."""
    return Layout(
        task,
        {
            part.key: (_folder_of(part, folder), [f"{part.split}.csv", f"{part.split}.jsonl"])
            for part in parts_of(task)
        },
    )


def _glue_tsv_layout(task: Task, folder: Path) -> Layout:
    """Return the layout that `download_glue_data.py` writes."""
    places: dict[str, tuple[Path, Sequence[str]]] = {}
    for part in parts_of(task):
        places[part.key] = (folder, [f"{part.split.replace('validation', 'dev')}.tsv"])
        if part.test_set is not None and part.test_set.tsv_files:
            places[part.key] = (folder.parent, part.test_set.tsv_files)
    return Layout(task, places)


def _described_layout(task: Task, folder: Path, names: Mapping[str, Sequence[str]]) -> Layout:
    """Return the layout that the description of a task beyond GLUE gives."""
    return Layout(task, {p.key: (folder, names.get(p.split, ())) for p in parts_of(task)})


def _folder_of(part: Part, folder: Path) -> Path:
    """Return the folder of a part, given that of the task: another configuration lies beside it."""
    elsewhere = part.test_set is not None and part.test_set.config is not None
    return folder.parent / part.config if elsewhere else folder


def read_source(
    task: Task, source: str, *, offline: bool, without: Sequence[str] = ()
) -> tuple[str, dict[str, list[Table]]]:
    """Find and read every split of `task`.

    Args:
        task: the task.
        source: `hub`, `mini` or a folder.
        offline: take the hub's files from the cache alone.
        without: dev splits that the folder does not have, because `--split` makes them.

    Returns:
        What the source is called in a record, and the tables (shards) of each split by its key.
        A test set that does not exist is left out.

    Raises:
        UserError: train or dev is missing, or a file cannot be read.
    """
    if without and source in ("hub", "mini"):
        raise UserError(f"--split is for a folder without a dev set; --data {source} has its own")
    if len(without) > 1:
        raise UserError(f"--split makes one dev set; {task.name} has {len(without)}")
    if source == "hub":
        return _read_hub(task, offline=offline)
    if source == "mini":
        if not task.in_glue:
            raise UserError(f"--data mini: mini-GLUE has no {task.name}; give --data FOLDER")
        return source, hub_layout(task, MINI_GLUE / task.name).tables()
    try:
        return source, layout_of(task, source).tables(without)
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror})") from error


def _read_hub(task: Task, *, offline: bool) -> tuple[str, dict[str, list[Table]]]:
    from spafit_bench.base.hub import fetch

    parts = list(parts_of(task))
    if task.in_glue:
        repository = HUB_REPO
        named = {part.key: f"{part.config}/{part.split}-*.parquet" for part in parts}
    elif task.hub is not None:
        repository = task.hub.repository
        named = {part.key: name for part in parts if (name := task.hub.patterns.get(part.split))}
    else:
        raise UserError(
            f"--data hub: the file of {task.name} names no data set on the hub; give --data FOLDER"
        )
    fetched = fetch(
        repository,
        repo_type="dataset",
        revision=None,
        patterns=list(named.values()),
        offline=offline,
        required=[named[part.key] for part in parts if part.test_set is None],
    )
    if task.hub is None:
        layout = hub_layout(task, fetched.path / task.name)
    else:
        layout = _described_layout(task, fetched.path, _each(task.hub.patterns))
    return f"{repository}@{fetched.revision}", layout.tables()


def _each(patterns: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    return {split: (pattern,) for split, pattern in patterns.items()}


def layout_of(task: Task, source: str) -> Layout:
    """Return the layout of a task's files in the folder that `--data` names.

    Raises:
        UserError: there is no such folder, or it has no data for the task.
    """
    root = data_folder(source)
    found = find_layout(task, root)
    if found is not None:
        return found
    train = next(parts_of(task))
    looked_for = ", ".join(layout.expected(train) for layout in _layouts(task, root)[:3])
    held = ", ".join(path.name for path in _listing(root)[:12]) or "nothing"
    raise UserError(
        f"{source}: no data for {task.name} here; looked for {looked_for}. The folder has: {held}"
    )


def data_folder(source: str) -> Path:
    """Return the folder that `--data` names.

    Raises:
        UserError: there is none.
    """
    root = Path(os.path.expanduser(source))  # noqa: PTH111 - pathlib's fails for unknown users
    if root.is_dir():
        return root
    if root.exists():
        raise UserError(f"{source} is a file; --data takes a folder, or 'hub' or 'mini'")
    words = nearest(source, ("hub", "mini"))
    if "/" in source:
        there = (
            [p.name for p in _listing(root.parent) if p.is_dir()] if root.parent.is_dir() else []
        )
        close = difflib.get_close_matches(root.name, there, n=1)
        words = f"did you mean {str(root.parent / close[0])!r}?" if close else "check the path"
    raise UserError(
        f"no such data folder: {source}; --data takes a folder, 'hub' or 'mini' ({words})"
    )


def find_layout(task: Task, root: Path) -> Layout | None:
    """Return the first layout with a labelled split of `task` in a folder; None if there is none.

    Raises:
        UserError: files that contradict each other.
    """
    return next((each for each in _layouts(task, root) if each.has_labelled_split()), None)


def _layouts(task: Task, root: Path) -> list[Layout]:
    if task.in_glue:
        return [
            hub_layout(task, root / task.name),
            _glue_tsv_layout(task, root / task.title),
            _plain_layout(task, root / task.name),
            hub_layout(task, root),
            _glue_tsv_layout(task, root),
            _plain_layout(task, root),
        ]
    named = {split: file.patterns for split, file in task.files.items()}
    places = [root, root / task.name, root / task.title]
    layouts = [_described_layout(task, place, named) for place in places]
    if task.hub is not None:
        layouts.append(_described_layout(task, root, _each(task.hub.patterns)))
    return layouts


def _listing(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
