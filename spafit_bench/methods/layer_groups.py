"""Groups of layers as they are written: `0-4`, `7`, `5-last`, `all` or `5/24..10/24`."""

from __future__ import annotations

import re
from fractions import Fraction

from spafit_bench.base.errors import UserError


def parse_layers(text: str, num_layers: int) -> range:
    """Turn a layer group into explicit layers of an encoder.

    Args:
        text: `A-B`, `A`, `A-last`, `all`, or `F..G` with fractions of the depth, either end open.
        num_layers: depth of the encoder.

    Raises:
        UserError: not a layer group, or out of range; the message names the valid range.
    """
    text = text.strip()
    if text == "all":
        return range(num_layers)
    if match := re.fullmatch(r"(?:(\d+)/(\d+))?\.\.(?:(\d+)/(\d+))?", text):
        return _scaled(match, num_layers)
    if not (match := re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}|last))?", text)):
        raise UserError(f"{text!r} is not a layer group; write 0-4, 7, 5-last, all or 5/24..10/24")
    first = int(match[1])
    last = max(first, num_layers - 1) if match[2] == "last" else int(match[2] or first)
    if first > last:
        raise UserError(f"layers {text!r} run backwards; write {last}-{first}")
    if match[2] == "last" and first >= num_layers:
        raise UserError(
            f"the last group would begin at layer {first}, beyond the {num_layers} layers of this "
            f"encoder: its first layer is at most {num_layers - 1}"
        )
    if last >= num_layers:
        raise UserError(
            f"layers {text!r} do not fit an encoder of {num_layers} layers: "
            f"valid layers are 0-{num_layers - 1}"
        )
    return range(first, last + 1)


def _scaled(match: re.Match[str], num_layers: int) -> range:
    shares = []
    for numerator, denominator, default in ((match[1], match[2], 0), (match[3], match[4], 1)):
        if denominator is not None and int(denominator) == 0:
            raise UserError(f"layers {match[0]!r}: the denominator of a fraction is zero")
        share = (
            Fraction(default) if numerator is None else Fraction(int(numerator), int(denominator))
        )
        if share > 1:
            raise UserError(f"layers {match[0]!r}: a fraction of the depth is at most 1")
        shares.append(share)
    if shares[0] > shares[1]:
        raise UserError(f"layers {match[0]!r} run backwards; write {shares[1]}..{shares[0]}")
    ends = [round(share * num_layers) for share in shares]
    return range(ends[0], ends[1])


def range_text(layers: range) -> str:
    """Write layers as a group, first and last included."""
    return str(layers[0]) if len(layers) == 1 else f"{layers[0]}-{layers[-1]}"
