"""LSQ and LSQ+: uniform quantizers with a learned step size; and the gradient that learned scales have in common."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from common.quantizers.encoding import AffineEncoding
from common.quantizers.functional import integer_range
from common.quantizers.modules import AffineQuantizer, Quantizer, Traits
from common.quantizers.planes import check_width

MIN_SCALE = 1e-8


def positive(x: Tensor, minimum: float = MIN_SCALE) -> Tensor:
    """max(x, minimum), with gradient 1 everywhere, so that a parameter that fell below comes back."""
    return torch.where(x < minimum, minimum + (x - x.detach()), x)


def spread(values: Tensor, x: Tensor) -> Tensor:
    """One value per tensor (shape ()) or per channel (C,), shaped so that it broadcasts along axis 0 of x."""
    return values.reshape(-1, *[1] * (x.dim() - 1)) if values.dim() else values


def scale_gradient(x: Tensor, factor: Tensor | float) -> Tensor:
    """x itself, bit by bit, with its gradient multiplied by `factor`."""
    return x.detach() + (x - x.detach()) * factor


def learned_scale(
    x: Tensor,
    scale: Tensor,
    low: Tensor,
    high: Tensor,
    project: Callable[[Tensor], Tensor],
    inside: str = "closed",
    straight: bool = False,
) -> Tensor:
    """y = scale * project(x / scale), with the gradients of a quantizer whose scale is learned.

    Q(c x; c s) = c Q(x; s) for every c > 0, so Euler's theorem and the straight-through rule dy/dx = 1[inside] leave
    dy/dscale = (y - x 1[inside]) / scale: the rounding error within the range, the outermost level beyond it.

    Args:
        x: real values, any shape, floating dtype. The arithmetic runs in the dtype of `scale`.
        scale: > 0, broadcasts to x.
        low, high: ends of the range in units of scale, scalar tensors.
        project: steps to grid values, both in units of scale; may work in place.
        inside: which x count as inside: "closed" low <= x / scale <= high; "open" low < x / scale < high; "rounded"
            low <= round(x / scale) <= high, for integer ends, low even and high odd (halves go to even).
        straight: dy/dx = 1 outside too.

    Returns:
        shape and dtype of x.
    """
    return _LearnedScale.apply(x, computed(scale), low, high, project, inside, straight)


def computed(x: Tensor) -> Tensor:
    """x itself, with gradient 1; a scalar by an operator that the compiler does not fuse.

    Fused into a loop over a tensor, on CPUs, a scale (softplus, power of two) would be computed for every vector anew.
    """
    return _Computed.apply(x) if torch.compiler.is_compiling() and x.is_cpu and not x.dim() else x


class _Computed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scalar):
        return torch.median(scalar)

    @staticmethod
    def backward(ctx, grad):
        return grad


def keep_where(margin: Tensor, values: Tensor, closed: bool = True) -> Tensor:
    """values where margin >= 0 (> 0 if not `closed`), else 0; on CPUs ten times as fast as `torch.where`."""
    return torch.ops.aten.threshold_backward(values, margin, -torch.finfo(margin.dtype).tiny if closed else 0.0)


def _margin(x: Tensor, scale: Tensor, low: Tensor, high: Tensor, inside: str) -> Tensor:
    """How far x is from the nearer end of the range: not negative inside ("open": positive)."""
    if inside == "rounded":
        low, high = low - 0.5, torch.nextafter(high + 0.5, high)
    margin = torch.sub(x, scale * low)
    return torch.minimum(margin, torch.sub(scale * high, x), out=margin)


class _LearnedScale(torch.autograd.Function):
    """Keeps x and y, which the neighbours keep anyway, and finds out again what is inside, with a margin for a mask:
    compilers like to keep masks, and on CPUs write bool tensors about fifty times slower than they compute them.
    """

    @staticmethod
    def forward(ctx, x, scale, low, high, project, inside, straight):
        y = project(torch.div(x.to(scale.dtype), scale)).mul_(scale)
        ctx.save_for_backward(x, y, scale, low, high)
        ctx.inside, ctx.straight = inside, straight
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        x, y, scale, low, high = ctx.saved_tensors
        dtype, x, grad = x.dtype, x.to(scale.dtype), grad.to(scale.dtype)
        margin, closed = _margin(x, scale, low, high, ctx.inside), ctx.inside != "open"
        grad_x = grad if ctx.straight else keep_where(margin, grad, closed)
        grad_scale = None
        if ctx.needs_input_grad[1]:
            error = keep_where(margin, x, closed)
            error = torch.sub(y, error, out=error).mul_(grad)
            grad_scale = error.sum_to_size(scale.shape) / scale
        return grad_x.to(dtype), grad_scale, None, None, None, None, None


def quantize_learned(x: Tensor, scale: Tensor, quant_min: Tensor, quant_max: Tensor, inside: str = "open") -> Tensor:
    """y = scale * clip(round(x / scale), quant_min, quant_max) with the gradients of `learned_scale`.

    With the open interval this is LSQ (Esser et al. 2020, eq. 1-3 and 5): dy/dx is 1 within the range and 0 elsewhere,
    both ends included; dy/dscale is round(x / scale) - x / scale within, quant_min below, quant_max above.
    """

    def project(steps: Tensor) -> Tensor:
        return steps.round_().clamp_min_(quant_min).clamp_max_(quant_max)

    return learned_scale(x, scale, quant_min, quant_max, project, inside)


class UniformQuantizer(Quantizer, ABC):
    """Base of the uniform quantizers: bit_width, quant_min and quant_max as buffers; subclasses say what the step is.

    Args:
        bit_width: bits per value, one of the class's traits.
        signed: two's complement or 0 .. 2^b - 1, one of the class's traits.
        channels: number of output channels (axis 0) with a step each; None is per tensor.
        narrow: drop the lowest signed value, so that the range is symmetric.

    Raises:
        ValueError: a width or range that the class does not have.
    """

    def __init__(self, bit_width: int, signed: bool, channels: int | None = None, narrow: bool = False) -> None:
        super().__init__()
        check_width(type(self), bit_width, signed)
        check_channels(type(self), channels)
        self.signed, self.channels, self.narrow = signed, channels, narrow
        self.register_buffer("bit_width", torch.tensor(bit_width))
        self.register_buffer("quant_min", torch.tensor(0.0))
        self.register_buffer("quant_max", torch.tensor(0.0))
        self.set_bit_width(bit_width)

    @torch.no_grad()
    def set_bit_width(self, bit_width: int) -> None:
        """Change the width, and with it the integer range; what is learned stays as it is."""
        check_width(type(self), bit_width, self.signed)
        quant_min, quant_max = integer_range(bit_width, self.signed, self.narrow)
        self.bit_width.fill_(bit_width)
        self.quant_min.fill_(quant_min)
        self.quant_max.fill_(quant_max)

    @abstractmethod
    def step_size(self) -> Tensor:
        """The positive step between neighbouring values, shape () or (channels,)."""

    @torch.no_grad()
    def inference_form(self) -> AffineQuantizer:
        """The plain quantizer with the present step and range, independent of this module."""
        plain = AffineQuantizer(int(self.bit_width), self.signed, self.channels).to(self.quant_min.device)
        plain.scale.copy_(self.step_size())
        plain.quant_min.copy_(self.quant_min)
        plain.quant_max.copy_(self.quant_max)
        return plain


def check_channels(kind: type[Quantizer], channels: int | None) -> None:
    """
    Raises:
        ValueError: channels are given, and `kind` has one scale per tensor.
    """
    if channels is not None and not kind.traits.per_channel:
        raise ValueError(f"channels={channels}: {kind.__name__} has one scale per tensor")


class OffsetQuantizer(Quantizer):
    """y = grid(x - offset) + offset: an `AffineQuantizer` moved by a real number; everything is a buffer.

    Args: see `AffineQuantizer`.
    """

    traits: ClassVar[Traits] = dataclasses.replace(AffineQuantizer.traits, zero_is_level=False)

    def __init__(self, bit_width: int = 8, signed: bool = True, channels: int | None = None) -> None:
        super().__init__()
        self.grid = AffineQuantizer(bit_width, signed, channels)
        self.register_buffer("offset", torch.zeros_like(self.grid.scale))

    @classmethod
    @torch.no_grad()
    def of(cls, grid: AffineQuantizer, offset: Tensor) -> OffsetQuantizer:
        """`grid`, which is not copied, moved by `offset`."""
        moved = cls(channels=grid.channels).to(grid.scale.device)
        moved.grid = grid
        moved.offset.copy_(offset)
        return moved

    @property
    def bit_width(self) -> Tensor:  # type: ignore[override]
        return self.grid.bit_width

    @property
    def scale(self) -> Tensor:
        return self.grid.scale

    @property
    def quant_min(self) -> Tensor:
        return self.grid.quant_min

    @property
    def quant_max(self) -> Tensor:
        return self.grid.quant_max

    def forward(self, x: Tensor) -> Tensor:
        offset = spread(self.offset, x)
        return (self.grid(x.to(offset.dtype) - offset) + offset).to(x.dtype)

    def encode(self, x: Tensor) -> AffineEncoding:
        encoding = self.grid.encode(x.to(self.offset.dtype) - spread(self.offset, x))
        return dataclasses.replace(encoding, offset=self.offset.detach().reshape(-1))

    def inference_form(self) -> OffsetQuantizer:  # type: ignore[override]
        return self


class LSQ(UniformQuantizer):
    """Learned step size quantization (Esser et al. 2020); with `offset`, LSQ+ (Bhalgat et al. 2020).

    The gradient of the step is multiplied by 1 / sqrt(N Q_P), Q_P = quant_max and N the number of values that share the
    step; so is that of the offset (our choice). A step that training pushes below 1e-8 acts as 1e-8 (our choice).

    Args:
        bit_width, signed, channels: see `UniformQuantizer`. Paper: weights signed, activations after a ReLU unsigned,
            one step per layer.
        offset: learn an offset beta too: v_bar = round(clip((v - beta) / s, -Q_N, Q_P)), v_hat = v_bar s + beta.
        batched: axis 0 of x is the batch, which N leaves out: an activation counts the features of one sample.

    Parameters: scale s, shape () or (channels,); offset beta, of the same shape.

    Raises:
        ValueError: see `UniformQuantizer`; both channels and batched.
    """

    traits: ClassVar[Traits] = Traits(bit_widths=tuple(range(2, 9)), per_channel=True)

    def __init__(
        self,
        bit_width: int = 4,
        signed: bool = True,
        channels: int | None = None,
        offset: bool = False,
        batched: bool = False,
    ) -> None:
        super().__init__(bit_width, signed, channels)
        if channels is not None and batched:
            raise ValueError(f"channels={channels} are those of a weight, which is not batched")
        self.batched = batched
        self.scale = nn.Parameter(torch.ones(() if channels is None else (channels,)))
        self.offset = nn.Parameter(torch.zeros_like(self.scale)) if offset else None

    def step_size(self) -> Tensor:
        return positive(self.scale)

    def forward(self, x: Tensor) -> Tensor:
        count = x.numel() // (x.shape[0] if self.batched else self.channels or 1)
        factor = torch.rsqrt(count * self.quant_max)
        scale = spread(scale_gradient(self.step_size(), factor), x)
        if self.offset is None:
            return quantize_learned(x, scale, self.quant_min, self.quant_max)
        offset = spread(scale_gradient(self.offset, factor), x)
        steps = quantize_learned(x.to(offset.dtype) - offset, scale, self.quant_min, self.quant_max)
        return (steps + offset).to(x.dtype)

    @torch.no_grad()
    def calibrate(self, x: Tensor, max_abs: float | None = None) -> None:
        """s = 2 mean|x| / sqrt(Q_P), of each channel. With an offset the range covers x exactly instead (our choice).

        Args:
            x: initial weights, or the activation of the first batch.
            max_abs: not needed; all quantizers are calibrated alike.
        """
        rows = x.reshape(self.channels or 1, -1).to(self.scale.dtype)
        if self.offset is None:
            scale = 2 * rows.abs().mean(1) / self.quant_max.sqrt()
        else:
            scale = (rows.amax(1) - rows.amin(1)) / (self.quant_max - self.quant_min)
            self.offset.copy_((rows.amin(1) - self.quant_min * scale).reshape(self.offset.shape))
        self.scale.copy_(scale.clamp(min=MIN_SCALE).reshape(self.scale.shape))

    @torch.no_grad()
    def inference_form(self) -> AffineQuantizer | OffsetQuantizer:  # type: ignore[override]
        plain = super().inference_form()
        return plain if self.offset is None else OffsetQuantizer.of(plain, self.offset)
