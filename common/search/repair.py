"""Bring a bit policy onto its budget: soft penalties do not end exactly on target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from common.compression import packed_bytes
from common.errors import UserError


@dataclass(frozen=True)
class Change:
    """One step of a repair: a site's width before and after, and the cost estimate that chose it."""

    site: str
    before: int
    after: int
    cost: float


def repair_to_budget(
    bit_widths: Mapping[str, int],
    num_weights: Mapping[str, int],
    max_code_bytes: int,
    allowed: Sequence[int],
    cost: Callable[[str, int, int], float],
) -> tuple[dict[str, int], list[Change]]:
    """Lower the least sensitive sites until the packed codes fit, then raise what still fits.

    Both directions are greedy by cost per byte: the cheapest step down first, then the most useful step up.

    Args:
        bit_widths: widths to start from, one per site of `num_weights`.
        max_code_bytes: bound for the packed codes of all sites together.
        allowed: widths that a site may take.
        cost: cost(site, before, after) of lowering a site's width, any unit, larger is worse. Raising from `after`
            back to `before` is credited with the same amount.

    Returns:
        the new widths and the steps in order.

    Raises:
        UserError: the smallest allowed widths do not fit.
    """
    allowed = sorted(allowed)
    smallest = sum(packed_bytes(n, allowed[0]) for n in num_weights.values())
    if smallest > max_code_bytes:
        raise UserError(f"{allowed[0]} bits everywhere take {smallest} bytes; the budget is {max_code_bytes}")
    widths, changes = dict(bit_widths), []

    def code_bytes() -> int:
        return sum(packed_bytes(n, widths[site]) for site, n in num_weights.items())

    def step(site: str, direction: int) -> int | None:
        beyond = [b for b in allowed if (b - widths[site]) * direction > 0]
        return None if not beyond else (min(beyond) if direction > 0 else max(beyond))

    def rate(site: str, new: int) -> float:
        """Cost (down) or benefit (up) per byte."""
        low, high = sorted((widths[site], new))
        saved = packed_bytes(num_weights[site], high) - packed_bytes(num_weights[site], low)
        return cost(site, high, low) / saved

    def change(site: str, new: int) -> None:
        changes.append(Change(site, widths[site], new, rate(site, new)))
        widths[site] = new

    while code_bytes() > max_code_bytes:
        options = [(rate(s, new), s, new) for s in widths if (new := step(s, -1)) is not None]
        _, site, new = min(options)
        change(site, new)
    while True:
        room = max_code_bytes - code_bytes()
        options = []
        for site, n in num_weights.items():
            new = step(site, +1)
            if new is not None and packed_bytes(n, new) - packed_bytes(n, widths[site]) <= room:
                options.append((rate(site, new), site, new))
        options = [o for o in options if o[0] > 0]
        if not options:
            return widths, changes
        _, site, new = max(options)
        change(site, new)
