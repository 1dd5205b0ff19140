"""Binary weights and activations: the sign with its gradients, BinaryConnect, BWN, BNN and XNOR-Net's scales.

The sign of zero is +1 throughout. After an optimizer step the latent weights are clipped (`clip_weights_`), otherwise
those beyond the range of the surrogate never come back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from common.quantizers.functional import recomputed
from common.quantizers.modules import Traits
from common.quantizers.planes import PlanesQuantizer, straight_through
from common.random import counter_uniform

GRADIENTS = ("ste", "xnor")


def sign(x: Tensor) -> Tensor:
    """+1 where x >= 0, else -1; dtype of x."""
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


def sign_ste(x: Tensor, bound: float | None = 1.0) -> Tensor:
    """`sign` with gradient 1 where |x| <= bound, ends included, and 0 elsewhere (BNN); None: 1 everywhere."""
    return recomputed(_sign_ste, x, bound)


def _sign_ste(x: Tensor, bound: float | None) -> Tensor:
    return straight_through(sign(x), x, None if bound is None else x.detach().abs() <= bound)


def hard_sigmoid(x: Tensor) -> Tensor:
    """clip((x + 1) / 2, 0, 1): BinaryConnect's probability of +1. No gradient."""
    return ((x.detach() + 1) / 2).clamp(0, 1)


def stochastic_sign_ste(x: Tensor, uniform: Tensor) -> Tensor:
    """+1 with probability hard_sigmoid(x), else -1; gradient 1. Its mean is clip(x, -1, 1).

    Args:
        x: any shape.
        uniform: independent numbers of the open interval (0, 1), shape of x.
    """
    return straight_through(torch.where(uniform < hard_sigmoid(x), 1.0, -1.0).to(x.dtype), x)


def glorot_bound(weight_shape: Sequence[int]) -> float:
    """sqrt(1.5 / (fan_in + fan_out)) of a linear or convolution weight (out, in, ...): BinaryConnect's H.

    The learning rate of the layer is multiplied by its inverse.
    """
    return math.sqrt(1.5 / (math.prod(weight_shape[2:]) * (weight_shape[0] + weight_shape[1])))


@torch.no_grad()
def clip_weights_(weight: Tensor, bound: float = 1.0, center: bool = False) -> None:
    """Clip latent weights to [-bound, bound], in place.

    Args:
        weight: (out, in, ...).
        bound: H.
        center: first subtract the mean over the input channels at every kernel position (XNOR-Net's code).
    """
    if center:
        weight.sub_(weight.mean(1, keepdim=True))
    weight.clamp_(-bound, bound)


def bwn_scale(weight: Tensor, per_channel: bool = True) -> Tensor:
    """BWN's alpha: mean |w| of every output channel, (out, 1, ...), or of the tensor, (1, 1, ...). No gradient."""
    over = range(1 if per_channel else 0, weight.dim())
    return weight.detach().abs().mean(tuple(over), keepdim=True)


def bwn(weight: Tensor, scale: Tensor, gradient: str = "ste") -> Tensor:
    """scale * sign(weight), the least squares fit for scale = `bwn_scale(weight)` (XNOR-Net, section 3.1).

    Args:
        weight: (out, in, ...).
        scale: one per output channel or one for all, with as many dimensions as weight; a constant.
        gradient: "ste" passes it through; "xnor" is the paper's rule, 1/n + scale where |w| <= 1 and 1/n elsewhere,
            with n weights under one scale.

    Raises:
        ValueError: another gradient.
    """
    if gradient not in GRADIENTS:
        raise ValueError(f"gradient must be one of {GRADIENTS}, got {gradient!r}")
    value = scale * sign(weight)
    if gradient == "ste":
        return straight_through(value, weight)
    slope = torch.where(weight.detach().abs() <= 1, scale, 0.0) + scale.numel() / weight.numel()
    return straight_through(value, weight, slope)


def activation_scale(
    x: Tensor,
    kernel_size: tuple[int, int],
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
) -> Tensor:
    """XNOR-Net's K: mean |x| of the window of every output position, padding counted as zeros; (N, 1, H', W').

    The mean over the channels is taken once, then a box filter: windows overlap (XNOR-Net, section 3.2).

    Args:
        x: (N, C, H, W). The gradient reaches it.
        kernel_size, stride, padding, dilation: of the convolution.
    """
    box = torch.full((1, 1, *kernel_size), 1 / math.prod(kernel_size), dtype=x.dtype, device=x.device)
    return F.conv2d(x.abs().mean(1, keepdim=True), box, None, stride, padding, dilation)


