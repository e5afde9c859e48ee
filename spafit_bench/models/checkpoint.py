"""Finds, checks and reads a pretrained encoder, and loads it with a task's head.

Only safetensors are accepted, because a pickled checkpoint can run code when it is opened.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spafit_bench.base.errors import UserError
from spafit_bench.data.tasks import Task
from spafit_bench.methods.architectures import (
    ARCHITECTURES,
    Architecture,
    get_architecture,
    locate,
)

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

_VOCABULARIES = (
    *("vocab.txt", "vocab.json", "tokenizer.json", "spm.model", "sentencepiece.bpe.model"),
    *("spiece.model", "tokenizer.model"),
)
_TOKENIZER_FILES = (
    *("vocab.txt", "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "spm.model", "sentencepiece.bpe.model"),
    *("spiece.model", "tokenizer.model", "bpe.codes", "dict.txt"),
)
"""Files that a tokenizer may be read from. Those that exist decide the run's name."""
_REDIRECTIONS = {
    "config.json": ("transformers_weights", "configuration_files"),
    "tokenizer_config.json": ("fast_tokenizer_files",),
}
"""Keys that make transformers read other files than those above."""
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_TENSORS_AT_ONCE = 16
"""About a layer of BERT. What was read of a file takes memory until the file is closed."""
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.ckpt")

SHIPPED_MODELS = {"tiny-bert": Path(__file__).parents[1] / "assets" / "tiny-bert"}
"""Encoders inside the package, by the name that `--model` takes."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder whose configuration is readable and whose encoder is supported."""

    name: str
    """As the user wrote it."""
    path: Path
    revision: str | None
    config: dict[str, Any]
    architecture: Architecture

    @property
    def short_name(self) -> str:
        """The name without the folder it was in."""
        local = Path(self.name).expanduser()
        return local.resolve().name if local.is_dir() else self.name

    @property
    def num_layers(self) -> int:
        """Depth of the encoder."""
        return int(self.config.get("num_hidden_layers", self.config.get("n_layers", 0)))

    @cached_property
    def resolved_config(self) -> PretrainedConfig:
        """The configuration with transformers' defaults for keys that `config.json` lacks."""
        return _transformers_config(self.path)

    @property
    def has_segments(self) -> bool:
        """Whether the encoder has segment ids, which mark the two texts of a pair."""
        return (getattr(self.resolved_config, "type_vocab_size", 0) or 0) > 1

    @property
    def needs_segments(self) -> bool:
        """Whether the encoder was pretrained with segment ids, so the tokenizer must give them."""
        return self.has_segments and self.architecture.model_type in ("bert", "electra")

    @property
    def most_tokens(self) -> int | None:
        """The longest input that the encoder has positions for; None if it has no limit."""
        positions = getattr(self.resolved_config, "max_position_embeddings", None)
        if isinstance(positions, int) and self.architecture.reserves_positions:
            positions -= int(self.resolved_config.pad_token_id or 0) + 1  # positions start after it
        return positions if isinstance(positions, int) else None


