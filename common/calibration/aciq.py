"""ACIQ: the clip that minimises a model of the quantization error (Banner et al. 2019, arXiv 1810.05723).

The model: a density with mean 0 (Laplace with b = 1 or Gauss with sigma = 1), 2^bits cells of width 2 a / 2^bits over
[-a, a], noise uniform in a cell. Its optimum a is a constant for every bit-width, solved here and nowhere listed.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from common.calibration.observers import MSEObserver, affine_parameters
from common.quantizers import integer_range

DENSITIES = ("laplace", "gauss")


def clip_error(threshold: float, bit_width: int, density: str) -> float:
    """Mean squared error of the model: clipping outside [-a, a] plus cell^2 / 12 inside, for b = 1 or sigma = 1."""
    _check(bit_width, density)
    a, rounding = threshold, threshold**2 / (3 * 4**bit_width)
    if density == "laplace":
        return 2 * math.exp(-a) + rounding
    tail = math.erfc(a / math.sqrt(2))
    return (a**2 + 1) * tail - math.sqrt(2 / math.pi) * a * math.exp(-(a**2) / 2) + rounding


@lru_cache
def clip_constant(bit_width: int, density: str) -> float:
    """argmin of `clip_error`: a / b for Laplace, a / sigma for Gauss. 4 bits: 5.0286 and 2.5591.

    Laplace: a e^a = 3 * 4^bits (Lambert's W). Gauss: a erfc(a / sqrt2) - sqrt(2 / pi) e^(-a^2 / 2) + a / (3 * 4^bits)
    = 0, whose left side rises and is concave. Newton's method for both.
    """
    _check(bit_width, density)
    cells = 3 * 4**bit_width
    a = math.log(cells) if density == "laplace" else 0.0
    for _ in range(100):
        if density == "laplace":
            step = (a + math.log(a) - math.log(cells)) / (1 + 1 / a)
        else:
            tail = math.erfc(a / math.sqrt(2))
            step = (a * tail - math.sqrt(2 / math.pi) * math.exp(-(a**2) / 2) + a / cells) / (tail + 1 / cells)
        a -= step
        if abs(step) < 1e-14 * (1 + a):
            break
    return a


def _check(bit_width: int, density: str) -> None:
    if not 1 <= bit_width <= 24:
        raise ValueError(f"bit_width must be in [1, 24], got {bit_width}")
    if density not in DENSITIES:
        raise ValueError(f"density must be one of {', '.join(DENSITIES)}, got {density!r}")


class ACIQObserver(MSEObserver):
    """mean +/- a, where a is `clip_constant` times mean |x - mean| (Laplace) or the standard deviation (Gauss).

    Unsigned: [0, max(mean, 0) + a] with the constant of one bit more: the same cells over half the range (the authors'
    code). The range is never wider than what was seen.

    Args:
        density: "laplace", "gauss", or "best": whichever has the smaller squared error on the values seen, on the
            affine grid of its range.
    """

    def __init__(self, density: str = "laplace", bins: int = 2048) -> None:
        super().__init__(symmetric=False, bins=bins)
        if density not in (*DENSITIES, "best"):
            raise ValueError(f"density must be one of {', '.join(DENSITIES)}, best, got {density!r}")
        self.density = density

    def range(self, bit_width: int, signed: bool = True) -> tuple[Tensor, Tensor]:
        if self.density != "best":
            return self._range(self.density, bit_width, signed)
        quant_min, quant_max = integer_range(bit_width, signed)

        def error(ends: tuple[Tensor, Tensor]) -> float:
            scale, zero_point = affine_parameters(ends[0].double()[None], ends[1].double()[None], quant_min, quant_max)
            return float(self.error(scale, quant_min - zero_point, quant_max - zero_point))

        return min((self._range(density, bit_width, signed) for density in DENSITIES), key=error)

    def _range(self, density: str, bit_width: int, signed: bool) -> tuple[Tensor, Tensor]:
        low, high = self._ends(self.minimum, self.maximum, signed)
        mean, spread = self.moments(density)
        clip = clip_constant(bit_width if signed else bit_width + 1, density) * spread
        if not signed:
            return low, torch.minimum(mean.clamp(min=0) + clip, high.double()).float()
        return torch.maximum(mean - clip, low.double()).float(), torch.minimum(mean + clip, high.double()).float()

    def moments(self, density: str) -> tuple[Tensor, Tensor]:
        """Mean and b = mean |x - mean| or sigma of the values seen, float64, each value at the middle of its bin."""
        centres = (torch.arange(2 * self.half, device=self.histogram.device) - self.half + 0.5).double()
        values = torch.cat([centres * self.bin_width, centres.new_zeros(1)])
        weights = torch.cat([self.histogram, self.zeros[None]]).double()
        weights /= weights.sum()
        mean = (weights * values).sum()
        if density == "laplace":
            return mean, (weights * (values - mean).abs()).sum()
        return mean, (weights * (values - mean) ** 2).sum().sqrt()
