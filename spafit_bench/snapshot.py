"""The state of an unfinished run, so that it can go on as if nothing had happened."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

_DIGEST_LENGTH = 64


class DamagedSnapshot(Exception):  # noqa: N818 (found and set aside, not an error of ours)
    """The bytes are not a snapshot that was written whole."""


@dataclass(frozen=True)
class Snapshot:
    """Tensors by name, and JSON values by name."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors under `prefix/`, by the rest of their names."""
        start = f"{prefix}/"
        return {k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)}

    def pieces(self) -> tuple[bytes, bytes]:
        """Serialise: a SHA-256 in hexadecimal, then safetensors; apart, for they may be large."""
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        body = save(tensors, metadata={"facts": json.dumps(dict(self.facts))})
        return hashlib.sha256(body).hexdigest().encode(), body

    @classmethod
    def from_bytes(cls, content: bytes) -> Snapshot:
        """Read a snapshot back.

        Raises:
            DamagedSnapshot: truncated, altered, or something else.
        """
        digest, body = content[:_DIGEST_LENGTH], content[_DIGEST_LENGTH:]
        if hashlib.sha256(body).hexdigest().encode() != digest:
            raise DamagedSnapshot("its checksum does not match")
        try:
            header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
            facts = json.loads(header["__metadata__"]["facts"])
            tensors = load(body)
        except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DamagedSnapshot(str(error)) from None
        if not isinstance(facts, dict):
            raise DamagedSnapshot("it has no facts")
        return cls(tensors, facts)
