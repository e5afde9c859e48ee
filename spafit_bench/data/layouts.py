"""Where a task's files are: on the hub, in one of three folder layouts, or made in memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from spafit_bench.base.errors import UserError, nearest
from spafit_bench.data.readers import (
    Columns,
    Table,
    read_csv,
    read_jsonl,
    read_parquet,
    read_tsv,
)
from spafit_bench.data.tasks import Task, TestSet

HUB_REPO = "nyu-mll/glue"
MINI_GLUE = Path(__file__).resolve().parents[1] / "assets" / "mini-glue"
"""Nine small tasks in the hub's layout; written by `python -m scripts.mini_glue`."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One split of a task, as it is looked for."""

    key: str
    """Name of the split among the task's own."""
    split: str
    """Name of the split in its configuration: AX is the `test` of `ax`."""
    config: str
    columns: Columns
    """By their hub names, the label left out where it is not to be read."""
    test_set: TestSet | None = None


def parts_of(task: Task) -> Iterator[Part]:
    """Yield the splits of `task`: train, dev, then the test sets, whose labels are not read."""
    for split in ("train", *task.dev_splits):
        yield Part(key=split, split=split, config=task.name, columns=_columns(task, split))
    for test in task.test_sets:
        yield Part(
            key=test.key,
            split=test.split,
            config=test.config or task.name,
            columns=replace(_columns(task, test.split), label=None),
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
class HubFolder:
    """`<config>/<split>-00000-of-00001.parquet`, in one shard or several."""

    task: Task
    folder: Path
    """Of the task's own configuration; other configurations are its siblings."""

    def expected(self, part: Part) -> str:
        """Name the file that a part is looked for in."""
        return str(self._folder_of(part) / f"{part.split}-00000-of-00001.parquet")

    def files(self, part: Part) -> list[Path]:
        """Return every shard of a part, in order; none where it does not exist.

        Raises:
            UserError: a shard is missing.
        """
        pattern = re.compile(rf"{re.escape(part.split)}-(\d{{5}})-of-(\d{{5}})\.parquet")
        folder = self._folder_of(part)
        found = [path for path in _listing(folder) if pattern.fullmatch(path.name)]
        totals = sorted({path.stem[-5:] for path in found})
        if len(totals) > 1:
            raise UserError(
                f"{folder}: {part.split} is there in {' and in '.join(map(str, map(int, totals)))} "
                "shards; keep one of the two"
            )
        shards = [
            folder / f"{part.split}-{number:05d}-of-{totals[0]}.parquet"
            for number in range(int(totals[0]) if totals else 0)
        ]
        for shard in shards:
            if not shard.is_file():
                raise UserError(f"{shard} is missing: a shard of {part.key} that others name")
        return shards

    def read(self, path: Path, part: Part) -> Table:
        """Read one file of a part."""
        return read_parquet(path, part.columns)

    def _folder_of(self, part: Part) -> Path:
        own = part.config == self.task.name
        return self.folder if own else self.folder.parent / part.config


@dataclass(frozen=True)
class GlueTsvFolder:
    """`<task folder>/train.tsv`, as `download_glue_data.py` leaves it."""

    task: Task
    folder: Path

    def expected(self, part: Part) -> str:
        """Name the file that a part is looked for in."""
        return str(self._candidates(part)[0])

    def files(self, part: Part) -> list[Path]:
        """Return the file of a part; none where it does not exist."""
        return [path for path in self._candidates(part) if path.is_file()][:1]

    def read(self, path: Path, part: Part) -> Table:
        """Read one file of a part."""
        layout = self.task.tsv
        label = part.columns.label and layout.label_column
        columns = replace(part.columns, texts=layout.text_columns, label=label)
        if part.test_set is None:
            return read_tsv(path, columns, header=layout.headerless, torn_rows=layout.torn_rows)
        if part.test_set.tsv_files:
            columns = replace(columns, texts=("sentence1", "sentence2"))
        return read_tsv(path, columns, torn_rows=layout.torn_rows)

    def _candidates(self, part: Part) -> list[Path]:
        if part.test_set is not None and part.test_set.tsv_files:
            return [self.folder.parent / name for name in part.test_set.tsv_files]
        return [self.folder / f"{part.split.replace('validation', 'dev')}.tsv"]


@dataclass(frozen=True)
class PlainFolder:
    """`<split>.csv` or `<split>.jsonl` with the hub's column names."""

    task: Task
    folder: Path

    def expected(self, part: Part) -> str:
        """Name the files that a part is looked for in."""
        csv_file, jsonl_file = self._candidates(part)
        return f"{csv_file} (or {jsonl_file.name})"

    def files(self, part: Part) -> list[Path]:
        """Return the file of a part; none where it does not exist.

        Raises:
            UserError: there are two.
        """
        found = [path for path in self._candidates(part) if path.is_file()]
        if len(found) > 1:
            raise UserError(
                f"{found[0]} and {found[1].name} are both there: which one is {part.key}? "
                "Keep one of the two"
            )
        return found

    def read(self, path: Path, part: Part) -> Table:
        """Read one file of a part."""
        read = read_csv if path.suffix == ".csv" else read_jsonl
        return read(path, part.columns)

    def _candidates(self, part: Part) -> tuple[Path, Path]:
        own = part.config == self.task.name
        folder = self.folder if own else self.folder.parent / part.config
        return folder / f"{part.split}.csv", folder / f"{part.split}.jsonl"


@dataclass(frozen=True)
class DescribedFolder:
    """The files that the description of a task beyond GLUE names."""

    task: Task
    folder: Path
    patterns: Mapping[str, tuple[str, ...]]
    """Split -> names below the folder, `*` allowed; each is another place to look."""

    def expected(self, part: Part) -> str:
        """Name the files that a part is looked for in."""
        return " or ".join(str(self.folder / name) for name in self.patterns[part.split])

    def files(self, part: Part) -> list[Path]:
        """Return every file of a part, in order; none where it does not exist.

        Raises:
            UserError: it is there in two forms, or a shard is missing.
        """
        patterns = self.patterns.get(part.split, ())
        found = [sorted(self.folder.glob(name)) for name in patterns]
        there = [files for files in found if files]
        if len(there) > 1:
            raise UserError(
                f"{there[0][0]} and {there[1][0].name} are both there: which one is {part.key}? "
                "Keep one of the two"
            )
        files = there[0] if there else []
        total = re.search(r"-of-(\d{5})\.parquet$", files[0].name) if files else None
        if total and int(total[1]) != len(files):
            raise UserError(
                f"{files[0].parent}: {len(files)} of {int(total[1])} shards of {part.key}"
            )
        return files

    def read(self, path: Path, part: Part) -> Table:
        """Read one file of a part."""
        readers = {".csv": read_csv, ".jsonl": read_jsonl, ".parquet": read_parquet}
        return readers[path.suffix](path, part.columns)


Layout = HubFolder | GlueTsvFolder | PlainFolder | DescribedFolder


def read_source(task: Task, source: str, *, offline: bool) -> tuple[str, dict[str, list[Table]]]:
    """Find and read every split of `task`.

    Args:
        task: the task.
        source: `hub`, `mini` or a folder.
        offline: take the hub's files from the cache alone.

    Returns:
        What the source is called in a record, and the tables (shards) of each split by its key.
        A test set that does not exist is left out.

    Raises:
        UserError: train or dev is missing, or a file cannot be read.
    """
    if source == "mini":
        if not task.in_glue:
            raise UserError(f"--data mini: mini-GLUE has no {task.name}; give --data FOLDER")
        return source, _read_folder(task, HubFolder(task, MINI_GLUE / task.name))
    if source == "hub":
        return _read_hub(task, offline=offline)
    try:
        return source, _read_folder(task, _layout_of(task, source))
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
    layout: Layout = HubFolder(task, fetched.path / task.name)
    if task.hub is not None:
        layout = DescribedFolder(task, fetched.path, _each(task.hub.patterns))
    return f"{repository}@{fetched.revision}", _read_folder(task, layout)


def _each(patterns: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    return {split: (pattern,) for split, pattern in patterns.items()}


def _read_folder(task: Task, layout: Layout) -> dict[str, list[Table]]:
    files = {part.key: layout.files(part) for part in parts_of(task)}
    for part in parts_of(task):
        if not files[part.key] and part.test_set is None:
            raise UserError(
                f"{layout.expected(part)} is missing: {task.name} needs it for {part.key}"
            )
    return {
        part.key: [layout.read(path, part) for path in files[part.key]]
        for part in parts_of(task)
        if files[part.key]
    }


def _layout_of(task: Task, source: str) -> Layout:
    root = data_folder(source)
    found = find_layout(task, root)
    if found is not None:
        return found
    layouts = _layouts(task, root)
    labelled = [part for part in parts_of(task) if part.test_set is None]
    looked_for = ", ".join(layout.expected(labelled[0]) for layout in layouts[:3])
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
    if not root.is_dir():
        _refuse_root(root, source)
    return root


def find_layout(task: Task, root: Path) -> Layout | None:
    """Return the first layout with a labelled split of `task` in a folder; None if there is none.

    Raises:
        UserError: files that contradict each other.
    """
    labelled = [part for part in parts_of(task) if part.test_set is None]
    for layout in _layouts(task, root):
        if any(layout.files(part) for part in labelled):
            return layout
    return None


def _layouts(task: Task, root: Path) -> list[Layout]:
    if task.in_glue:
        return [
            HubFolder(task, root / task.name),
            GlueTsvFolder(task, root / task.tsv.folder),
            PlainFolder(task, root / task.name),
            HubFolder(task, root),
            GlueTsvFolder(task, root),
            PlainFolder(task, root),
        ]
    named = {split: file.patterns for split, file in task.files.items()}
    places = [root, root / task.name, root / task.title]
    layouts: list[Layout] = [DescribedFolder(task, place, named) for place in places]
    if task.hub is not None:
        layouts.append(DescribedFolder(task, root, _each(task.hub.patterns)))
    return layouts


def _refuse_root(root: Path, source: str) -> None:
    if root.exists():
        raise UserError(f"{source} is a file; --data takes a folder, or 'hub' or 'mini'")
    hint = ""
    if root.parent.is_dir():
        hint = nearest(root.name, [p.name for p in _listing(root.parent) if p.is_dir()][:20])
    words = nearest(source, ("hub", "mini")) if "/" not in source else hint
    raise UserError(
        f"no such data folder: {source}; --data takes a folder, 'hub' or 'mini' ({words})"
    )


def _listing(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