def find_checkpoint(
    name: str, *, revision: str | None = None, offline: bool = False, weights: bool = True
) -> Checkpoint:
    """Return a checkpoint of the package, of a folder, or of the hub.

    Without `weights`, only `config.json` is needed. `offline` uses only downloaded files.

    Raises:
        UserError: not found, not a checkpoint, pickled weights, or an unsupported encoder.
    """
    path = SHIPPED_MODELS.get(name) or _local(name)
    if path is None:
        from spafit_bench.base.hub import fetch

        wanted = ["config.json", *((*_TOKENIZER_FILES, "*.safetensors*") if weights else ())]
        fetched = fetch(
            name, repo_type="model", revision=revision, patterns=wanted, offline=offline
        )
        path, revision = fetched.path, fetched.revision
        if weights and not weight_files(path):
            raise UserError(
                f"{name} has no model.safetensors on the hub; pickled weights are refused, opening "
                "them can run code: give --revision of a conversion, or convert it "
                "(save_pretrained does) and give its folder"
            )
    elif revision is not None:
        raise UserError(f"--revision {revision}: {name} is no hub repository, so it has none")
    if (path / "adapter_config.json").is_file():
        raise UserError(
            f"{path}: this folder holds a PEFT adapter (adapter_config.json), not a whole model; "
            "merge it into its base model (merge_and_unload) and give the folder of the result"
        )
    config = _read_json(path / "config.json")
    if not config.get("model_type"):
        raise UserError(
            f"{path / 'config.json'}: there is no model_type, so this is not a checkpoint of "
            f"transformers; supported: {', '.join(sorted(ARCHITECTURES))}"
        )
    architecture = get_architecture(str(config["model_type"]))
    checkpoint = Checkpoint(name, path, revision, config, architecture)
    if checkpoint.num_layers < 1:
        raise UserError(
            f"{path / 'config.json'}: an encoder needs at least one layer (num_hidden_layers)"
        )
    if weights:
        if not weight_files(path):
            if pickled := [path / file for file in _PICKLED if (path / file).is_file()]:
                raise UserError(
                    f"{pickled[0]}: pickled weights are refused, opening them can run code; "
                    "convert the checkpoint to model.safetensors (save_pretrained does) and use "
                    "that folder"
                )
            raise UserError(f"{path}: no model.safetensors in the checkpoint folder")
        if not any((path / file).is_file() for file in _VOCABULARIES):
            raise UserError(
                f"{path}: no vocabulary in the checkpoint, one of {', '.join(_VOCABULARIES)}"
            )
    for file, keys in _REDIRECTIONS.items():
        body = _read_json(path / file) if (path / file).is_file() else {}
        if found := [key for key in keys if body.get(key)]:
            raise UserError(
                f"{path / file}: {found[0]} makes transformers read other files than the usual "
                "ones, which run names do not cover; remove the key and use the usual file names"
            )
    return checkpoint


def _local(name: str) -> Path | None:
    """Return the folder that `name` means, or None if it reads like a hub repository."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or path.exists():
        what = "is a file, not a folder" if path.exists() else "does not exist"
        raise UserError(f"--model {name}: {what}; give a Hugging Face checkpoint folder")
    return None


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(
            f"{file.parent}: no config.json, so this is not a Hugging Face checkpoint folder; "
            "it needs config.json, model.safetensors and a tokenizer"
        )
    try:
        body = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_without_repeats)
    except RecursionError:
        raise UserError(f"{file}: not readable as JSON (nested too deeply)") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not readable as JSON ({error})") from None
    if not isinstance(body, dict):
        raise UserError(f"{file}: must be a JSON object")
    return body


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    body = dict(pairs)
    if len(body) < len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(f"the key {max(names, key=names.count)!r} stands twice")
    return body


def weight_files(path: Path) -> tuple[Path, ...]:
    """Return the safetensors files of a checkpoint; transformers ignores others in the folder.

    Raises:
        UserError: the index is damaged or names a missing file.
    """
    whole, index = (path / name for name in _WEIGHTS)
    if whole.is_file():
        return (whole,)
    if not index.is_file():
        return ()
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{index}: not a readable index of weights ({error!r})") from None
    for name in names:
        if Path(name).name != name:
            raise UserError(f"{index}: names {name}, which is not a file of the folder")
        if not (path / name).is_file():
            raise UserError(f"{index}: names {name}, which is not in the folder")
    return tuple(path / name for name in names)


Identity = tuple[int, int, int, int]
"""Size, modification time, inode and change time. If they are equal, the file has not changed."""


def _identity(path: Path) -> Identity:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_ctime_ns


@cache  # a sweep asks for the same checkpoints many times
def _sha256(path: Path, identity: Identity) -> str:
    del identity  # part of the cache key only
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _other_files(checkpoint: Checkpoint) -> list[Path]:
    names = ("config.json", *_TOKENIZER_FILES)
    return [path for name in names if (path := checkpoint.path / name).is_file()]


def fingerprint(checkpoint: Checkpoint) -> tuple[str, str]:
    """Return SHA-256 of the weights, and of configuration and tokenizer together."""

    def digest(paths: Iterable[Path]) -> str:
        total = hashlib.sha256()
        for path in paths:
            total.update(f"{path.name} {_sha256(path, _identity(path))}\n".encode())
        return total.hexdigest()

    return digest(weight_files(checkpoint.path)), digest(_other_files(checkpoint))


def identities(checkpoint: Checkpoint) -> dict[Path, Identity]:
    """Return the identity of every file that `fingerprint` reads."""
    paths = (*weight_files(checkpoint.path), *_other_files(checkpoint))
    return {path: _identity(path) for path in paths}


def model_config(checkpoint: Checkpoint, task: Task) -> PretrainedConfig:
    """Return the checkpoint's configuration with the outputs and label names of a task."""
    names = dict(enumerate(task.labels or ("score",)))
    return _transformers_config(
        checkpoint.path,
        num_labels=task.num_labels,
        return_dict=True,  # logits are read by name, also from an export
        id2label=names,
        label2id={label: index for index, label in names.items()},
    )


