"""UNIQ: levels at the quantiles of a normal distribution, learned through uniform noise (Baskin et al. 2018)."""

from __future__ import annotations

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


class UNIQ(LevelsQuantizer):
    """k-quantile quantizer: mu + sigma Phi^-1((floor(k u) + 1/2) / k) with u = Phi((x - mu) / sigma).

    Signed (weights): k = 2^b. Unsigned (activations): 0 for x <= 0, and k = 2^b - 1 cells of the normal distribution
    above 0. mu and sigma are constants for the gradient, which is 1 everywhere (activations: within the range).

    Training does not round: while `stage` is "noise", weights become mu + sigma Phi^-1(u + e), e ~ U(-1/2k, 1/2k),
    with their present mu and sigma. Quantization, in eval mode or in stage "quantized", takes those of the last noisy
    step or of `calibrate`: recomputed on quantized weights, they would change them again.

    Args:
        bit_width: b, 1..8.
        signed: weights or activations.
        shape: of the weight, for the noise; None: quantized in training too.

    Attributes:
        stage: what training does: "float", "noise" or "quantized"; layers go through the three in turn.

    Buffers: scale sigma; levels and thresholds in its units, mu included; uniform, the random numbers of this step,
    which `draw` fills in (not saved; at first 1/2: no noise).

    Raises:
        ValueError: a width that the class does not have, a shape of activations.
    """

    traits: ClassVar[Traits] = Traits(bit_widths=tuple(range(1, 9)), zero_is_level=False)
    nearest: ClassVar[bool] = False

    def __init__(self, bit_width: int = 4, signed: bool = True, shape: Sequence[int] | None = None) -> None:
        super().__init__(bit_width, signed, ties_up=signed)
        if shape is not None and not signed:
            raise ValueError("shape is that of a weight, which is signed")
        self.signed = signed
        self.stage = "quantized" if shape is None else "noise"
        self.register_buffer("uniform", torch.full(tuple(shape or (0,)), 0.5), persistent=False)
        self._fill(torch.tensor(0.0), torch.tensor(1.0))

    @property
    def stage(self) -> str:
        return self._stage

    @stage.setter
    def stage(self, stage: str) -> None:
        if stage not in STAGES:
            raise ValueError(f"stage must be one of {', '.join(STAGES)}, got {stage!r}")
        self._stage = stage

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
        """mu and sigma (n - 1) of x, weights or a sample of the activation; `max_abs` is not needed."""
        std, mean = torch.std_mean(x.to(self.scale.dtype))
        self._fill(mean, std.clamp(min=1e-8))

    @torch.no_grad()
    def draw(self, key: int, step: int) -> None:
        """Fill `uniform` with the numbers of a step; outside compiled code.

        Args:
            key: of the random stream (`stream_key`).
            step: index of the training batch.
        """
        index = torch.arange(self.uniform.numel(), device=self.uniform.device).reshape(self.uniform.shape)
        self.uniform.copy_(counter_uniform(torch.tensor(key, device=index.device), step, index))

    def noisy(self, x: Tensor) -> Tensor:
        """x with the uniformized noise of this step, by the mu and sigma of x, which are kept; gradient 1."""
        values = x.detach().to(self.scale.dtype)
        std, mean = torch.std_mean(values)
        std = std.clamp(min=1e-8)
        self._fill(mean, std)
        u = torch.special.ndtr((values - mean) / std) + (self.uniform - 0.5) / len(self.levels)
        return straight_through((mean + std * torch.special.ndtri(u.clamp(_EDGE, 1 - _EDGE))).to(x.dtype), x)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.stage != "quantized":
            return self.noisy(x) if self.stage == "noise" else x
        return self.project(x, straight=self.signed)
