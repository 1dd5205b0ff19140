"""The two-phase schedule as functions of the step."""

import pytest

from common.training.schedule import CyclicSchedule, equal_steps


@pytest.mark.parametrize(
    "target, expected",
    [
        (8, [4, 5.3333, 6.6667, 8, 8, 8]),
        (11, [4, 6.3333, 8.6667, 11, 11, 11]),
        (16, [4, 8, 12, 16, 16, 16]),
        (4, [4, 4, 4, 4, 4, 4]),
    ],
)
def test_targets_rise_in_equal_steps(target, expected):
    assert [equal_steps(4, target, 4, cycle) for cycle in range(6)] == pytest.approx(expected, abs=5e-5)


def test_one_step_is_the_target():
    assert equal_steps(4, 9, 1, 0) == 9


def test_published_schedule_in_epochs():
    schedule = CyclicSchedule(total_steps=50, search_steps=30, cycles=6)
    assert [schedule.cycle(step) for step in (0, 4, 5, 9, 10, 25, 29, 30, 49)] == [0, 0, 1, 1, 2, 5, 5, 5, 5]
    assert [schedule.phase(step) for step in (0, 29, 30, 49)] == [1, 1, 2, 2]
    assert [schedule.step_in_cycle(step) for step in (0, 4, 5, 6, 29)] == [0, 4, 0, 1, 4]
    assert schedule.cycle_steps == 5


@pytest.mark.parametrize("search_steps, cycles", [(7, 3), (10, 6), (100, 7), (6, 6), (5, 1)])
def test_cycles_of_uneven_length_differ_by_one_step(search_steps, cycles):
    schedule = CyclicSchedule(search_steps + 3, search_steps, cycles)
    found = [schedule.cycle(step) for step in range(search_steps)]
    lengths = [found.count(cycle) for cycle in range(cycles)]
    assert found == sorted(found) and max(lengths) - min(lengths) <= 1 and min(lengths) >= 1
    for step in range(search_steps):
        assert schedule.step_in_cycle(step) == step - found.index(found[step])


def test_more_cycles_than_steps_skip_some():
    schedule = CyclicSchedule(total_steps=4, search_steps=2, cycles=6)
    assert [schedule.cycle(step) for step in range(4)] == [0, 3, 5, 5]
    assert [schedule.step_in_cycle(step) for step in range(2)] == [0, 0]


def test_no_search_at_all():
    schedule = CyclicSchedule(total_steps=5, search_steps=0, cycles=3)
    assert schedule.phase(0) == 2 and schedule.cycle(0) == 2


def test_no_fine_tuning():
    schedule = CyclicSchedule(total_steps=5, search_steps=5, cycles=2)
    assert schedule.phase(4) == 1 and schedule.phase(5) == 2


def test_a_search_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match=r"search_steps must be in \[0, 5\], got 6"):
        CyclicSchedule(5, 6, 1)


def test_no_cycles_are_refused():
    with pytest.raises(ValueError, match="cycles must be at least 1, got 0"):
        CyclicSchedule(5, 3, 0)
