"""Fixed-point multipliers against exact rational arithmetic."""

import math
from fractions import Fraction

import pytest
import torch

from common.integer import FixedPoint, rescale, rounding_divide, rounding_shift
from common.integer.fixed_point import fixed_multiplier_and_addend

SINGLE = ["half_even", "half_away", "half_up"]


def nearest(value: Fraction, rounding: str) -> int:
    """The nearest integer of an exact number."""
    floor = math.floor(value)
    rest = value - floor
    if rest != Fraction(1, 2):
        return floor + (rest > Fraction(1, 2))
    return {"half_even": floor + floor % 2, "half_away": floor + (value > 0), "half_up": floor + 1}[rounding]


def gemmlowp(accumulator: int, mantissa: int, shift: int) -> int:
    """SaturatingRoundingDoublingHighMul and RoundingDivideByPOT, transcribed; integer division truncates there."""
    product = accumulator * mantissa
    nudge = 1 << 30 if product >= 0 else 1 - (1 << 30)
    high = abs(product + nudge) // (1 << 31) * (1 if product + nudge >= 0 else -1)
    mask = (1 << shift) - 1
    remainder, threshold = high & mask, (mask >> 1) + (high < 0)
    return (high >> shift) + (remainder > threshold)


def accumulators(count: int = 400) -> torch.Tensor:
    """Both ends of int32, small numbers, and numbers of all magnitudes."""
    draw = torch.Generator().manual_seed(0)
    ends = torch.tensor([-(2**31), -(2**31) + 1, 2**31 - 1, *range(-20, 21)])
    magnitude = 2 ** (31 * torch.rand(count, generator=draw, dtype=torch.double))
    sign = torch.randint(0, 2, (count,), generator=draw) * 2 - 1
    return torch.cat([ends, (magnitude - 1).long() * sign])


@pytest.mark.parametrize(
    "multiplier, mantissa, shift", [(0.0072474273, 1992157647, 7), (0.25, 1073741824, 1), (0.9, 1932735283, 0)]
)
def test_golden_fixed_point_multiplier(multiplier, mantissa, shift):
    fixed = FixedPoint.of(multiplier)
    assert (fixed.mantissa.item(), fixed.shift.item()) == (mantissa, shift)
    assert fixed.mantissa.dtype == fixed.shift.dtype == torch.int32


@pytest.mark.parametrize(
    "multiplier, mantissa, shift",
    [
        (0.0, 0, 0),
        (1.0, 2**30, -1),
        (-0.75, -3 * 2**29, 0),
        (640.0, 5 * 2**28, -10),
        (1 - 2.0**-40, 2**30, -1),  # its mantissa would round to 2^31
        (2.0**-33 * 1.5, 3 * 2**28, 31),  # below 2^-32 the shift ends, and the mantissa loses bits
        (2.0**-70, 0, 31),
        (2.0**31 - 1, 2**31 - 1, -31),
    ],
)
def test_multipliers_of_any_size_and_sign(multiplier, mantissa, shift):
    fixed = FixedPoint.of(multiplier)
    assert (fixed.mantissa.item(), fixed.shift.item()) == (mantissa, shift)


def test_value_is_the_multiplier_to_31_bits():
    draw = torch.Generator().manual_seed(0)
    multiplier = torch.exp2(60 * torch.rand(2000, generator=draw, dtype=torch.double) - 30)
    fixed = FixedPoint.of(multiplier)
    assert ((fixed.mantissa >= 2**30) & (fixed.mantissa <= 2**31 - 1)).all()
    assert ((fixed.value - multiplier).abs() <= multiplier * 2.0**-31).all()


def test_powers_of_two_are_known_as_such():
    fixed = FixedPoint.of(torch.tensor([0.5, 1.0, -0.125, 0.0, 0.3, 3.0]))
    assert fixed.is_power_of_two.tolist() == [True, True, True, True, False, False]


@pytest.mark.parametrize("multiplier", [float("nan"), float("inf"), 2.0**31, [0.5, -(2.0**31)]])
def test_multipliers_out_of_range(multiplier):
    with pytest.raises(ValueError, match=r"multiplier must be finite and below 2\^31"):
        FixedPoint.of(multiplier)


@pytest.mark.parametrize("rounding", SINGLE)
def test_rounding_shift_is_exact(rounding):
    values = torch.cat([torch.arange(-40, 41), accumulators() << 31])
    for shift in (0, 1, 2, 3, 31, 40, 62):
        exact = [nearest(Fraction(v, 2**shift), rounding) for v in values.tolist()]
        assert rounding_shift(values, shift, rounding).tolist() == exact


@pytest.mark.parametrize("rounding", SINGLE)
def test_rounding_divide_is_exact(rounding):
    values = torch.cat([torch.arange(-40, 41), accumulators() << 31])
    for divisor in (1, 2, 3, 6, 49, 3 << 40, 2**62):
        exact = [nearest(Fraction(v, divisor), rounding) for v in values.tolist()]
        assert rounding_divide(values, divisor, rounding).tolist() == exact


