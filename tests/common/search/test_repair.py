"""Repair against the enumeration of all policies."""

import itertools

import numpy as np
import pytest

from common.compression import packed_bytes
from common.errors import UserError
from common.search.repair import Change, code_bytes, repair_to_budget


def random_case(seed):
    generator = np.random.default_rng(seed)
    sites = [f"site{i}" for i in range(generator.integers(1, 5))]
    sizes = {site: int(generator.integers(1, 400)) for site in sites}
    preferences = {}
    for site in sites:
        widths = sorted(generator.choice(np.arange(1, 9), size=generator.integers(1, 6), replace=False).tolist())
        preferences[site] = {width: float(generator.normal()) for width in widths}
    least = sum(packed_bytes(sizes[s], min(p)) for s, p in preferences.items())
    most = sum(packed_bytes(sizes[s], max(p)) for s, p in preferences.items())
    return preferences, sizes, int(generator.integers(least, most + 2))


def enumerate_policies(preferences, sizes):
    """(bytes, preference, widths) of every policy."""
    for widths in itertools.product(*(preferences[site] for site in preferences)):
        policy = dict(zip(preferences, widths, strict=True))
        taken = sum(packed_bytes(sizes[s], w) for s, w in policy.items())
        yield taken, sum(preferences[s][w] for s, w in policy.items()), policy


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("tolerance", [0.0, 0.02, 0.3, 1.0])
def test_repair_finds_the_best_policy_within_the_band(seed, tolerance):
    preferences, sizes, budget = random_case(seed)
    result, _ = repair_to_budget(preferences, code_bytes(preferences, sizes), budget, tolerance)
    fitting = [p for p in enumerate_policies(preferences, sizes) if p[0] <= budget]
    lower = min(int(budget * (1 - tolerance)), max(p[0] for p in fitting))
    best = max(p[1] for p in fitting if p[0] >= lower)
    assert list(result) == list(preferences)
    assert sum(packed_bytes(sizes[s], w) for s, w in result.items()) <= budget
    assert sum(preferences[s][w] for s, w in result.items()) == pytest.approx(best)


@pytest.mark.parametrize("seed", range(20))
def test_large_networks_are_never_over_budget_and_nearly_fill_it(seed):
    generator = np.random.default_rng(seed)
    sizes = {f"layer{i}": int(10 ** generator.uniform(2, 6)) for i in range(40)}
    preferences = {site: {w: float(generator.normal()) for w in range(1, 9)} for site in sizes}
    budget = int(4 * sum(sizes.values()) / generator.uniform(5, 25))
    result, _ = repair_to_budget(preferences, code_bytes(preferences, sizes), budget)
    taken = sum(packed_bytes(sizes[s], w) for s, w in result.items())
    assert 0.97 * budget <= taken <= budget


def test_a_policy_on_target_is_left_alone():
    preferences = {"a": {2: 0.0, 4: 1.0}, "b": {2: 1.0, 4: 0.0}}
    assert repair_to_budget(preferences, code_bytes(preferences, {"a": 80, "b": 80}), 60) == ({"a": 4, "b": 2}, [])


def test_the_least_sensitive_site_is_lowered_and_logged():
    preferences = {"a": {2: -5.0, 4: 0.0}, "b": {2: -1.0, 4: 0.0}}
    widths, changes = repair_to_budget(preferences, code_bytes(preferences, {"a": 80, "b": 80}), 60)
    assert widths == {"a": 4, "b": 2}
    assert changes == [Change("b", before=4, after=2, loss=1.0)]


def test_room_that_is_left_raises_a_site():
    preferences = {"a": {2: 0.0, 4: -0.5}, "b": {2: 0.0, 4: -2.0}}
    widths, changes = repair_to_budget(preferences, code_bytes(preferences, {"a": 80, "b": 80}), 60)
    assert widths == {"a": 4, "b": 2}
    assert changes == [Change("a", before=2, after=4, loss=0.5)]


def test_smallest_widths_that_just_fit():
    sizes = {"a": 1_000_003, "b": 777_777}
    budget = packed_bytes(1_000_003, 2) + packed_bytes(777_777, 3)
    preferences = {"a": {2: 0.0, 8: 9.0}, "b": {3: 0.0, 8: 9.0}}
    widths, _ = repair_to_budget(preferences, code_bytes(preferences, sizes), budget)
    assert widths == {"a": 2, "b": 3}


def test_a_budget_below_the_smallest_widths_is_refused():
    preferences = {"a": {2: 0.0}, "b": {2: 0.0}}
    with pytest.raises(UserError, match="the smallest widths take 40 bytes; the budget is 39"):
        repair_to_budget(preferences, code_bytes(preferences, {"a": 80, "b": 80}), 39)


@pytest.mark.parametrize("seed", range(30))
def test_costs_may_be_any_real_numbers(seed):
    """Milliseconds, say, which grow with the width but not in proportion, and are zero for what costs nothing."""
    generator = np.random.default_rng(seed)
    preferences = {f"s{i}": {w: float(generator.normal()) for w in (1, 2, 4, 8)} for i in range(4)}
    costs = {site: {w: float(generator.uniform(0, 1e-3) * w) for w in p} for site, p in preferences.items()}
    costs["s0"] = dict.fromkeys(preferences["s0"], 0.0)
    totals = {
        widths: (
            sum(costs[s][w] for s, w in zip(preferences, widths, strict=True)),
            sum(preferences[s][w] for s, w in zip(preferences, widths, strict=True)),
        )
        for widths in itertools.product((1, 2, 4, 8), repeat=4)
    }
    budget = float(np.quantile([cost for cost, _ in totals.values()], 0.4))
    result, _ = repair_to_budget(preferences, costs, budget, tolerance=1.0, unit="ms")
    cost, preference = totals[tuple(result.values())]
    assert cost <= budget * (1 + 1e-9)
    assert result["s0"] == max(preferences["s0"], key=preferences["s0"].get)
    # no worse than the best policy that leaves room for one part of 8192 a site
    assert preference >= max(p for c, p in totals.values() if c <= budget * (1 - 4 / 8192)) - 1e-12


def test_the_unit_of_the_costs_is_named():
    with pytest.raises(UserError, match=r"the smallest widths take 0\.5 ms; the budget is 0\.4"):
        repair_to_budget({"a": {2: 0.0}}, {"a": {2: 0.5}}, 0.4, unit="ms")
