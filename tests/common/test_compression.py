"""Compression rates and the widths that a memory bound allows: published numbers."""

import pytest

from common.compression import (
    activation_bit_widths,
    activation_compression_rate,
    packed_bytes,
    weight_compression_rate,
)
from common.errors import UserError

STAGES = {"stage1": 16384, "stage2": 8192, "stage3": 4096}  # elements of ResNet-20's activations on CIFAR


@pytest.mark.parametrize(
    "count, bits, expected", [(8, 1, 1), (9, 1, 2), (3, 3, 2), (100, 8, 100), (5, 0, 0), (1, 16, 2), (3, 7, 3)]
)
def test_codes_are_padded_to_whole_bytes(count, bits, expected):
    assert packed_bytes(count, bits) == expected


def test_uniform_8_bits_compress_by_exactly_4():
    sizes = {"a": 432, "b": 2305, "c": 641, "d": 7}
    assert weight_compression_rate(sizes, dict.fromkeys(sizes, 8)) == 4.0


def test_weight_compression_of_mixed_widths():
    # 4 x 1000 bytes over 100 + 188 (187.5) + 225 bytes.
    assert weight_compression_rate({"a": 100, "b": 300, "c": 600}, {"a": 8, "b": 5, "c": 3}) == 4000 / 513


def test_weight_compression_counts_the_sites_asked_for_only():
    assert weight_compression_rate({"a": 100}, {"a": 2, "b": 8}) == 16.0


def test_weight_compression_without_a_width():
    with pytest.raises(KeyError, match=r"no bit-width for \['b'\]"):
        weight_compression_rate({"a": 1, "b": 1}, {"a": 2})


@pytest.mark.parametrize(
    "target, widths, acr",
    [
        (4, (8, 8, 8), 4.0),
        (16 / 3, (6, 8, 8), 5.333333),
        (20 / 3, (4, 8, 8), 8.0),
        (8, (4, 8, 8), 8.0),
        (12, (2, 5, 8), 12.8),
        (16, (2, 4, 8), 16.0),
        (20, (1, 3, 6), 21.333333),
        (32, (1, 2, 4), 32.0),
    ],
)
def test_activation_widths_of_resnet20_are_equations_10_and_11(target, widths, acr):
    found = activation_bit_widths(STAGES, target)
    assert tuple(found.values()) == widths
    assert activation_compression_rate(STAGES, found) == pytest.approx(acr, abs=1e-6)


@pytest.mark.parametrize("divisor", range(1, 33))
def test_a_width_that_the_bound_just_allows_is_not_rounded_down(divisor):
    assert activation_bit_widths({"x": 802816}, 32 / divisor, max_bit_width=32) == {"x": divisor}


def test_rounding_of_a_target_between_two_steps_costs_no_bit():
    # 4 + 4 * 5 / 3 is a little above 32 / 3 in floating point.
    assert activation_bit_widths({"x": 16384}, 10.666666666666668) == {"x": 3}


def test_no_tensor_exceeds_its_memory():
    sizes = {f"t{n}": n for n in (1000, 999, 501, 500, 333, 10, 1)}
    for target in (4, 5, 7.7, 11, 13, 31.9, 32):
        bound = 32 * 1000 / target
        for name, width in activation_bit_widths(sizes, target).items():
            count = sizes[name]
            assert width * count <= bound * (1 + 1e-6)
            assert width == 8 or (width + 1) * count > bound


def test_less_than_one_bit_names_the_tensor():
    with pytest.raises(UserError, match=r"activation compression 33 leaves big 0\.97 bits per value"):
        activation_bit_widths({"big": 1000, "small": 10}, 33)


@pytest.mark.parametrize("target", [0, -4, float("nan")])
def test_a_target_that_is_no_rate_is_refused(target):
    with pytest.raises(UserError, match="activation compression must be a positive rate"):
        activation_bit_widths(STAGES, target)
