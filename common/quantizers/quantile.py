"""UNIQ: levels at the quantiles of a normal distribution, learned through uniform noise (Baskin et al. 2018)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from common.quantizers.levels import LevelsQuantizer
from common.quantizers.modules import Traits
from common.quantizers.planes import straight_through
from common.random import counter_uniform

STAGES = ("float", "noise", "quantized")
_EDGE = 1e-5  # of the uniform numbers, which ndtri would send to infinity


def normal_quantiles(bins: int, start: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    """(levels, thresholds) of `bins` equally likely cells of a standard normal variable above its `start` quantile.

    Returns:
        medians of the cells, (bins,), and the bounds between them, (bins - 1,); float64.
    """
    start = torch.as_tensor(start, dtype=torch.double)
    cells = torch.arange(bins, dtype=torch.double, device=start.device)
    levels = torch.special.ndtri(start + (1 - start) * (cells + 0.5) / bins)
    return levels, torch.special.ndtri(start + (1 - start) * cells[1:] / bins)


def truncated_normal(values: Tensor) -> tuple[float, float]:
    """(mu, sigma) of the normal distribution whose part above 0 has the mean and the variance of the positive values.

    Ratios mu / sigma outside [-6, 6] become these bounds; without positive values it is (0, 1e-8).
    """
    positive = values[values > 0].double()
    if not positive.numel():
        return 0.0, 1e-8
    mean = float(positive.mean())
    spread = float(positive.var(correction=0)) / mean**2
    low, high = -6.0, 6.0
    for _ in range(60):  # the relative variance falls with the ratio
        ratio = (low + high) / 2
        above = math.erfc(-ratio / math.sqrt(2)) / 2
        hazard = math.exp(-(ratio**2) / 2) / math.sqrt(2 * math.pi) / above
        if (1 - hazard * (hazard + ratio)) / (ratio + hazard) ** 2 > spread:
            low = ratio
        else:
            high = ratio
    std = mean / (ratio + hazard)
    return ratio * std, std


class UNIQ(LevelsQuantizer):
    """k-quantile quantizer: mu + sigma Phi^-1((floor(k u) + 1/2) / k) with u = Phi((x - mu) / sigma).

    Signed (weights): k = 2^b. Unsigned (activations): 0 for x <= 0, and k = 2^b - 1 cells of the normal distribution
    above 0. mu and sigma are constants for the gradient, which is 1 everywhere (activations: within the range).

    What training does is `stage`: "float" hands x on; "noise" does not round weights, but adds noise to them, mu +
    sigma Phi^-1(u + e), e ~ U(-1/2k, 1/2k), with their present mu and sigma; "quantized" is what eval mode always does.
    It takes mu and sigma of the last `calibrate`: recomputed on quantized weights, they would change them again.

    Args:
        bit_width: b, 1..8.
        signed: weights or activations.
        shape: of the weight, for the noise; None: there is none.

    Buffers: stage_index; scale sigma; levels and thresholds in its units, mu included; uniform, the random numbers of
    this step, which `draw` fills in (not saved; at first 1/2: no noise).

    Raises:
        ValueError: a width that the class does not have, a shape of activations, an unknown stage, noise without shape.
    """

    traits: ClassVar[Traits] = Traits(bit_widths=tuple(range(1, 9)), zero_is_level=False)
    nearest: ClassVar[bool] = False

    def __init__(self, bit_width: int = 4, signed: bool = True, shape: Sequence[int] | None = None) -> None:
        super().__init__(bit_width, signed, ties_up=signed)
        if shape is not None and not signed:
            raise ValueError("shape is that of a weight, which is signed")
        self.signed = signed
        self.register_buffer("stage_index", torch.tensor(0))  # a tensor: its changes are no recompilations
        self.register_buffer("uniform", torch.full(tuple(shape or (0,)), 0.5), persistent=False)
        self.stage = "quantized" if shape is None else "noise"
        self._fill(torch.tensor(0.0), torch.tensor(1.0))

    @property
    def stage(self) -> str:
        """One of STAGES."""
        return STAGES[int(self.stage_index)]

    @stage.setter
    def stage(self, stage: str) -> None:
        if stage not in STAGES:
            raise ValueError(f"stage must be one of {', '.join(STAGES)}, got {stage!r}")
        if stage == "noise" and not self.uniform.numel():
            raise ValueError("noise is for weights, whose shape is given")
        self.stage_index.fill_(STAGES.index(stage))

    @torch.no_grad()
    def _fill(self, mean: Tensor, std: Tensor) -> None:
        ratio = mean.double() / std.double()
        if self.signed:
            levels, thresholds = normal_quantiles(len(self.levels))
            levels, thresholds = levels.to(ratio.device) + ratio, thresholds.to(ratio.device) + ratio
        else:
            levels, thresholds = normal_quantiles(len(self.levels) - 1, torch.special.ndtr(-ratio))
            zero = ratio.new_zeros(1)
            levels, thresholds = torch.cat([zero, levels + ratio]), torch.cat([zero, thresholds + ratio])
        self.scale.copy_(std)
        self.levels.copy_(levels)
        self.thresholds.copy_(thresholds)

    @torch.no_grad()
    def calibrate(self, x: Tensor, max_abs: float | None = None) -> None:
        """mu and sigma of x: mean and standard deviation (n - 1), of an activation `truncated_normal`.

        Args:
            x: weights, or a sample of the activation, from before or behind its ReLU.
            max_abs: not needed.
        """
        if self.signed:
            std, mean = torch.std_mean(x.to(self.scale.dtype))
        else:
            mean, std = torch.tensor(truncated_normal(x), dtype=torch.double, device=self.scale.device)
        self._fill(mean, std.clamp(min=1e-8))

    follow = calibrate

    @torch.no_grad()
    def draw(self, key: int, step: int) -> None:
        """Fill `uniform` with the numbers of a step, where noise is added; outside compiled code.

        Args:
            key: of the random stream (`stream_key`).
            step: index of the training batch.
        """
        if self.stage != "noise":
            return
        index = torch.arange(self.uniform.numel(), device=self.uniform.device).reshape(self.uniform.shape)
        self.uniform.copy_(counter_uniform(torch.tensor(key, device=index.device), step, index))

    @torch.no_grad()
    def noisy(self, x: Tensor) -> Tensor:
        """x with the uniformized noise of this step, by the mu and sigma of x; shape and dtype of x."""
        values = x.to(self.scale.dtype)
        std, mean = torch.std_mean(values)
        std = std.clamp(min=1e-8)
        u = torch.special.ndtr((values - mean) / std) + (self.uniform - 0.5) / len(self.levels)
        return (mean + std * torch.special.ndtri(u.clamp(_EDGE, 1 - _EDGE))).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        quantized = self.project(x, straight=self.signed)
        if not self.training:
            return quantized
        y = torch.where(self.stage_index == STAGES.index("quantized"), quantized, x)
        if not self.uniform.numel():
            return y
        return straight_through(torch.where(self.stage_index == STAGES.index("noise"), self.noisy(x), y.detach()), x)
