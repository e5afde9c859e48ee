"""A finished run as a model for others: a plain checkpoint, a PEFT adapter, or what was trained.

Every form has the tokenizer and a model card, and all but the PEFT adapter a configuration with the
task's label names. The folder appears whole or not at all, and nothing in it is a pickle.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from spafit_bench.base.checksums import SUMS, sums_of
from spafit_bench.base.durable import umask
from spafit_bench.base.errors import UserError, nearest
from spafit_bench.export.model_card import base_name, is_hub_base, model_card
from spafit_bench.export.peft_adapter import make_peft_adapter
from spafit_bench.export.restore import Base, RestoredRun, is_merged, merge_adapters, restore
from spafit_bench.models.checkpoint import quiet_transformers
from spafit_bench.models.encoding import load_tokenizer
from spafit_bench.results.lookup import FoundRun


@dataclass(frozen=True)
class Export:
    """What has been written."""

    folder: Path
    format: str
    file_bytes: dict[str, int]
    """Size of every file, by name."""
    trained_bytes: int
    """Of the tensors that the run trained, in fp32: what a task adds to a shared base model."""
    notes: tuple[str, ...]

    @property
    def total_bytes(self) -> int:
        """Size of the folder."""
        return sum(self.file_bytes.values())


@dataclass(frozen=True)
class _Form:
    """How one form of export is written and loaded."""

    write: Callable[[RestoredRun, FoundRun, Path], tuple[str, ...]]
    """Writes the weights; returns notes for the card."""
    usage: Callable[[RestoredRun], str]


def export_run(found: FoundRun, to: Path, format_: str, base: Base) -> Export:
    """Write a run as a model.

    Args:
        found: the run.
        to: folder to make; may exist if it is empty.
        format_: a key of `FORMATS`.
        base: where the base model is.

    Raises:
        UserError: the folder is not empty or cannot be written, the run cannot be restored, or its
            method cannot be expressed in the format.
    """
    if format_ not in FORMATS:
        raise UserError(f"--format {format_}: {nearest(format_, FORMATS)}")
    _check_empty(to)
    if is_merged(found):
        raise UserError(f"{found.folder} is a merged model already; export the run it came from")
    restored = restore(found, base)
    form = FORMATS[format_]
    quiet_transformers()
    with _whole_folder(to) as folder:
        config = restored.adapted.model.config
        config.problem_type = (
            "regression" if restored.task.is_regression else "single_label_classification"
        )
        config.name_or_path = base_name(found.record) if is_hub_base(found.record) else ""
        trained_bytes = 4 * restored.adapted.plan.trainable_parameters
        notes = (*restored.warnings, *form.write(restored, found, folder))
        if format_ != "peft":  # a config.json makes transformers take the folder for a whole model
            config.save_pretrained(folder)
        _write_tokenizer(restored, folder)
        card = model_card(found.record, form.usage(restored), notes)
        (folder / "README.md").write_text(card, encoding="utf-8")
    sizes = {
        str(path.relative_to(to)): path.stat().st_size
        for path in sorted(to.rglob("*"))
        if path.is_file()
    }
    return Export(to, format_, sizes, trained_bytes, notes)


def _write_merged(restored: RestoredRun, found: FoundRun, folder: Path) -> tuple[str, ...]:
    merge_adapters(restored)
    restored.adapted.model.save_pretrained(folder)
    _copy(found, folder, "record.json")  # `predict` reads it
    return ()


def _write_peft(restored: RestoredRun, found: FoundRun, folder: Path) -> tuple[str, ...]:
    from safetensors.torch import save_file

    adapter = make_peft_adapter(restored.adapted, restored.checkpoint.architecture)
    config = adapter.config | {
        "base_model_name_or_path": _base_path(restored),
        "revision": restored.checkpoint.revision,
    }
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    save_file(adapter.tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    del found
    return tuple(f"If it trains on with PEFT, {note}." for note in adapter.notes)


def _write_delta(_restored: RestoredRun, found: FoundRun, folder: Path) -> tuple[str, ...]:
    _copy(found, folder, "adapter.safetensors", "record.json")
    return ()


def _copy(found: FoundRun, folder: Path, *names: str) -> None:
    """Copy files of a run, with their checksums."""
    for name in names:
        shutil.copyfile(found.folder / name, folder / name)
    sums = sums_of({name: (folder / name).read_bytes() for name in names})
    (folder / SUMS).write_bytes(sums)


def _write_tokenizer(restored: RestoredRun, folder: Path) -> None:
    tokenizer = load_tokenizer(restored.checkpoint)
    for key in ("is_local", "local_files_only"):  # how it was loaded here is nobody else's concern
        tokenizer.init_kwargs.pop(key, None)
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"  # which leaves out what makes inputs those of training
    body = json.loads(file.read_text(encoding="utf-8"))
    body |= {"model_input_names": tokenizer.model_input_names, "split_special_tokens": True}
    file.write_text(json.dumps(body, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _base_path(restored: RestoredRun) -> str:
    """Name the base model as `from_pretrained` finds it: on the hub, or in its folder."""
    checkpoint = restored.checkpoint
    return checkpoint.name if checkpoint.revision else str(checkpoint.path.resolve())


_TOKENIZE = """tokenizer = AutoTokenizer.from_pretrained(folder)
inputs = tokenizer({texts}, truncation=True, max_length={length}, return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits"""


def _tokenize(restored: RestoredRun) -> str:
    texts = ", ".join(json.dumps(column, ensure_ascii=False) for column in restored.task.inputs)
    return _TOKENIZE.format(texts=texts, length=restored.config.train.max_length)


def _use(intro: str, *lines: str) -> str:
    code = "\n".join(["```python", *lines, "```"])
    return "\n\n".join(part for part in ("## Use", intro, code) if part)


def _use_merged(restored: RestoredRun) -> str:
    return _use(
        "",
        "import torch",
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
        "",
        'folder = "."  # this folder',
        "model = AutoModelForSequenceClassification.from_pretrained(folder).eval()",
        _tokenize(restored),
    )


def _use_peft(restored: RestoredRun) -> str:
    names = dict(enumerate(restored.task.labels or ("score",)))
    ids = {name: index for index, name in names.items()}
    return _use(
        "transformers loads the base model that `adapter_config.json` names, and the adapter onto "
        "it. This needs the `peft` package.",
        "import torch",
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
        "",
        'folder = "."  # this folder',
        f"labels = {names}",
        "model = AutoModelForSequenceClassification.from_pretrained(",
        "    folder,",
        "    num_labels=len(labels),",
        "    id2label=labels,",
        f"    label2id={ids},",
        "    dtype=torch.float32,",
        ").eval()",
        _tokenize(restored),
    )


def _use_delta(restored: RestoredRun) -> str:
    size = 4 * restored.adapted.plan.trainable_parameters
    return _use(
        f"This is only what was trained, {size / 1e6:,.1f} MB; it goes onto the base model. On the "
        "command line, `spafit-bench predict .` uses it and `spafit-bench export . --to DIR` makes "
        "a plain checkpoint of it.",
        "from pathlib import Path",
        "import torch",
        "from transformers import AutoTokenizer",
        "from spafit_bench.export.restore import Base, load_delta",
        "",
        'folder = Path(".")  # this folder',
        "model = load_delta(folder, Base()).adapted.model  # Base(model=PATH) where it has moved",
        _tokenize(restored),
    )


FORMATS: dict[str, _Form] = {
    "merged": _Form(_write_merged, _use_merged),
    "peft": _Form(_write_peft, _use_peft),
    "delta": _Form(_write_delta, _use_delta),
}
"""Forms of export, by the name that `--format` takes."""


def _check_empty(to: Path) -> None:
    if to.is_dir():
        try:
            empty = not any(to.iterdir())
        except OSError as error:
            raise UserError(f"--to {to}: cannot be read ({error.strerror})") from None
        if not empty:
            raise UserError(f"--to {to}: the folder is not empty; name a new one")
    elif to.exists() or to.is_symlink():
        raise UserError(f"--to {to}: is a file; name a new folder")


@contextmanager
def _whole_folder(to: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes `to` if the block succeeds."""
    final = to.resolve()
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        outer = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    except OSError as error:
        raise UserError(f"--to {to}: cannot be written ({error.strerror})") from None
    try:
        folder = outer / "export"
        folder.mkdir()
        yield folder
        for path in folder.rglob("*"):  # safetensors makes its files readable by their owner alone
            path.chmod((0o777 if path.is_dir() else 0o666) & ~umask())
        folder.rename(final)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--to {to}: cannot be written ({reason})") from error
    finally:
        shutil.rmtree(outer, ignore_errors=True)
