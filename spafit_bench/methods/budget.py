"""A rank solved so that one method trains as many parameters as another, in a given model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from spafit_bench.methods.method import Method
from spafit_bench.methods.plan import Plan


def match_budget(method: Method, plan: Callable[[Method], Plan]) -> tuple[Method, str]:
    """Solve the rank of a method for the size of the one that it `matches`.

    What LoRA adds is proportional to its rank, so two plans give the slope, and the nearest whole
    rank is the answer; alpha / rank stays as written.

    Args:
        method: with a target in `matches`, and with LoRA.
        plan: plans a method in the model.

    Returns:
        The method at that rank, and what is left of the difference, in words.
    """
    assert method.matches is not None
    target, free = method.matches, replace(method, matches=None)

    def count(rank: int) -> int:
        return plan(free.with_rank(rank)).trainable_parameters

    wanted, one = plan(target).trainable_parameters, count(1)
    per_rank = count(2) - one
    rank = max(1, 1 + round((wanted - one) / per_rank))
    found = count(rank)
    difference = found - wanted
    gap = f"{abs(difference):,} {'more' if difference > 0 else 'fewer'} than {target.name}'s"
    share = f"{100 * difference / wanted:+.2f} %"
    return free.with_rank(rank), (
        f"{method.name}: rank {rank} trains {found:,} parameters, "
        + (f"exactly {target.name}'s" if not difference else f"{gap} {wanted:,} ({share})")
        + f"; a rank more or less is {per_rank:,}"
    )