def xnor_conv2d(
    x: Tensor,
    weight: Tensor,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    box_scale: bool = True,
) -> Tensor:
    """(sign(x) * weight) K: XNOR-Net's convolution, (N, out, H', W'); the border is padded with zeros.

    Args:
        x: (N, C, H, W), real values; the gradient of its sign is that of `sign_ste`.
        weight: already quantized, such as by `bwn`.
        stride, padding, dilation, groups: of the convolution.
        box_scale: with K; the authors' training code leaves it out.
    """
    y = F.conv2d(sign_ste(x), weight, None, stride, padding, dilation, groups)
    if not box_scale:
        return y
    return y * activation_scale(x, (weight.shape[2], weight.shape[3]), stride, padding, dilation)


def xnor_linear(x: Tensor, weight: Tensor, box_scale: bool = True) -> Tensor:
    """`xnor_conv2d` of a linear layer: x (..., in), weight (out, in); K is mean |x| of every row of x."""
    y = F.linear(sign_ste(x), weight)
    return y * x.abs().mean(-1, keepdim=True) if box_scale else y


class SignQuantizer(PlanesQuantizer):
    """y = sign(x): BNN's weights and activations, XNOR-Net's activations.

    Args:
        bit_width, signed: 1, True.
        bound: the gradient is 1 where |x| <= bound, else 0; None: 1 everywhere.
    """

    traits: ClassVar[Traits] = Traits(bit_widths=(1,), unsigned=False, zero_is_level=False)

    def __init__(self, bit_width: int = 1, signed: bool = True, bound: float | None = 1.0) -> None:
        super().__init__(bit_width, signed)
        self.bound = bound

    def forward(self, x: Tensor) -> Tensor:
        return sign_ste(x, self.bound)

    def calibrate(self, x: Tensor, max_abs: float | None = None) -> None:
        """Nothing to do: the levels are -1 and 1."""


class BinaryConnect(PlanesQuantizer):
    """H sign(w), or in training H times a random sign whose mean is clip(w / H, -1, 1) (Courbariaux et al. 2015).

    The gradient is 1; `clip_weights_(weight, H)` belongs after every optimizer step.

    Args:
        bit_width, signed: 1, True.
        magnitude: H, 1 or `glorot_bound(weight.shape)`.
        shape: of the weight, for random signs; None: the rule of eval mode in training too.

    Buffers: uniform, the random numbers of this step, which `draw` fills in; not saved. At first they are 1/2, which
    gives the sign.
    """

    traits: ClassVar[Traits] = Traits(bit_widths=(1,), unsigned=False, zero_is_level=False)

    def __init__(
        self, bit_width: int = 1, signed: bool = True, magnitude: float = 1.0, shape: Sequence[int] | None = None
    ) -> None:
        super().__init__(bit_width, signed)
        if not magnitude > 0:
            raise ValueError(f"magnitude must be positive, got {magnitude}")
        self.magnitude, self.stochastic = magnitude, shape is not None
        self.scales.fill_(magnitude)
        self.register_buffer("uniform", torch.full(tuple(shape or (0,)), 0.5), persistent=False)

    @torch.no_grad()
    def draw(self, key: int, step: int) -> None:
        """Fill `uniform` with the numbers of a step; outside compiled code.

        Args:
            key: of the random stream (`stream_key`).
            step: index of the training batch.
        """
        index = torch.arange(self.uniform.numel(), device=self.uniform.device).reshape(self.uniform.shape)
        self.uniform.copy_(counter_uniform(torch.tensor(key, device=index.device), step, index))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.stochastic:
            signs = stochastic_sign_ste(x / self.magnitude, self.uniform)
        else:
            signs = sign(x)
        return straight_through(self.magnitude * signs, x)

    def calibrate(self, x: Tensor, max_abs: float | None = None) -> None:
        """Nothing to do: the levels are -H and H."""


class BWN(PlanesQuantizer):
    """Binary Weight Network: alpha sign(w), alpha = mean |w| per output channel (Rastegari et al. 2016).

    In training alpha follows the weights; eval mode keeps that of the last training step or of `calibrate`.

    Args:
        bit_width, signed: 1, True.
        channels: number of output channels; None: one alpha for the whole tensor.
        gradient: "ste" or "xnor", see `bwn`.
    """

    traits: ClassVar[Traits] = Traits(bit_widths=(1,), unsigned=False, per_channel=True, zero_is_level=False)

    def __init__(
        self, bit_width: int = 1, signed: bool = True, channels: int | None = None, gradient: str = "ste"
    ) -> None:
        super().__init__(bit_width, signed, channels)
        if gradient not in GRADIENTS:
            raise ValueError(f"gradient must be one of {GRADIENTS}, got {gradient!r}")
        self.gradient = gradient

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calibrate(x)
        return bwn(x, self.per_group(self.scales, x).to(x.dtype), self.gradient)

    @torch.no_grad()
    def calibrate(self, x: Tensor, max_abs: float | None = None) -> None:
        """alpha = mean |x| per group; `max_abs` is not needed."""
        self.scales.copy_(self.rows(x).abs().mean(1, keepdim=True))
