"""Accuracies, and how far two networks on the same images differ."""

import pytest
import torch
from torch import nn

from reproduce.measure import accuracy, paired_drop


def test_answers_come_in_the_order_of_the_images():
    correct = []
    batches = [(torch.eye(3), torch.tensor([0, 2, 2])), (torch.eye(3)[:1], torch.tensor([1]))]
    result = accuracy(nn.Identity(), batches, correct=correct)
    assert correct == [True, False, True, False]
    assert (result["top1"], result["images"]) == (50.0, 4)


def test_a_paired_drop_counts_the_images_that_differ():
    before = [True] * 90 + [False] * 10
    after = [True] * 80 + [False] * 10 + [True] * 2 + [False] * 8
    found = paired_drop(before, after)
    assert (found["lost"], found["won"]) == (10, 2)
    assert found["paired_drop"] == pytest.approx(8.0)
    # the differences: ten times +1, twice -1, 88 times 0; variance 0.12 - 0.08^2
    margin = 100 * 1.96 * (0.1136 / 100) ** 0.5
    assert found["paired_drop_high"] - 8 == pytest.approx(margin) == 8 - found["paired_drop_low"]
    assert found["mcnemar_p"] == pytest.approx(2 * (1 + 12 + 66) / 2**12)  # of 12 fair coins, at most 2 heads, twice


def test_networks_that_never_differ_have_an_interval_of_one_image():
    found = paired_drop([True, False] * 50, [True, False] * 50)
    assert (found["paired_drop"], found["paired_drop_low"], found["paired_drop_high"]) == (0, -1, 1)
    assert found["mcnemar_p"] == 1.0


def test_answers_about_other_images_are_refused():
    with pytest.raises(ValueError, match="same images, got 1 and 2"):
        paired_drop([True], [True, False])
