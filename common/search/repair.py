"""Bring a bit policy onto its budget: soft penalties do not end exactly on target."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from common.compression import packed_bytes
from common.errors import UserError

Costs = Mapping[str, Mapping[int, float]]  # site -> width -> cost

_PARTS = 8192  # resolution of the budget in the dynamic program
_ROUNDING = 1e-12  # relative: a quotient of floats that should be whole may lie beside it


@dataclass(frozen=True)
class Change:
    """What a repair did to one site: its width before and after, and the preference that it gave up."""

    site: str
    before: int
    after: int
    loss: float


def code_bytes(preferences: Mapping[str, Mapping[int, float]], num_weights: Mapping[str, int]) -> Costs:
    """Bytes of the packed codes of every site at every width: the costs under a size budget."""
    return {site: {w: packed_bytes(num_weights[site], w) for w in widths} for site, widths in preferences.items()}


def repair_to_budget(
    preferences: Mapping[str, Mapping[int, float]],
    costs: Costs,
    budget: float,
    tolerance: float = 0.02,
    unit: str = "bytes",
) -> tuple[dict[str, int], list[Change]]:
    """The widths of largest total preference that fill the budget.

    A multiple-choice knapsack, solved by dynamic programming over the budget in 8192 parts; costs are rounded up to a
    part, so that the result always fits and the budget counts as at most one part a site smaller than it is.

    Args:
        preferences: site -> width -> how much the search prefers it, for instance a log-probability. Sums are compared.
        costs: site -> width -> what it costs (packed bytes, milliseconds, ...), at least 0.
        budget: bound for the costs of all sites together.
        tolerance: policies cheaper than budget (1 - tolerance) leave accuracy unused and are avoided while there is a
            dearer one that fits.
        unit: of the costs, for messages.

    Returns:
        the widths, and what changed against each site's own favourite.

    Raises:
        UserError: the cheapest widths do not fit.
    """
    cheapest = {site: min(widths, key=lambda w, site=site: (costs[site][w], w)) for site, widths in preferences.items()}
    least = sum(costs[site][width] for site, width in cheapest.items())
    if least > budget * (1 + _ROUNDING):
        raise UserError(f"the smallest widths take {least:g} {unit}; the budget is {budget:g}")
    whole = all(float(cost).is_integer() for options in costs.values() for cost in options.values())
    part = max(1, -(-int(budget) // _PARTS)) if whole else budget / _PARTS
    room = int(budget / part * (1 + _ROUNDING))
    best = np.full(room + 1, -np.inf)  # best total preference of the sites so far that take exactly this many parts
    best[0] = 0.0
    choices = []
    for site, widths in preferences.items():
        options = sorted(widths)
        totals = np.full((len(options), room + 1), -np.inf)
        for row, width in enumerate(options):
            parts = _parts(costs[site][width], part)
            if parts <= room:
                totals[row, parts:] = best[: room + 1 - parts] + widths[width]
        chosen = totals.argmax(axis=0)
        choices.append((site, options, chosen))
        best = np.take_along_axis(totals, chosen[None], axis=0)[0]
    if not np.isfinite(best).any():  # fits, but not in rounded parts
        return cheapest, _changes(preferences, cheapest)
    reachable = np.flatnonzero(np.isfinite(best))
    filled = reachable[reachable >= min(int(room * (1 - tolerance)), reachable.max())]
    total = int(filled[best[filled].argmax()])
    result: dict[str, int] = {}
    for site, options, chosen in reversed(choices):
        result[site] = options[chosen[total]]
        total -= _parts(costs[site][result[site]], part)
    result = {site: result[site] for site in preferences}
    return result, _changes(preferences, result)


def _parts(cost: float, part: float) -> int:
    return math.ceil(cost / part * (1 - _ROUNDING))


def _changes(preferences: Mapping[str, Mapping[int, float]], widths: Mapping[str, int]) -> list[Change]:
    changes = []
    for site, options in preferences.items():
        favourite = max(options, key=lambda width: options[width])
        if favourite != widths[site]:
            changes.append(Change(site, favourite, widths[site], options[favourite] - options[widths[site]]))
    return changes
