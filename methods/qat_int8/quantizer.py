"""Min-max weights, activations with a moving range, and weights seen through the batch norm behind them."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from common.calibration.observers import MovingAverageObserver, affine_parameters, symmetric_scale
from common.quantizers.encoding import AffineEncoding
from common.quantizers.functional import integer_range
from common.quantizers.lsq import quantize_learned, spread
from common.quantizers.modules import AffineQuantizer, Quantizer, Traits
from common.quantizers.planes import check_width, straight_through

WIDTHS = tuple(range(2, 9))
_SMALLEST = 1e-20  # stands for a factor of 0, by which nothing can be divided


class MinMaxWeights(Quantizer):
    """The affine grid from the smallest to the largest weight; the gradient passes everywhere (plain STE).

    Args:
        bit_width: 2..8.
        signed: True: two's complement.
        channels: number of output channels (axis 0) with a range each; None is per tensor.
        symmetric: the range is [-max |w|, max |w|], with zero point 0.
        narrow: leave out the lowest integer, so that products of 8-bit codes fit 16 bits (section 3.1 and appendix B).
            Symmetric grids do so anyway: nothing reaches it.

    Raises:
        ValueError: another width, an unsigned range.
    """

    traits: ClassVar[Traits] = Traits(bit_widths=WIDTHS, unsigned=False, per_channel=True)

    def __init__(
        self,
        bit_width: int = 8,
        signed: bool = True,
        channels: int | None = None,
        symmetric: bool = False,
        narrow: bool = True,
    ) -> None:
        super().__init__()
        check_width(type(self), bit_width, signed)
        self.channels, self.symmetric = channels, symmetric
        self.range = integer_range(bit_width, True, narrow or symmetric)
        self.grid = AffineQuantizer(bit_width, True, channels)
        self.grid.quant_min.fill_(self.range[0])

    @property
    def bit_width(self) -> Tensor:  # type: ignore[override]
        return self.grid.bit_width

    def forward(self, x: Tensor) -> Tensor:
        return straight_through(self.grid(x.detach()), x)

    @torch.no_grad()
    def calibrate(self, x: Tensor, max_abs: float | None = None) -> None:
        """Lay the grid over the present weights; `max_abs` is not needed."""
        low, high = torch.aminmax(x.reshape(self.channels or 1, -1), dim=1)
        if self.symmetric:
            scale, zero_point = symmetric_scale(torch.maximum(-low, high), self.range[1]), torch.zeros_like(low)
        else:
            scale, zero_point = affine_parameters(low, high, *self.range)
        self.grid.scale.copy_(scale.reshape(self.grid.scale.shape))
        self.grid.zero_point.copy_(zero_point.reshape(self.grid.scale.shape))

    def encode(self, x: Tensor) -> AffineEncoding:
        return self.grid.encode(x)

    def inference_form(self) -> AffineQuantizer:
        return self.grid


class FoldedWeights(nn.Module):
    """What the quantized folded weights are before they are folded: w -> grid(w f) / f, f = gamma / sqrt(var + eps).

    The batch norm stays where it is. In training it normalizes with the statistics of the batch, while the grid is that
    of the weights folded with the running ones (the correction of arXiv:1806.08342: there the convolution's output is
    divided by f, channel by channel, which is the same). In eval mode, and with frozen statistics, the two together are
    the convolution with grid(w f) and the folded bias (section 3.2).

    It is no `Quantizer`: its values are on a grid only after multiplication by f. The gradient passes everywhere.

    Args:
        grid: of the folded weights.
        channels: number of output channels.

    Buffers: factor f, (channels,), a constant of each step.
    """

    def __init__(self, grid: MinMaxWeights, channels: int) -> None:
        super().__init__()
        self.grid = grid
        self.register_buffer("factor", torch.ones(channels))

    @property
    def bit_width(self) -> Tensor:
        return self.grid.bit_width

    def forward(self, w: Tensor) -> Tensor:
        factor = spread(self.factor, w)
        return straight_through(self.grid(w.detach() * factor) / factor, w)

    @torch.no_grad()
    def fold(self, w: Tensor, norm: _BatchNorm) -> None:
        """Bring factor and grid up to date with weights and batch norm."""
        factor = torch.rsqrt(norm.running_var + norm.eps)
        if norm.weight is not None:
            factor = factor * norm.weight
        self.factor.copy_(torch.where(factor == 0, _SMALLEST, factor))
        self.grid.calibrate(w * spread(self.factor, w))

    def inference_form(self) -> AffineQuantizer:
        """The grid, which belongs to the folded weights."""
        return self.grid.grid


class MovingRange(Quantizer):
    """The affine grid over a moving average of each batch's smallest and largest value (section 3.1).

    A training step uses the range that the batches before it left, so that its backward pass depends on nothing that
    the forward pass has changed. dy/dx is 1 within the range, ends included, and 0 outside; the range has no gradient.

    Args:
        bit_width: 2..8.
        signed: False: no value is below 0.
        momentum: see `MovingAverageObserver`.
        delayed: in training, values pass as they are until `active` is set; their range is followed from the start.

    Buffers: `active`, not saved.

    Raises:
        ValueError: another width.
    """

    traits: ClassVar[Traits] = Traits(bit_widths=WIDTHS)

    def __init__(self, bit_width: int = 8, signed: bool = True, momentum: float = 0.01, delayed: bool = False) -> None:
        super().__init__()
        check_width(type(self), bit_width, signed)
        self.signed, self.delayed = signed, delayed
        self.range = integer_range(bit_width, signed)
        self.observer = MovingAverageObserver(momentum)
        self.grid = AffineQuantizer(bit_width, signed)
        self.register_buffer("active", torch.tensor(not delayed), persistent=False)

    @property
    def bit_width(self) -> Tensor:  # type: ignore[override]
        return self.grid.bit_width

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.observer.update(x.detach())
        grid = self.grid
        y = quantize_learned(
            x, grid.scale, grid.quant_min - grid.zero_point, grid.quant_max - grid.zero_point, "closed"
        )
        return torch.where(self.active, y, x) if self.training and self.delayed else y

    @torch.no_grad()
    def after_step(self) -> None:
        """Lay the grid over the present range."""
        low, high = self.observer.average
        scale, zero_point = affine_parameters(low if self.signed else torch.zeros_like(low), high, *self.range)
        self.grid.scale.copy_(scale)
        self.grid.zero_point.copy_(zero_point)

    def calibrate(self, x: Tensor, max_abs: float | None = None) -> None:
        """See a batch, the first one as it is; `max_abs` is not needed."""
        self.observer.update(x)
        self.after_step()

    def encode(self, x: Tensor) -> AffineEncoding:
        return self.grid.encode(x)

    def inference_form(self) -> AffineQuantizer:
        return self.grid
