"""Fixed-point multipliers: integers scaled by a real number with integer multiplications, additions and shifts alone.

A real M is mantissa * 2^-(31 + shift) with an int32 mantissa of 31 significant bits (Jacob et al. 2018, section 2.2).
Products are int64: |accumulator| <= 2^31 and |mantissa| < 2^31 leave one bit for an addend. How the one rounding at the
end treats halves is a setting:

- "half_even": as `torch.round`, so that integers equal those of fake quantization wherever the arithmetic is exact;
- "half_away", "half_up": away from zero, towards plus infinity;
- "two_step": as gemmlowp and the run-times that follow it: the product is rounded twice, the high half of the doubled
  product half up, its right shift half away from zero. Rounding twice is not rounding to nearest: 1 * 0.25 gives 1.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Rounding = Literal["half_even", "half_away", "half_up", "two_step"]

INT32_MAX = 2**31 - 1
MANTISSA_BITS = 31
LARGEST_SHIFT = 31  # mantissa and shift together stay below the 63 bits of the product


def check_rounding(rounding: str) -> None:
    """Raise ValueError for an unknown name."""
    if rounding not in get_args(Rounding):
        raise ValueError(f"rounding must be one of {', '.join(get_args(Rounding))}, got {rounding!r}")


class FixedPoint(NamedTuple):
    """mantissa * 2^-(31 + shift), elementwise.

    Attributes:
        mantissa: int32; 2^30 <= |mantissa| < 2^31 unless the value is 0, or so small that its shift was limited.
        shift: int32, -31..31, shape of mantissa; negative for |values| of at least 1.
    """

    mantissa: Tensor
    shift: Tensor

    @classmethod
    def of(cls, multiplier: Tensor | float, largest_shift: Tensor | int = LARGEST_SHIFT) -> FixedPoint:
        """The fixed-point number nearest to `multiplier`; M = 0.0072474273 is 1992157647 * 2^-(31 + 7).

        Args:
            multiplier: real, any sign and shape; taken in float64.
            largest_shift: limit of the shift, -31..31, broadcasts to multiplier. Where it binds, the mantissa has fewer
                significant bits.

        Raises:
            ValueError: a multiplier that is not finite or not below 2^31.
        """
        multiplier = torch.as_tensor(multiplier, dtype=torch.float64)
        if not (multiplier.isfinite() & (multiplier.abs() < 2.0**31)).all():
            raise ValueError(f"multiplier must be finite and below 2^31, got {multiplier.tolist()}")
        fraction, exponent = torch.frexp(multiplier)  # fraction in [0.5, 1), exact; 0 is 0 * 2^0
        # a fraction that rounds to 1 has the mantissa 2^30 of the next power of two
        exponent = exponent + (torch.round(fraction * 2.0**MANTISSA_BITS).abs() == 2.0**MANTISSA_BITS)
        limit = torch.as_tensor(largest_shift, dtype=exponent.dtype, device=exponent.device)
        shift = torch.minimum(-exponent, limit)
        mantissa = torch.round(torch.ldexp(multiplier, MANTISSA_BITS + shift))
        return cls(mantissa.to(torch.int32), shift.to(torch.int32))

    @property
    def value(self) -> Tensor:
        """The real numbers that are stored, float64."""
        return torch.ldexp(self.mantissa.double(), -(MANTISSA_BITS + self.shift))

    @property
    def is_power_of_two(self) -> Tensor:
        """bool, shape of mantissa: true where scaling is a shift (or, for 0, nothing)."""
        magnitude = self.mantissa.abs()
        return (magnitude & (magnitude - 1)) == 0


def rounding_shift(values: Tensor, shift: Tensor | int, rounding: Rounding = "half_even") -> Tensor:
    """values / 2^shift to the nearest integer.

    Args:
        values: int64, |values| < 2^63.
        shift: 0..62, broadcasts to values.
        rounding: what a half becomes; not "two_step".

    Returns:
        int64.
    """
    shift = torch.as_tensor(shift, dtype=torch.int64, device=values.device)
    floor = values >> shift
    return _nearest(values, floor, values - (floor << shift), torch.ones_like(shift) << shift, rounding)


def rounding_divide(values: Tensor, divisor: Tensor | int, rounding: Rounding = "half_even") -> Tensor:
    """values / divisor to the nearest integer: `rounding_shift` for any divisor in 1..2^62."""
    divisor = torch.as_tensor(divisor, dtype=torch.int64, device=values.device)
    floor = torch.div(values, divisor, rounding_mode="floor")
    return _nearest(values, floor, values - floor * divisor, divisor, rounding)


def _nearest(values: Tensor, floor: Tensor, remainder: Tensor, divisor: Tensor, rounding: Rounding) -> Tensor:
    half = 2 * remainder == divisor
    if rounding == "half_even":
        half = half & (floor & 1).bool()
    elif rounding == "half_away":
        half = half & (values >= 0)
    elif rounding != "half_up":
        raise ValueError(f"rounding must be half_even, half_away or half_up here, got {rounding!r}")
    return floor + ((2 * remainder > divisor) | half)


def rescale(
    accumulator: Tensor, multiplier: FixedPoint, addend: Tensor | None = None, rounding: Rounding = "half_even"
) -> Tensor:
    """accumulator * multiplier + addend to the nearest integer.

    Args:
        accumulator: any integer dtype, |accumulator| <= 2^31.
        multiplier: broadcasts to accumulator; (C, 1, 1) is per channel of a feature map. With "two_step" it must be
            below 1 in magnitude, as `Requantize` checks.
        addend: int64 in units of 2^-(31 + shift), added before the rounding (`fixed_multiplier_and_addend` makes it);
            not with "two_step".
        rounding: see the module's docstring.

    Returns:
        int64, shape of accumulator.
    """
    product = accumulator.to(torch.int64) * multiplier.mantissa
    if rounding == "two_step":
        if addend is not None:
            raise ValueError("two_step rounding takes no addend")
        return rounding_shift(rounding_shift(product, MANTISSA_BITS, "half_up"), multiplier.shift, "half_away")
    if addend is not None:
        product = product + addend
    return rounding_shift(product, MANTISSA_BITS + multiplier.shift, rounding)


def fixed_multiplier_and_addend(multiplier: Tensor | float, addend: Tensor | float) -> tuple[FixedPoint, Tensor]:
    """Both operands of `rescale` for real numbers of one shape.

    The addend keeps all bits of the product, so nothing is rounded before the result. Where it is so large beside
    the multiplier that they would not fit into 63 bits, both lose low bits.

    Raises:
        ValueError: numbers that are not finite, or of 2^31 and more.
    """
    addend = torch.as_tensor(addend, dtype=torch.float64)
    if not (addend.isfinite() & (addend.abs() < 2.0**31)).all():
        raise ValueError(f"addend must be finite and below 2^31, got {addend.tolist()}")
    _, bits = torch.frexp(addend)  # |addend| < 2^bits
    fixed = FixedPoint.of(multiplier, largest_shift=(62 - MANTISSA_BITS - bits).clamp(max=LARGEST_SHIFT))
    return fixed, torch.round(torch.ldexp(addend, MANTISSA_BITS + fixed.shift)).to(torch.int64)
