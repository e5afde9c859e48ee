"""The state of an unfinished run, from which it resumes.

The file is a SHA-256 in hexadecimal, followed by the safetensors format. We read and write it
tensor by tensor, because the tensors may fill most of a machine's memory: parameters and Adam's
moments take 12 bytes for each trainable parameter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_DIGEST_LENGTH = 64
_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "U8": torch.uint8,
}
"""Element types by safetensors' names."""
_UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, RuntimeError, OverflowError)
"""Errors that a file with other content can cause."""
_NAMES = {dtype: name for name, dtype in _TYPES.items()}


class DamagedSnapshot(Exception):  # noqa: N818 (found and set aside, not an error of ours)
    """The bytes are not a complete snapshot."""


@dataclass(frozen=True)
class Snapshot:
    """Tensors by name, and JSON values by name."""

    tensors: dict[str, Tensor]
    facts: Mapping[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors under `prefix/`, by the rest of their names."""
        start = f"{prefix}/"
        return {k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)}

    def release(self) -> None:
        """Free the tensors, after a run has copied what it needs."""
        self.tensors.clear()

    def pieces(self) -> tuple[bytes | memoryview, ...]:
        """Serialise without copying: the returned pieces change with the tensors."""
        buffers = {name: _bytes_of(tensor) for name, tensor in sorted(self.tensors.items())}
        entries: dict[str, Any] = {"__metadata__": {"facts": json.dumps(dict(self.facts))}}
        end = 0
        for name, buffer in buffers.items():
            tensor, start, end = self.tensors[name], end, end + len(buffer)
            what = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape)}
            entries[name] = {**what, "data_offsets": [start, end]}
        header = json.dumps(entries).encode()
        header += b" " * (-len(header) % 8)
        body: tuple[bytes | memoryview, ...]
        body = (len(header).to_bytes(8, "little") + header, *buffers.values())
        digest = hashlib.sha256()
        for piece in body:
            digest.update(piece)
        return (digest.hexdigest().encode(), *body)

    @classmethod
    def from_bytes(cls, content: bytes) -> Snapshot:
        """Read a snapshot; its tensors do not share memory with `content`.

        Raises:
            DamagedSnapshot: the content is truncated, altered, or no snapshot.
        """
        view = memoryview(content)
        digest, body = content[:_DIGEST_LENGTH], view[_DIGEST_LENGTH:]
        if hashlib.sha256(body).hexdigest().encode() != digest:
            raise DamagedSnapshot("its checksum does not match")
        start = 8 + int.from_bytes(body[:8], "little")
        try:
            entries = json.loads(bytes(body[8:start]))
            facts = json.loads(entries.pop("__metadata__")["facts"])
            tensors = {name: _tensor(body[start:], entry) for name, entry in entries.items()}
        except _UNREADABLE as error:
            raise DamagedSnapshot(str(error)) from None
        if not isinstance(facts, dict):
            raise DamagedSnapshot("it has no facts")
        return cls(tensors, facts)


def _bytes_of(tensor: Tensor) -> memoryview:
    """View a tensor's elements as bytes; a tensor that is not contiguous is copied."""
    flat = tensor.contiguous().view(-1)
    view: memoryview = flat.view(torch.uint8).numpy().data
    return view


def _tensor(data: memoryview, entry: Mapping[str, Any]) -> Tensor:
    dtype, (start, end) = _TYPES[entry["dtype"]], entry["data_offsets"]
    raw = bytearray(data[start:end])
    flat = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
    return flat.reshape(entry["shape"])
