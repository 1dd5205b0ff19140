"""Bring a bit policy onto its budget: soft penalties do not end exactly on target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from common.compression import packed_bytes
from common.errors import UserError

_BUCKETS = 8192  # resolution of the budget in the dynamic program


@dataclass(frozen=True)
class Change:
    """What a repair did to one site: its width before and after, and the preference that it gave up."""

    site: str
    before: int
    after: int
    loss: float


def repair_to_budget(
    preferences: Mapping[str, Mapping[int, float]],
    num_weights: Mapping[str, int],
    max_code_bytes: int,
    tolerance: float = 0.02,
) -> tuple[dict[str, int], list[Change]]:
    """The widths of largest total preference whose packed codes fill the budget.

    A multiple-choice knapsack, solved by dynamic programming over the budget in 8192 parts; sizes are rounded up to a
    part, so that the result always fits and the budget counts as at most one part a site smaller than it is.

    Args:
        preferences: site -> width -> how much the search prefers it, for instance a log-probability. Sums are compared.
        num_weights: weights per site.
        max_code_bytes: bound for the packed codes of all sites together.
        tolerance: codes smaller than max_code_bytes (1 - tolerance) leave accuracy unused and are avoided while there
            is a larger policy that fits.

    Returns:
        the widths, and what changed against each site's own favourite.

    Raises:
        UserError: the smallest widths do not fit.
    """
    smallest = {site: min(widths) for site, widths in preferences.items()}
    least = sum(packed_bytes(num_weights[site], width) for site, width in smallest.items())
    if least > max_code_bytes:
        raise UserError(f"the smallest widths take {least} bytes; the budget is {max_code_bytes}")
    part = max(1, -(-max_code_bytes // _BUCKETS))
    room = max_code_bytes // part
    best = np.full(room + 1, -np.inf)  # best total preference of the sites so far that take exactly this many parts
    best[0] = 0.0
    choices = []
    for site, widths in preferences.items():
        options = sorted(widths)
        totals = np.full((len(options), room + 1), -np.inf)
        for row, width in enumerate(options):
            parts = -(-packed_bytes(num_weights[site], width) // part)
            if parts <= room:
                totals[row, parts:] = best[: room + 1 - parts] + widths[width]
        chosen = totals.argmax(axis=0)
        choices.append((site, options, chosen))
        best = np.take_along_axis(totals, chosen[None], axis=0)[0]
    if not np.isfinite(best).any():  # fits in bytes but not in rounded parts
        return smallest, _changes(preferences, smallest)
    reachable = np.flatnonzero(np.isfinite(best))
    filled = reachable[reachable >= min(int(room * (1 - tolerance)), reachable.max())]
    total = int(filled[best[filled].argmax()])
    result: dict[str, int] = {}
    for site, options, chosen in reversed(choices):
        result[site] = options[chosen[total]]
        total -= -(-packed_bytes(num_weights[site], result[site]) // part)
    result = {site: result[site] for site in preferences}
    return result, _changes(preferences, result)


def _changes(preferences: Mapping[str, Mapping[int, float]], widths: Mapping[str, int]) -> list[Change]:
    changes = []
    for site, options in preferences.items():
        favourite = max(options, key=lambda width: options[width])
        if favourite != widths[site]:
            changes.append(Change(site, favourite, widths[site], options[favourite] - options[widths[site]]))
    return changes
