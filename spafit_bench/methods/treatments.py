"""What may be done to a group of parameters, and how it is written in one line.

The grammar, used on the command line, in YAML and in printed plans alike:

    treatment  = "frozen" | "full" | adapters
    adapters   = part { "+" part }           part = bias | lora
    bias       = "bias" [ "(" name { "+" name } ")" ]
    lora       = "lora(" name { "+" name } { "," option } ")"
    option     = "r=INT" | "alpha=NUMBER" | "dropout=NUMBER" | "rslora" | "dora"

`alpha=2x` is twice the rank.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from spafit_bench.base.errors import UserError, nearest


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank adaptation (arXiv:2106.09685, section 4.1): W x + (alpha / r) B A x."""

    matrices: tuple[str, ...]
    rank: int
    alpha: float
    dropout: float = 0.0
    """Dropout on the adapter's input."""
    rslora: bool = False
    """Scale by alpha / sqrt(r) (arXiv:2312.03732) instead of alpha / r."""
    dora: bool = False
    """Decompose the weight into magnitude and direction (arXiv:2402.09353)."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"LoRA rank must be at least 1, not {self.rank}")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise UserError(f"LoRA alpha must be a positive number, not {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"LoRA dropout must be in [0, 1), not {self.dropout}")

    @property
    def scaling(self) -> float:
        """Factor of the low-rank product."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def num_parameters(self, in_features: int, out_features: int) -> int:
        """Count what one adapted matrix of the given shape adds."""
        return self.rank * (in_features + out_features) + (out_features if self.dora else 0)

    def __str__(self) -> str:
        parts = ["+".join(self.matrices), f"r={self.rank}", f"alpha={_number(self.alpha)}"]
        if self.dropout:
            parts.append(f"dropout={_number(self.dropout)}")
        parts += [flag for flag in ("rslora", "dora") if getattr(self, flag)]
        return f"lora({','.join(parts)})"


def _number(value: float) -> str:
    """Write a number as short as it can be read back exactly."""
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))


@dataclass(frozen=True, kw_only=True)
class Treatment:
    """What trains in one group of parameters."""

    full: bool = False
    biases: tuple[str, ...] = ()
    """`all`, a half of the block, `layernorm`, a matrix or a full parameter name."""
    loras: tuple[Lora, ...] = field(default=())

    @property
    def is_frozen(self) -> bool:
        """Whether nothing trains."""
        return not (self.full or self.biases or self.loras)

    def __str__(self) -> str:
        if self.full:
            return "full"
        if self.is_frozen:
            return "frozen"
        parts = [str(lora) for lora in self.loras]
        if self.biases == ("all",):
            parts.append("bias")
        elif self.biases:
            parts.append(f"bias({'+'.join(self.biases)})")
        return "+".join(parts)


FROZEN = Treatment()
FULL = Treatment(full=True)
BIAS = Treatment(biases=("all",))

_PART = re.compile(r"(?P<kind>[a-z]+)\s*(?:\((?P<inside>[^()]*)\))?")
_OPTIONS = ("r", "alpha", "dropout", "rslora", "dora")


def parse_treatment(text: str) -> Treatment:
    """Read a treatment.

    Args:
        text: e.g. `lora(query+value,r=8,alpha=16)+bias(ffn)`.

    Raises:
        UserError: not in the grammar; the message quotes the part that is wrong.
    """
    parts = [part.strip() for part in re.split(r"\+(?![^()]*\))", str(text))]
    if parts == ["frozen"]:
        return FROZEN
    if parts == ["full"]:
        return FULL
    biases: tuple[str, ...] = ()
    loras: list[Lora] = []
    for part in parts:
        match = _PART.fullmatch(part)
        kind = match["kind"] if match else part
        if match is None or kind not in ("bias", "lora"):
            raise _bad_part(part, kind, text)
        if kind == "lora":
            loras.append(_parse_lora(match["inside"] or "", part))
        elif biases:
            raise UserError(f"treatment {text!r} has two bias parts; write bias(a+b)")
        else:
            biases = _names(match["inside"], part) if match["inside"] is not None else ("all",)
    return Treatment(biases=biases, loras=tuple(loras))


def _bad_part(part: str, kind: str, text: str) -> UserError:
    if kind in ("frozen", "full") and part != kind:
        return UserError(
            f"treatment {text!r}: {kind!r} takes no names, it is about everything in these layers; "
            "to train biases by name write e.g. bias(layernorm)"
        )
    if kind in ("frozen", "full"):
        return UserError(f"treatment {text!r}: {kind!r} stands alone, it cannot be combined")
    return UserError(
        f"treatment {text!r}: {part!r} is not a treatment; "
        f"{nearest(kind, ('frozen', 'bias', 'lora', 'full'))}, "
        "e.g. lora(query+key+value,r=64,alpha=128)+bias(ffn)"
    )


def multiple_of_rank(alpha: str) -> float | None:
    """Return the number in an alpha such as `2x`, which is twice the rank; else None."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*x", alpha.strip())
    return float(match[1]) if match else None


def _names(inside: str, part: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in inside.split("+"))
    if not all(names):
        raise UserError(f"{part!r}: an empty name between '+' signs")
    if len(set(names)) != len(names):
        raise UserError(f"{part!r}: a name is given twice")
    return names


def _parse_lora(inside: str, part: str) -> Lora:
    names, *options = [item.strip() for item in inside.split(",")]
    if not names or "=" in names:
        raise UserError(f"{part!r}: begin with the matrices, e.g. lora(query+value,r=8,alpha=16)")
    values: dict[str, str] = {}
    for option in options:
        key, equals, value = (piece.strip() for piece in option.partition("="))
        if key not in _OPTIONS or bool(equals) == (key in ("rslora", "dora")):
            raise UserError(f"{part!r}: unknown option {option!r}; {nearest(key, _OPTIONS)}")
        if key in values:
            raise UserError(f"{part!r}: option {key!r} is given twice")
        values[key] = value
    if "r" not in values or "alpha" not in values:
        raise UserError(f"{part!r}: give both r= and alpha=, e.g. lora({names},r=8,alpha=16)")
    try:
        rank, multiple = int(values["r"]), multiple_of_rank(values["alpha"])
        return Lora(
            matrices=_names(names, part),
            rank=rank,
            alpha=float(values["alpha"]) if multiple is None else multiple * rank,
            dropout=float(values.get("dropout", "0")),
            rslora="rslora" in values,
            dora="dora" in values,
        )
    except ValueError as error:
        raise UserError(f"{part!r}: {error}") from None
