"""DoReFa-Net (Zhou et al. 2016): weights, activations and the stochastic quantizer of gradients."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from common.quantizers.binary import BWN
from common.quantizers.encoding import AffineEncoding
from common.quantizers.functional import round_ste
from common.quantizers.lsq import UniformQuantizer, check_channels, quantize_learned, spread
from common.quantizers.modules import Quantizer, Traits
from common.quantizers.planes import check_width, straight_through
from common.quantizers.transformed import TanhNormalization, TransformedQuantizer
from common.random import counter_uniform


def quantize_k(r: Tensor, bit_width: Tensor | int) -> Tensor:
    """round((2^k - 1) r) / (2^k - 1) for r in [0, 1], with gradient 1 (eq. 5 and 6)."""
    steps = 2**bit_width - 1
    return round_ste(r * steps) / steps


class HalfIntegerQuantizer(Quantizer):
    """y = scale * the nearest of -(2^b - 1)/2, -(2^b - 3)/2, ..., (2^b - 1)/2: a uniform grid without a zero.

    Zero goes up, as half to even has it for b >= 2. The gradient is 1 everywhere; everything is a buffer. At first the
    levels end at -1 and 1: scale = 2 / (2^b - 1).

    Args:
        bit_width: 2..8; one bit would be the sign (`BWN`).
        signed: True.
        channels: number of output channels (axis 0) with a scale each; None is per tensor.
    """

    traits: ClassVar[Traits] = Traits(
        bit_widths=tuple(range(2, 9)), unsigned=False, per_channel=True, zero_is_level=False
    )

    def __init__(self, bit_width: int = 4, signed: bool = True, channels: int | None = None) -> None:
        super().__init__()
        check_width(type(self), bit_width, signed)
        check_channels(type(self), channels)
        self.channels = channels
        self.register_buffer("bit_width", torch.tensor(bit_width))
        self.register_buffer("quant_min", torch.tensor(0.0))
        self.register_buffer("quant_max", torch.tensor(0.0))
        self.register_buffer("scale", torch.zeros(() if channels is None else (channels,)))
        self.set_bit_width(bit_width)

    @torch.no_grad()
    def set_bit_width(self, bit_width: int) -> None:
        """Change the width; the levels end at -1 and 1 again."""
        check_width(type(self), bit_width, True)
        self.bit_width.fill_(bit_width)
        self.quant_max.fill_((2**bit_width - 1) / 2)
        self.quant_min.copy_(-self.quant_max)
        self.scale.fill_(2 / (2**bit_width - 1))

    def _codes(self, x: Tensor) -> Tensor:
        steps = x.detach().to(self.scale.dtype) / spread(self.scale, x)
        return torch.round(torch.clamp(steps, self.quant_min, self.quant_max) - self.quant_min)

    def forward(self, x: Tensor) -> Tensor:
        value = spread(self.scale, x) * (self._codes(x) + self.quant_min)
        return straight_through(value.to(x.dtype), x)

    def encode(self, x: Tensor) -> AffineEncoding:
        groups = self.channels or 1
        return AffineEncoding(
            codes=self._codes(x).to(torch.int32),
            scale=self.scale.reshape(-1),
            zero_point=(-self.quant_min).expand(groups),
            offset=torch.zeros(groups, device=x.device),
            axis=0,
            group_sizes=(1,) * groups if self.channels else (x.shape[0] if x.dim() else 1,),
            bits=(int(self.bit_width),) * groups,
        )

    def inference_form(self) -> HalfIntegerQuantizer:  # type: ignore[override]
        return self


def dorefa_weight(bit_width: int, differentiate_max: bool = True) -> nn.Module:
    """DoReFa's weight quantizer, one for the whole tensor.

    k >= 2: 2 quantize_k(tanh(w) / (2 max |tanh(w)|) + 1/2) - 1 (eq. 9), with levels 2 q / (2^k - 1) - 1: no zero.
    k = 1: sign(w) mean |w|, with the gradient of y as that of w (eq. 7 and 8).

    Args:
        bit_width: k, 1..8.
        differentiate_max: see `TanhNormalization`.
    """
    if bit_width == 1:
        return BWN()
    return TransformedQuantizer(TanhNormalization(differentiate_max), HalfIntegerQuantizer(bit_width))


class DoReFaActivation(UniformQuantizer):
    """quantize_k(clip(x, 0, 1)) (eq. 11); WRPN's activations too. The gradient is 1 on [0, 1], ends included.

    Args:
        bit_width: k, 1..8.
        signed: False.
    """

    traits: ClassVar[Traits] = Traits(bit_widths=tuple(range(1, 9)), signed=False)

    def __init__(self, bit_width: int = 4, signed: bool = False) -> None:
        super().__init__(bit_width, signed)

    def step_size(self) -> Tensor:
        return 1 / self.quant_max

    def forward(self, x: Tensor) -> Tensor:
        return quantize_learned(x, self.step_size(), self.quant_min, self.quant_max, "closed")


def quantize_gradient(grad: Tensor, noise: Tensor, bit_width: Tensor | int) -> Tensor:
    """2 G (quantize_k(clip(g / (2 G) + 1/2 + noise / (2^k - 1), 0, 1)) - 1/2) (eq. 12), 0 where G is 0.

    Its mean over noise ~ U(-1/2, 1/2) is g.

    Args:
        grad: g, (N, ...).
        noise: sigma, of its shape.
        bit_width: k.

    Returns:
        shape and dtype of grad, without gradient; G is max |g| over all axes but the first (public code; the paper's
        text takes the whole tensor).
    """
    values = grad.detach().to(noise.dtype)
    largest = values.reshape(len(values), -1).abs().amax(1).reshape(-1, *[1] * (values.dim() - 1))
    steps = 2**bit_width - 1
    unit = values / (2 * torch.where(largest == 0, 1.0, largest)) + 0.5 + noise / steps
    return (2 * largest * (torch.round(unit.clamp(0, 1) * steps) / steps - 0.5)).to(grad.dtype)


@torch.library.custom_op("quantizers::gradient_noise", mutates_args=())
def gradient_noise(like: Tensor, key: Tensor, step: Tensor) -> Tensor:
    """U(-1/2, 1/2) numbers of the counter-based stream (key, step), float32, shape of `like`.

    An operator of its own, so that the compiler leaves the generator alone (see `common.random`).
    """
    index = torch.arange(like.numel(), device=like.device).reshape(like.shape)
    return counter_uniform(key, step, index) - 0.5


@gradient_noise.register_fake
def _(like: Tensor, key: Tensor, step: Tensor) -> Tensor:
    return torch.empty(like.shape, dtype=torch.float32, device=like.device)


class _QuantizeGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, key, step, bit_width):
        ctx.save_for_backward(key, step, bit_width)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        key, step, bit_width = ctx.saved_tensors
        return quantize_gradient(grad, gradient_noise(grad, key, step), bit_width), None, None, None


class DoReFaGradient(nn.Module):
    """The identity, whose backward pass quantizes the gradient: `quantize_gradient` with noise of this step.

    It belongs behind a convolution, where the gradient then enters both of its products (public code).

    Args:
        bit_width: k, 1..16.

    Buffers: bit_width; key and step of the noise, which `draw` sets. None is saved: the module is no part of what is
    trained, and a network with it has the state of one without.
    """

    def __init__(self, bit_width: int = 6) -> None:
        super().__init__()
        if not 1 <= bit_width <= 16:
            raise ValueError(f"bit_width must be in [1, 16], got {bit_width}")
        self.register_buffer("bit_width", torch.tensor(bit_width), persistent=False)
        self.register_buffer("key", torch.tensor(0), persistent=False)
        self.register_buffer("step", torch.tensor(0), persistent=False)

    @torch.no_grad()
    def draw(self, key: int, step: int) -> None:
        """Choose the noise of a step.

        Args:
            key: of the random stream (`stream_key`).
            step: index of the training batch.
        """
        self.key.fill_(key)
        self.step.fill_(step)

    def forward(self, x: Tensor) -> Tensor:
        return _QuantizeGradient.apply(x, self.key, self.step, self.bit_width)
