"""HMQ's static cells: weight counts, activation widths and rates of the full-size networks (hand-checked numbers)."""

from collections import Counter

import pytest

from common.compression import activation_bit_widths
from methods.hmq.static import acr, activation_sizes, num_weights


@pytest.mark.parametrize(
    "model, weights, sites, largest",
    [
        ("mobilenet_v1", 4_209_088, 27, 802_816),
        # 62, not the 69 that one counts with a block output for each of the 17 blocks: 7 blocks have no addition.
        ("mobilenet_v2", 3_469_760, 62, 1_204_224),
        ("resnet50", 25_502_912, 49, 802_816),
    ],
)
def test_weights_and_activation_sites(model, weights, sites, largest):
    assert num_weights(model) == weights
    assert len(activation_sizes(model)) == sites
    assert max(activation_sizes(model).values()) == largest


def test_weights_of_efficientnet_b0():
    assert num_weights("timm:efficientnet_b0") == 5_236_192


@pytest.mark.parametrize(
    "model, target, widths, rate",
    [
        ("mobilenet_v1", 4, {8: 27}, 4.0),
        ("mobilenet_v1", 16 / 3, {6: 1, 8: 26}, 16 / 3),
        ("mobilenet_v1", 20 / 3, {4: 1, 8: 26}, 8.0),
        ("mobilenet_v1", 8, {4: 1, 8: 26}, 8.0),
        ("mobilenet_v1", 12, {2: 1, 5: 5, 8: 21}, 12.8),
        ("mobilenet_v1", 16, {2: 1, 4: 5, 8: 21}, 16.0),
        ("mobilenet_v2", 4, {8: 62}, 4.0),
        ("mobilenet_v2", 8, {4: 1, 8: 61}, 8.0),
        ("mobilenet_v2", 12, {2: 1, 7: 3, 8: 58}, 12.0),
        ("mobilenet_v2", 16, {2: 1, 5: 3, 6: 2, 8: 56}, 16.0),
        ("resnet50", 4, {8: 49}, 4.0),
        ("resnet50", 16 / 3, {6: 4, 8: 45}, 16 / 3),
        ("resnet50", 8, {4: 4, 8: 45}, 8.0),
        ("resnet50", 12, {2: 4, 5: 5, 8: 40}, 12.8),
        ("resnet50", 16, {2: 4, 4: 5, 8: 40}, 16.0),
    ],
)
def test_activation_widths_from_the_memory_bound(model, target, widths, rate):
    assert Counter(activation_bit_widths(activation_sizes(model), target).values()) == widths
    assert acr({"model": model, "target_acr": target}) == pytest.approx(rate, rel=1e-12)


def test_activation_widths_of_mobilenet_v1_in_execution_order():
    widths = list(activation_bit_widths(activation_sizes("mobilenet_v1"), 16).values())
    # The largest tensor is the third one: 64 channels at 112 x 112.
    assert widths[2] == 2
    assert widths == [4, 4, 2, 8, 4, 4, 4, *[8] * 20]
