"""Repair against the enumeration of all policies."""

import itertools

import numpy as np
import pytest

from common.compression import packed_bytes
from common.errors import UserError
from common.search.repair import Change, repair_to_budget


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
        code_bytes = sum(packed_bytes(sizes[s], w) for s, w in policy.items())
        yield code_bytes, sum(preferences[s][w] for s, w in policy.items()), policy


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("tolerance", [0.0, 0.02, 0.3, 1.0])
def test_repair_finds_the_best_policy_within_the_band(seed, tolerance):
    preferences, sizes, budget = random_case(seed)
    result, _ = repair_to_budget(preferences, sizes, budget, tolerance)
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
    result, _ = repair_to_budget(preferences, sizes, budget)
    code_bytes = sum(packed_bytes(sizes[s], w) for s, w in result.items())
    assert 0.97 * budget <= code_bytes <= budget


def test_a_policy_on_target_is_left_alone():
    preferences = {"a": {2: 0.0, 4: 1.0}, "b": {2: 1.0, 4: 0.0}}
    assert repair_to_budget(preferences, {"a": 80, "b": 80}, 60) == ({"a": 4, "b": 2}, [])


def test_the_least_sensitive_site_is_lowered_and_logged():
    preferences = {"a": {2: -5.0, 4: 0.0}, "b": {2: -1.0, 4: 0.0}}
    widths, changes = repair_to_budget(preferences, {"a": 80, "b": 80}, 60)
    assert widths == {"a": 4, "b": 2}
    assert changes == [Change("b", before=4, after=2, loss=1.0)]


def test_room_that_is_left_raises_a_site():
    preferences = {"a": {2: 0.0, 4: -0.5}, "b": {2: 0.0, 4: -2.0}}
    widths, changes = repair_to_budget(preferences, {"a": 80, "b": 80}, 60)
    assert widths == {"a": 4, "b": 2}
    assert changes == [Change("a", before=2, after=4, loss=0.5)]


def test_smallest_widths_that_just_fit():
    sizes = {"a": 1_000_003, "b": 777_777}
    budget = packed_bytes(1_000_003, 2) + packed_bytes(777_777, 3)
    widths, _ = repair_to_budget({"a": {2: 0.0, 8: 9.0}, "b": {3: 0.0, 8: 9.0}}, sizes, budget)
    assert widths == {"a": 2, "b": 3}


def test_a_budget_below_the_smallest_widths_is_refused():
    with pytest.raises(UserError, match="the smallest widths take 40 bytes; the budget is 39"):
        repair_to_budget({"a": {2: 0.0}, "b": {2: 0.0}}, {"a": 80, "b": 80}, 39)