def _transformers_config(path: Path, **changes: object) -> PretrainedConfig:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, **changes)
    except Exception as error:  # a wrong value can make a configuration class raise anything
        raise UserError(f"{path / 'config.json'}: {error}") from None


def parameter_shapes(checkpoint: Checkpoint, task: Task) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every parameter with a task's head, allocating no weights."""
    import torch
    from transformers import AutoModelForSequenceClassification

    quiet_transformers()
    config = model_config(checkpoint, task)
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def load_model(
    checkpoint: Checkpoint, task: Task, *, seed: int, fresh_pooler: bool, attention: str
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Load the encoder in fp32 with a head for the task.

    The classifier and all tensors that the checkpoint lacks are drawn from the seed. Each has its
    own generator, so every method starts from the same head. With `fresh_pooler` the pooler is
    drawn too, although the checkpoint has one. `attention` is transformers' implementation
    (`eager` or `sdpa`); an encoder that has only `eager` uses `eager`.

    Returns:
        The model on the CPU, and the names of its fresh tensors in the model's order.

    Raises:
        UserError: weights that cannot be read or do not fit the configuration.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification

    quiet_transformers()
    row = checkpoint.architecture
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            checkpoint.path,
            config=model_config(checkpoint, task),
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            attn_implementation=attention if row.has_sdpa else "eager",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # a classifier of another task; the rest is checked below
        )
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{checkpoint.path}: the weights cannot be loaded ({reason:.300})"
        ) from None
    for name, stored, expected in sorted(info["mismatched_keys"]):
        if locate(name, row).component != "classifier":
            raise UserError(
                f"{checkpoint.path}: {name!r} is stored with shape {tuple(stored)}, but "
                f"config.json means {tuple(expected)}; the two do not belong together"
            )
    redrawn = {"classifier", "pooler"} if fresh_pooler else {"classifier"}
    scale = float(getattr(model.config, "initializer_range", 0.02))
    fresh = []
    for name, parameter in model.named_parameters():
        if name not in info["missing_keys"] and locate(name, row).component not in redrawn:
            continue
        fresh.append(name)
        with torch.no_grad():  # as BERT does
            if parameter.dim() > 1:
                parameter.normal_(0.0, scale, generator=generator(seed, name))
            else:
                parameter.fill_(0.0 if name.endswith(".bias") else 1.0)
    return model, tuple(fresh)


