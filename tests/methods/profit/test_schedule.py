"""PROFIT's stages: the published 200 epochs, and what settings leave out."""

import pytest

from methods.profit.schedule import Epochs, stages


def test_the_published_schedule_has_200_epochs():
    # 15 float; 3 x 25 for activations; 25 + 25 + 60 for weights.
    plan = stages(4, 4)
    begins = [round(200 * stage.begin, 9) for stage in plan]
    widths = [(stage.weight_bit_width, stage.activation_bit_width) for stage in plan]
    assert begins == [0, 15, 20, 35, 40, 45, 60, 65, 70, 85, 90, 95, 110, 115, 120, 135, 140, 145, 150, 165, 180, 195]
    expected = [(32, 32)] + [(32, 8)] * 3 + [(32, 5)] * 3 + [(32, 4)] * 3 + [(8, 4)] * 3 + [(5, 4)] * 3 + [(4, 4)] * 6
    assert widths == expected
    norms = [1, 3, 4, 6, 7, 9, 10, 12, 13, 15, 16, 21]
    assert [i for i, stage in enumerate(plan) if stage.norms_only] == norms
    assert [i for i, stage in enumerate(plan) if stage.measures] == [17]
    assert {i: stage.frozen for i, stage in enumerate(plan) if stage.frozen} == {19: 1 / 3, 20: 2 / 3}


def test_parts_of_length_0_and_widths_that_are_not_above_the_last_are_left_out():
    plan = stages(2, 2, [8, 2, 4], Epochs(full_precision=0, norms=0, width=1, instability=1, phase=2))
    found = [(stage.weight_bit_width, stage.activation_bit_width, stage.frozen) for stage in plan]
    assert found == [
        (32, 8, 0), (32, 4, 0), (32, 2, 0), (8, 2, 0), (4, 2, 0), (2, 2, 0), (2, 2, 0), (2, 2, 1 / 3), (2, 2, 2 / 3),
    ]  # fmt: skip
    assert [stage.begin for stage in plan] == pytest.approx([i / 12 for i in (0, 1, 2, 3, 4, 5, 6, 8, 10)])


def test_weights_alone():
    plan = stages(4, 32, [], Epochs(full_precision=0, norms=0))
    assert {(stage.weight_bit_width, stage.activation_bit_width) for stage in plan} == {(4, 32)} and len(plan) == 4


@pytest.mark.parametrize("lengths", [{"norms": -1}, {"phase": 0}, {"instability": 0}])
def test_lengths_that_make_no_schedule(lengths):
    with pytest.raises(ValueError, match="epochs must not be negative"):
        Epochs(**lengths)
