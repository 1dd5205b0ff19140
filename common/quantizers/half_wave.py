"""HWGQ: half-wave Gaussian quantization of activations (Cai et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from common.quantizers.levels import LevelsQuantizer, midpoints, project
from common.quantizers.lsq import keep_where
from common.quantizers.modules import Traits

GRADIENTS = ("clipped", "relu", "log_tailed")


def _moments(levels: Tensor) -> tuple[Tensor, Tensor]:
    """P and E[x; .] of a standard normal x > 0 in the cells of `levels`, whose bounds lie halfway between them."""
    bounds = torch.cat([levels.new_zeros(1), midpoints(levels), levels.new_full((1,), 40.0)])  # 40: no mass beyond
    tail, density = torch.special.ndtr(-bounds), torch.exp(-(bounds**2) / 2) / math.sqrt(2 * math.pi)
    return -tail.diff(), -density.diff()


def _fixed_point(update: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """x = update(x): Lloyd's iteration, then Newton's, which needs a few steps where Lloyd's needs thousands."""
    for _ in range(20):
        x = update(x)
    for _ in range(50):
        jacobian = torch.autograd.functional.jacobian(update, x) - torch.eye(len(x), dtype=x.dtype)
        step = torch.linalg.solve(jacobian, x - update(x))
        x = x + step
        if step.abs().max() < 1e-9:  # the error is about its square
            return x
    raise RuntimeError("no fixed point found")


@cache
def half_wave_step(bit_width: int) -> float:
    """The step d whose levels d, 2 d, ..., (2^b - 1) d have the least squared error for standard normal x > 0.

    Values x > 0 go to the nearest positive level (no zero among them); x <= 0 goes to 0.
    """
    index = torch.arange(1, 2**bit_width, dtype=torch.double)

    def update(step: Tensor) -> Tensor:
        mass, first_moment = _moments(index * step)
        return ((index * first_moment).sum() / (index**2 * mass).sum()).reshape(1)

    return float(_fixed_point(update, 3 / index[-1:]))


@cache
def half_wave_levels(count: int) -> tuple[float, ...]:
    """The `count` positive levels with the least squared error for standard normal x > 0: means of their cells."""

    def update(levels: Tensor) -> Tensor:
        mass, first_moment = _moments(levels)
        return first_moment / mass

    parts = (torch.arange(count, dtype=torch.double) + 0.5) / count
    start = math.sqrt(3) * torch.special.ndtri((1 + parts) / 2)  # quantiles of density^(1/3): optimal for many levels
    return tuple(_fixed_point(update, start).tolist())


class HWGQ(LevelsQuantizer):
    """0 for x <= 0, else the nearest of 2^b - 1 positive levels, which suit a standard normal x.

    It belongs behind a batch norm without affine parameters. dy/dx is 0 for x <= 0 and 1 up to the largest level tau.

    Args:
        bit_width: b, 1..8.
        signed: False.
        uniform: equally spaced levels, as in the public code; otherwise Lloyd's.
        gradient: dy/dx beyond tau: "clipped" 0 (default), "relu" 1, "log_tailed" 1 / (x - tau + 1).

    Buffer: scale, by which the levels are multiplied; 1 until `calibrate` sets it.

    Raises:
        ValueError: a width that the class does not have, a signed range, an unknown gradient.
    """

    traits: ClassVar[Traits] = Traits(bit_widths=tuple(range(1, 9)), signed=False)
    nearest: ClassVar[bool] = False  # small positive values leave 0

    def __init__(
        self, bit_width: int = 2, signed: bool = False, uniform: bool = True, gradient: str = "clipped"
    ) -> None:
        levels = thresholds = None
        if bit_width in self.traits.bit_widths:
            count = 2**bit_width - 1
            positive = (
                [half_wave_step(bit_width) * (i + 1) for i in range(count)] if uniform else half_wave_levels(count)
            )
            levels = torch.tensor([0.0, *positive], dtype=torch.double)
            thresholds = torch.cat([torch.zeros(1, dtype=torch.double), midpoints(levels[1:])])
        super().__init__(bit_width, signed, levels=levels, thresholds=thresholds, ties_up=False)
        if gradient not in GRADIENTS:
            raise ValueError(f"gradient must be one of {', '.join(GRADIENTS)}, got {gradient!r}")
        self.gradient = gradient

    def forward(self, x: Tensor) -> Tensor:
        return _HalfWave.apply(x, self.scale, self.levels, self.thresholds, self.gradient)

    @torch.no_grad()
    def calibrate(self, x: Tensor, max_abs: float | None = None) -> None:
        """scale = root mean square of the positive values, which is 1 for a standard normal x (ours); 1 without any.

        For inputs that no batch norm has normalized.

        Args:
            x: a sample of the activation.
            max_abs: not needed.
        """
        positive = x[x > 0].double()
        self.scale.fill_(float(positive.square().mean().sqrt()) if len(positive) else 1.0)


class _HalfWave(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, levels, thresholds, gradient):
        ctx.save_for_backward(x, scale * levels[-1])
        ctx.gradient = gradient
        return project(x.to(scale.dtype) / scale, levels, thresholds, ties_up=False).mul(scale).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        x, top = ctx.saved_tensors
        values, passed = x.to(top.dtype), grad.to(top.dtype)
        if ctx.gradient == "clipped":
            margin = torch.minimum(values, torch.nextafter(top, 2 * top) - values)  # the upper end is inside
            return keep_where(margin, passed, closed=False).to(x.dtype), None, None, None, None
        if ctx.gradient == "log_tailed":
            passed = passed / (1 + torch.relu(values - top))
        return keep_where(values, passed, closed=False).to(x.dtype), None, None, None, None
