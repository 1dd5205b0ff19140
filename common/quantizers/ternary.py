"""Ternary weights: TWN (one scale) and TTQ (two trained scales). Values up to the threshold, itself included, are 0."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from common.quantizers.encoding import AffineEncoding
from common.quantizers.levels import LevelsEncoding
from common.quantizers.modules import AffineQuantizer, Quantizer, Traits
from common.quantizers.planes import check_width, straight_through

TWN_FACTOR = 0.7  # between the optima of uniform (2/3) and normal weights (3/4)
TTQ_FACTOR = 0.05
LEAST_SCALE = 1e-4  # ours: TTQ's scales stay positive


def ternary_signs(x: Tensor, threshold: Tensor) -> Tensor:
    """+1 where x > threshold, -1 where x < -threshold, else 0; dtype of x."""
    values = x.to(threshold.dtype)  # a bfloat16 x would round the threshold
    return torch.where(values > threshold, 1.0, torch.where(values < -threshold, -1.0, 0.0)).to(x.dtype)


def mean_beyond(magnitude: Tensor, threshold: Tensor) -> Tensor:
    """Mean of the values above the threshold per row, (G, n), (G, 1) to (G, 1); 0 where there are none.

    For magnitudes |w| this is TWN's alpha, the least squares scale of `ternary_signs`.
    """
    kept = magnitude > threshold
    return torch.where(kept, magnitude, 0.0).sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp(min=1)


def twn(x: Tensor, threshold: Tensor, scale: Tensor) -> Tensor:
    """scale * ternary_signs(x, threshold); the gradient passes straight through to x (Li et al. 2016).

    Args:
        x: any shape.
        threshold, scale: constants that broadcast to x.
    """
    return straight_through(scale * ternary_signs(x, threshold), x)


def ttq(x: Tensor, positive: Tensor, negative: Tensor, threshold: Tensor) -> Tensor:
    """positive where x > threshold, -negative where x < -threshold, else 0 (Zhu et al. 2017, eq. 6 to 8).

    Args:
        x: any shape.
        positive, negative: trained scales w_p and w_n > 0, scalars.
        threshold: a constant, scalar.

    Returns:
        shape and dtype of x. With upstream gradient g: dx = w_p g above, g between, w_n g below; dw_p is the sum of g
        above, dw_n minus the sum of g below (the level is -w_n; the paper leaves the minus out).
    """
    signs = ternary_signs(x.detach(), threshold)
    value = torch.where(signs > 0, positive, torch.where(signs < 0, -negative, 0.0)).to(x.dtype)
    slope = torch.where(signs > 0, positive, torch.where(signs < 0, negative, 1.0)).to(x.dtype)
    return value + straight_through(torch.zeros_like(x), x, slope.detach())


class TWN(Quantizer):
    """Ternary Weight Network: alpha * {-1, 0, 1}, threshold 0.7 mean |w|, alpha the mean |w| above it.

    In training both follow the weights; eval mode keeps those of the last training step or of `calibrate`. Values
    between alpha / 2 and the threshold become 0, though alpha is nearer.

    Args:
        bit_width, signed: 2, True.
        channels: number of output channels with numbers of their own; None: one for the layer (the paper).
        factor: 0.7.

    Buffers: bit_width, quant_min, quant_max; threshold and scale, () or (channels,).
    """

    traits: ClassVar[Traits] = Traits(bit_widths=(2,), unsigned=False, per_channel=True)

    def __init__(
        self, bit_width: int = 2, signed: bool = True, channels: int | None = None, factor: float = TWN_FACTOR
    ) -> None:
        super().__init__()
        check_width(type(self), bit_width, signed)
        self.channels, self.factor = channels, factor
        size = () if channels is None else (channels,)
        self.register_buffer("bit_width", torch.tensor(bit_width))
        self.register_buffer("quant_min", torch.tensor(-1.0))
        self.register_buffer("quant_max", torch.tensor(1.0))
        self.register_buffer("threshold", torch.full(size, 0.5))
        self.register_buffer("scale", torch.ones(size))

    def _per_channel(self, values: Tensor, x: Tensor) -> Tensor:
        return values if self.channels is None else values.reshape(-1, *[1] * (x.dim() - 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calibrate(x)
        threshold, scale = self._per_channel(self.threshold, x), self._per_channel(self.scale, x)
        return twn(x, threshold, scale).to(x.dtype)

    @torch.no_grad()
    def calibrate(self, x: Tensor, max_abs: float | None = None) -> None:
        """Threshold and scale of x; `max_abs` is not needed."""
        magnitude = x.detach().to(self.scale.dtype).abs().reshape(self.channels or 1, -1)
        threshold = self.factor * magnitude.mean(1, keepdim=True)
        self.threshold.copy_(threshold.reshape(self.threshold.shape))
        self.scale.copy_(mean_beyond(magnitude, threshold).reshape(self.scale.shape))

    follow = calibrate  # both are functions of the weights, at any time

    def encode(self, x: Tensor) -> AffineEncoding:
        groups = self.channels or 1
        return AffineEncoding(
            codes=(ternary_signs(x.detach(), self._per_channel(self.threshold, x)) + 1).to(torch.int32),
            scale=self.scale.detach().reshape(-1),
            zero_point=torch.ones(groups, device=x.device),
            offset=torch.zeros(groups, device=x.device),
            axis=0,
            group_sizes=(1,) * groups if self.channels else (x.shape[0],),
            bits=(2,) * groups,
        )

    def inference_form(self) -> AffineQuantizer:
        """The grid: nearest of -alpha, 0, alpha, whose scale it shares with this module."""
        grid = AffineQuantizer(2, channels=self.channels).to(self.scale)
        grid.scale = self.scale
        grid.quant_min.fill_(-1)
        return grid


class TTQ(Quantizer):
    """Trained Ternary Quantization: {-w_n, 0, w_p} with threshold 0.05 max |w|.

    In training the threshold follows the weights, without gradient; eval mode keeps that of the last training step or
    of `calibrate`. Quantizing twice changes nothing as long as both scales exceed the threshold.

    Args:
        bit_width, signed: 2, True.
        factor: 0.05.

    Parameters: positive w_p and negative w_n, scalars; 1 at first.
    Buffers: bit_width; threshold, scalar.
    """

    traits: ClassVar[Traits] = Traits(bit_widths=(2,), unsigned=False)

    def __init__(self, bit_width: int = 2, signed: bool = True, factor: float = TTQ_FACTOR) -> None:
        super().__init__()
        check_width(type(self), bit_width, signed)
        self.factor = factor
        self.positive = nn.Parameter(torch.tensor(1.0))
        self.negative = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("bit_width", torch.tensor(bit_width))
        self.register_buffer("threshold", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calibrate(x)
        return ttq(x, self.positive, self.negative, self.threshold)

    @torch.no_grad()
    def calibrate(self, x: Tensor, max_abs: float | None = None) -> None:
        """Threshold of x; `max_abs` is not needed."""
        self.threshold.copy_(self.factor * x.detach().abs().max())

    follow = calibrate

    @torch.no_grad()
    def start_from_means(self, x: Tensor) -> None:
        """Set the threshold, and the scales to the mean magnitudes of what lies beyond it on either side."""
        self.calibrate(x)
        row, threshold = x.to(self.threshold.dtype).reshape(1, -1), self.threshold.reshape(1, 1)
        self.positive.copy_(mean_beyond(row, threshold).reshape(()))
        self.negative.copy_(mean_beyond(-row, threshold).reshape(()))
        self.after_step()

    @torch.no_grad()
    def after_step(self) -> None:
        """Keep both scales positive."""
        self.positive.clamp_(min=LEAST_SCALE)
        self.negative.clamp_(min=LEAST_SCALE)

    def encode(self, x: Tensor) -> LevelsEncoding:
        levels = torch.stack([-self.negative, torch.zeros_like(self.positive), self.positive]).detach().float()
        codes = (ternary_signs(x.detach(), self.threshold) + 1).to(torch.int32)
        return LevelsEncoding(codes, levels, 0, (x.shape[0],), (2,))

    def inference_form(self) -> TTQ:
        return self
