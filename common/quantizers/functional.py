"""Pure functions of uniform quantization and their gradients.

All of them take and return real tensors, have no state and compile without graph breaks. Clipping is written with
explicit comparisons instead of `torch.clamp`: the gradient of `torch.clamp` exactly at a bound is 1, 0.5 or 0
depending on the PyTorch version and on whether the bound is a number or a tensor. Here it is 1 (closed interval).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def integer_range(bit_width: int, signed: bool, narrow: bool = False) -> tuple[int, int]:
    """Smallest and largest integer of a `bit_width`-bit grid, both ends included.

    Signed: two's complement -2^(b-1) .. 2^(b-1)-1; `narrow` drops the lowest value, which makes the range symmetric.
    Unsigned: 0 .. 2^b-1.

    Raises:
        ValueError: bit_width below 1, or a narrow range that would be empty.
    """
    if bit_width < 1:
        raise ValueError(f"bit_width must be at least 1, got {bit_width}")
    if not signed:
        return 0, 2**bit_width - 1
    low, high = -(2 ** (bit_width - 1)), 2 ** (bit_width - 1) - 1
    if narrow and bit_width == 1:
        raise ValueError("bit_width must be at least 2 for a narrow signed range, got 1")
    return (low + 1 if narrow else low), high


def round_ste(x: Tensor) -> Tensor:
    """Nearest integer, ties to even; the gradient passes straight through (Bengio et al. 2013)."""
    return x + (torch.round(x) - x).detach()


def clip(x: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """min(max(x, low), high). dy/dx is 1 on the closed interval; outside it, the gradient goes to the bound."""
    low = torch.as_tensor(low, dtype=x.dtype, device=x.device)
    high = torch.as_tensor(high, dtype=x.dtype, device=x.device)
    return torch.where(x < low, low, torch.where(x > high, high, x))


def recomputed(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """function(*arguments), whose compiled backward pass computes the intermediate values again; eager as it is.

    Left alone, the compiler keeps the masks of a clip as bool tensors between forward and backward pass, and on CPUs it
    writes those about fifty times slower than it computes them. Values and gradients stay the same, bit by bit.
    """
    if torch.compiler.is_compiling() and torch.is_grad_enabled():
        return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
    return function(*arguments)


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: Tensor | int, quant_max: Tensor | int
) -> Tensor:
    """y = scale * round(clip(x / scale, quant_min - zero_point, quant_max - zero_point))

    Args:
        x: real values, any shape, floating dtype. The arithmetic runs in the dtype of `scale`, so that bfloat16
            activations are rounded on the exact grid.
        scale: step size > 0, broadcasts to x; (C, 1, 1, 1) is per output channel.
        zero_point: integer-valued, shape of scale.
        quant_min, quant_max: integer range, numbers or tensors that broadcast to x.

    Returns:
        shape and dtype of x. Inside the range, ends included, dy/dx = 1 and dy/dscale = round(x/scale) - x/scale;
        outside dy/dx = 0 and dy/dscale = the bound (LSQ, Esser et al. 2020, eq. 3).
    """
    return recomputed(_fake_quantize, x, scale, zero_point, quant_min, quant_max)


def _fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: Tensor | int, quant_max: Tensor | int
) -> Tensor:
    steps = clip(x.to(scale.dtype) / scale, quant_min - zero_point, quant_max - zero_point)
    return (scale * round_ste(steps)).to(x.dtype)


def quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: Tensor | int, quant_max: Tensor | int
) -> Tensor:
    """The integers of `fake_quantize`: clip(round(x / scale), ...) + zero_point, int32, shape of x. No gradient."""
    steps = clip(x.detach().to(scale.dtype) / scale, quant_min - zero_point, quant_max - zero_point)
    return (torch.round(steps) + zero_point).to(torch.int32)


def least_squares_level(quantize_at: Callable[[Tensor, float], Tensor], x: Tensor, largest: float) -> float:
    """Which of 100 equal parts of `largest`, as a clipping level, quantizes x with the least squared error.

    Args:
        quantize_at: (values, clipping level) -> quantized values.
        x: any shape; at most 2^16 of its values are looked at.
        largest: > 0.
    """
    values = x.detach().flatten()[:: max(1, x.numel() // 2**16)].float()
    levels = [largest * (i + 1) / 100 for i in range(100)]
    errors = [float((quantize_at(values, level) - values).square().mean()) for level in levels]
    return levels[errors.index(min(errors))]


def power_of_two_exponent(max_abs: float) -> int:
    """Smallest integer M with 2^M >= max_abs (HMQ, section 4.1). Exact; 0.13 -> -2, 1.0 -> 0, 1.01 -> 1.

    Raises:
        ValueError: max_abs is negative, infinite or not a number. All-zero tensors (0.0) get M = 0.
    """
    if not (math.isfinite(max_abs) and max_abs >= 0):
        raise ValueError(f"max_abs must be finite and not negative, got {max_abs}")
    if max_abs == 0:
        return 0
    mantissa, exponent = math.frexp(max_abs)  # max_abs = mantissa * 2**exponent with mantissa in [0.5, 1)
    return exponent - 1 if mantissa == 0.5 else exponent