@pytest.mark.parametrize(
    "rounding, expected",
    [("half_even", [-2, -2, 0, 0, 2, 2]), ("half_away", [-3, -2, -1, 1, 2, 3]), ("half_up", [-2, -1, 0, 1, 2, 3])],
)
def test_halves(rounding, expected):
    halves = torch.tensor([-5, -3, -1, 1, 3, 5])
    assert rounding_shift(halves, 1, rounding).tolist() == expected
    assert rounding_divide(3 * halves, 6, rounding).tolist() == expected
    assert rescale(halves, FixedPoint.of(0.5), rounding=rounding).tolist() == expected


@pytest.mark.parametrize("rounding", SINGLE)
@pytest.mark.parametrize("multiplier", [0.0072474273, 0.25, 0.9, -0.3, 1.0, 5.5, 2.0**-31, 3 * 2.0**-34, 0.0])
def test_rescale_is_exact_in_big_integers(multiplier, rounding):
    fixed, values = FixedPoint.of(multiplier), accumulators()
    stored = Fraction(fixed.mantissa.item()) / 2 ** (31 + fixed.shift.item())
    assert rescale(values, fixed, rounding=rounding).tolist() == [
        nearest(v * stored, rounding) for v in values.tolist()
    ]


@pytest.mark.parametrize("multiplier", [0.0072474273, 0.25, 0.9, -0.3, 2.0**-20, 0.999999, 1e-9])
def test_two_step_is_gemmlowp(multiplier):
    fixed, values = FixedPoint.of(multiplier), accumulators()
    expected = [gemmlowp(v, fixed.mantissa.item(), fixed.shift.item()) for v in values.tolist()]
    assert rescale(values, fixed, rounding="two_step").tolist() == expected


def test_two_step_rounds_twice():
    quarters = torch.arange(-6, 7)
    fixed = FixedPoint.of(0.25)
    assert rescale(quarters, fixed, rounding="two_step").tolist() == [-2, -1, -1, -1, -1, 0, 0, 1, 1, 1, 1, 2, 2]
    assert rescale(quarters, fixed).tolist() == [-2, -1, -1, -1, 0, 0, 0, 0, 0, 1, 1, 1, 2]


def test_difference_from_the_float_formula():
    draw = torch.Generator().manual_seed(0)
    values = torch.randint(-(2**18), 2**18, (100_000,), generator=draw)
    multiplier = 2.0**-10 + 2.0**-10 * torch.rand(100_000, generator=draw, dtype=torch.double)
    exact = torch.round(values * multiplier)
    differ = {r: rescale(values, FixedPoint.of(multiplier), rounding=r) - exact for r in (*SINGLE, "two_step")}
    assert all(d.abs().max() <= 1 for d in differ.values())
    assert [int(differ[r].count_nonzero()) for r in SINGLE] == [0, 0, 0]  # no halves among these
    assert int(differ["two_step"].count_nonzero()) < 200  # the second rounding sees a half about once in 2^shift


@pytest.mark.parametrize("exponent", [-12, -1, 0, 3])
def test_power_of_two_is_a_shift(exponent):
    values = accumulators() >> 8
    shifted = rounding_shift(values, -exponent) if exponent <= 0 else values << exponent
    assert torch.equal(rescale(values, FixedPoint.of(2.0**exponent)), shifted)


def test_channels_have_their_own_multipliers():
    values = torch.randint(-9999, 9999, (2, 3, 4, 4))
    multiplier = torch.tensor([0.1, 0.02, 3.0], dtype=torch.double)
    both = rescale(values, FixedPoint.of(multiplier.reshape(3, 1, 1)))
    for channel, value in enumerate(multiplier):
        assert torch.equal(both[:, channel], rescale(values[:, channel], FixedPoint.of(value)))


@pytest.mark.parametrize("multiplier", [0.0072474273, 0.0, 1e-12, -0.3, 700.0])
@pytest.mark.parametrize("addend", [0.0, -0.3, 17.77, -123456.5, 2.0**31 - 1])
def test_addend_is_exact_in_big_integers(multiplier, addend):
    fixed, scaled = fixed_multiplier_and_addend(multiplier, addend)
    total, values = 31 + fixed.shift.item(), accumulators()
    products = [v * fixed.mantissa.item() + scaled.item() for v in values.tolist()]
    assert rescale(values, fixed, scaled).tolist() == [nearest(Fraction(p, 2**total), "half_even") for p in products]
    assert abs(scaled.item() - Fraction(addend) * 2**total) <= Fraction(1, 2)
    assert abs(fixed.value.item() - multiplier) <= max(abs(multiplier) * 2.0**-31, max(abs(addend), 1) * 2.0**-61)


def test_addend_is_not_rounded_before_the_sum():
    fixed, scaled = fixed_multiplier_and_addend(0.25, 0.26)
    assert rescale(torch.tensor([0, 1]), fixed, scaled).tolist() == [0, 1]


def test_errors():
    values, half = torch.tensor([1]), FixedPoint.of(0.5)
    with pytest.raises(ValueError, match="rounding must be half_even, half_away or half_up here, got 'floor'"):
        rescale(values, half, rounding="floor")
    with pytest.raises(ValueError, match="two_step rounding takes no addend"):
        rescale(values, half, values, "two_step")
    with pytest.raises(ValueError, match=r"addend must be finite and below 2\^31, got inf"):
        fixed_multiplier_and_addend(0.5, float("inf"))