def generator(seed: int, name: str) -> torch.Generator:
    """Return a random generator that depends only on the seed and a name."""
    import torch

    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def unreadable_weights(file: Path, error: Exception) -> UserError:
    """Return the error for a file that safetensors cannot read."""
    with suppress(OSError), file.open("rb") as opened:
        if opened.read(40).startswith(b"version https://git-lfs"):
            return UserError(
                f"{file}: this is a Git LFS pointer, not the weights; run `git lfs pull` in that "
                "folder, or download the file"
            )
    return UserError(f"{file}: not a readable safetensors file ({error})")


def quiet_transformers() -> None:
    """Silence transformers' report of missing tensors; the plan and the record name them."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def fresh_parameters(checkpoint: Checkpoint, names: list[str]) -> tuple[str, ...]:
    """Return the parameters without pretrained values, reading no weights.

    The classifier is always fresh: a stored one has learnt another task, and methods can only be
    compared if they start alike. Other parameters are fresh if the stored weights lack them. For a
    folder without weights (only `config.json`), published encoders decide.
    """
    from safetensors import SafetensorError, safe_open

    row = checkpoint.architecture
    components = {name: locate(name, row).component for name in names}
    files = weight_files(checkpoint.path)
    if not files:
        fresh = {"classifier"} if row.pooler_is_pretrained else {"classifier", "pooler"}
        return tuple(name for name in names if components[name] in fresh)
    stored: set[str] = set()
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                stored |= {_modern(key) for key in tensors.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            raise unreadable_weights(file, error) from None
    # A bare encoder is stored without the prefix of its own name (`bert.`, `model.`, ...).
    return tuple(
        n for n in names if components[n] == "classifier" or not stored & {n, n.partition(".")[2]}
    )


def stored_tensors(
    checkpoint: Checkpoint, names: Sequence[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield name and pretrained value of parameters that are not fresh, in fp32 on the CPU.

    Raises:
        OSError, SafetensorError: a file cannot be read.
    """
    from safetensors import safe_open

    # A bare encoder is stored without the prefix of its own name (`bert.`, `model.`, ...).
    wanted = {name.partition(".")[2]: name for name in names} | {name: name for name in names}
    for file in weight_files(checkpoint.path):
        with safe_open(file, framework="pt") as tensors:
            stored = {key: wanted.get(_modern(key)) for key in tensors.keys()}  # noqa: SIM118
        keys = [key for key, name in stored.items() if name]
        for first in range(0, len(keys), _TENSORS_AT_ONCE):
            with safe_open(file, framework="pt") as tensors:
                for key in keys[first : first + _TENSORS_AT_ONCE]:
                    yield str(stored[key]), tensors.get_tensor(key).float()


def read_again(
    model: PreTrainedModel, checkpoint: Checkpoint, names: Sequence[str], dtype: torch.dtype
) -> None:
    """Read the parameters `names`, which are not fresh, into a model in another precision.

    A loaded tensor is a mapped part of the file. It takes memory once it is read, and keeps it
    until all tensors of the file are gone. Conversion in place would therefore need 2.0 GB for a
    checkpoint of 1.3 GB in fp32 that takes 0.7 GB in bf16.

    Raises:
        UserError: a file can no longer be read.
    """
    from safetensors import SafetensorError

    try:
        for name, tensor in stored_tensors(checkpoint, names):
            model.get_parameter(name).data = tensor.to(dtype, copy=True)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{checkpoint.path}: the weights cannot be loaded ({error})") from None


def _modern(key: str) -> str:
    """Translate LayerNorm tensors of old checkpoints, as transformers does on loading."""
    return key.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )


def untrained_pooler(checkpoint: Checkpoint) -> bool:
    """Return whether the stored pooler was never trained: its bias is exactly zero.

    A classifier behind a frozen random projection hardly learns, so the caller warns.
    """
    from safetensors import safe_open

    for file in weight_files(checkpoint.path):
        with safe_open(file, framework="pt") as tensors:  # numpy has no bf16
            for key in tensors.keys():  # noqa: SIM118 (not a dict)
                if key.endswith("pooler.dense.bias"):
                    return not tensors.get_tensor(key).any()
    return False
