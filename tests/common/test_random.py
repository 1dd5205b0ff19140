"""Counter-based random numbers: pure functions of (key, step, index), uniform, independent."""

import math
import subprocess
import sys

import pytest
import torch

from common.random import counter_gumbel, counter_uniform, stream_key

KEY = torch.tensor(stream_key(0, 0, "conv1.weight"))


def draw(key=KEY, step=0, count=100_000):
    return counter_uniform(key, step, torch.arange(count))


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def test_keys_depend_on_every_part_and_not_on_the_process(repository):
    keys = {stream_key(*parts) for parts in [(0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b"), (0, "0a"), ("00a",)]}
    assert len(keys) == 6 and all(0 <= key < 2**32 for key in keys)
    command = [sys.executable, "-c", "from common.random import stream_key; print(stream_key(0, 0, 'conv1.weight'))"]
    other = subprocess.run(command, capture_output=True, text=True, cwd=repository, check=True)
    assert int(other.stdout) == int(KEY)


def test_values_are_pinned():
    # A change of the generator makes every recorded run irreproducible.
    assert stream_key(0, 0, "conv1.weight") == 1320735305
    assert (draw(count=3) * 2**24).tolist() == [5468943, 8305823, 6600597]
    assert (counter_uniform(KEY, 5, torch.tensor([10**6])) * 2**24).tolist() == [10489537]


def test_numbers_do_not_depend_on_what_was_drawn_before_or_beside():
    long = draw(step=7, count=1000)
    assert torch.equal(draw(step=7, count=10), long[:10])
    picked = counter_uniform(KEY, 7, torch.tensor([[999, 3], [500, 0]]))
    assert torch.equal(picked, long[[999, 3, 500, 0]].reshape(2, 2))


def test_keys_broadcast_to_streams():
    keys = torch.tensor([[5], [9]])
    both = counter_uniform(keys, 3, torch.arange(4))
    assert torch.equal(both, torch.stack([counter_uniform(k, 3, torch.arange(4)) for k in (keys[0, 0], keys[1, 0])]))


def test_numbers_are_uniform_on_the_open_interval():
    u = draw()
    assert u.dtype == torch.float32 and u.min() > 0 and u.max() < 1
    counts = torch.histc(u, bins=100, min=0, max=1)
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert 50 < chi_square < 160  # 99 degrees of freedom: 99 +- 14


@pytest.mark.parametrize("bit", range(23))
def test_every_bit_is_fair(bit):
    bits = (draw() * 2**23).long() >> bit & 1
    assert abs(bits.double().mean().item() - 0.5) < 0.008  # 5 sigma


@pytest.mark.parametrize("lag", [1, 2, 3, 16, 64])
def test_neighbours_are_independent(lag):
    u = draw()
    assert abs(correlation(u[:-lag], u[lag:])) < 0.016


@pytest.mark.parametrize(
    "other",
    [
        {"step": 1},
        {"step": 2**31},
        {"key": KEY ^ 1},
        {"key": torch.tensor(stream_key(1, 0, "conv1.weight"))},
        {"key": torch.tensor(stream_key(0, 1, "conv1.weight"))},
        {"key": torch.tensor(stream_key(0, 0, "conv2.weight"))},
    ],
)
def test_streams_and_steps_are_independent(other):
    assert abs(correlation(draw(), draw(**other))) < 0.016  # 5 sigma


@pytest.mark.parametrize("key", [0, 1, 2**32 - 1])
def test_no_key_degenerates(key):
    first = counter_uniform(torch.tensor(key), 0, torch.arange(10_000))
    assert first.unique().numel() > 9_980  # 2^23 values: six collisions expected
    assert abs(first.mean().item() - 0.5) < 0.015


def test_gumbel_numbers():
    g = counter_gumbel(KEY, 0, torch.arange(200_000))
    assert g.mean().item() == pytest.approx(0.577216, abs=0.015)  # Euler's constant
    assert g.var().item() == pytest.approx(math.pi**2 / 6, abs=0.05)
    assert g.isfinite().all()


def test_gumbel_numbers_follow_from_the_uniform_ones():
    u = draw(step=3, count=1000).double()
    torch.testing.assert_close(
        counter_gumbel(KEY, 3, torch.arange(1000)).double(), -(-u.log()).log(), atol=1e-4, rtol=1e-4
    )


def test_eps_bounds_gumbel_numbers():
    g = counter_gumbel(KEY, 0, torch.arange(1_000_000), eps=1e-6)
    assert g.min() > -2.63 and g.max() < 17


def test_ends_of_the_interval_are_never_reached(monkeypatch):
    # All-zero and all-one hashes give the smallest and the largest number there is.
    smallest, largest = [], []
    for result, found in ((0, smallest), (2**32 - 1, largest)):
        monkeypatch.setattr("common.random._mix", lambda x, result=result: torch.full_like(x, result))
        found.append(counter_uniform(KEY, 0, torch.arange(2)))
        found.append(counter_gumbel(KEY, 0, torch.arange(2)))
        found.append(counter_gumbel(KEY, 0, torch.arange(2), eps=1e-6))
    assert smallest[0].tolist() == [2.0**-24] * 2
    assert largest[0].tolist() == [1 - 2.0**-24] * 2
    assert all(numbers.isfinite().all() for numbers in smallest + largest)
