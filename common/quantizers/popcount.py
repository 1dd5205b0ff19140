"""Dot products of signs by XNOR and population count, on words of 64 signs.

With bits 1 for +1 and 0 for -1, sum_j w_j x_j = -n + 2 popcount(xnor(w, x)) over n signs. Unused bits of the last word
are 0 in both operands; they are counted as disagreements of XOR, that is not at all. Results are exact integers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from common.graph.layers import Layer

WORD_BITS = 64
PADDINGS = (-1, 0, 1)


def pack_signs(x: Tensor) -> Tensor:
    """Signs along the last axis as words: (..., n) real values to int64 (..., ceil(n / 64)).

    Value j is bit j % 64 of word j // 64: 1 where it is >= 0. The bits beyond n are 0.
    """
    bits = F.pad((x >= 0).long(), (0, -x.shape[-1] % WORD_BITS)).unflatten(-1, (-1, WORD_BITS))
    return (bits << torch.arange(WORD_BITS, device=x.device)).sum(-1)


def unpack_signs(words: Tensor, n: int) -> Tensor:
    """Inverse of `pack_signs`: +1 and -1, float32 (..., n)."""
    bits = (words.unsqueeze(-1) >> torch.arange(WORD_BITS, device=words.device)) & 1
    return (2 * bits.flatten(-2)[..., :n] - 1).float()


def popcount(words: Tensor) -> Tensor:
    """Number of bits that are 1 in every int64 word, int64 of the same shape."""
    # Sums of 1, 2, 4 and 8 bits side by side. The shifts copy the sign bit, which the masks take away again.
    words = words - ((words >> 1) & 0x5555555555555555)
    words = (words & 0x3333333333333333) + ((words >> 2) & 0x3333333333333333)
    words = (words + (words >> 4)) & 0x0F0F0F0F0F0F0F0F
    return (words * 0x0101010101010101) >> 56


def xnor_popcount(a: Tensor, b: Tensor, n: int) -> Tensor:
    """How many of n signs agree: popcount(xnor(a, b)) of packed operands (..., words), which broadcast."""
    return n - popcount(a ^ b).sum(-1)


def sign_dot(a: Tensor, b: Tensor, n: int) -> Tensor:
    """Dot product of n packed signs: -n + (popcount(xnor(a, b)) << 1), int64."""
    return -n + (xnor_popcount(a, b, n) << 1)


def sign_linear(x: Tensor, weight: Tensor) -> Tensor:
    """sign(x) sign(weight)^T by XNOR and popcount: (..., in), (out, in) to int64 (..., out)."""
    n = weight.shape[1]
    words, kernels = pack_signs(x).unsqueeze(-2), pack_signs(weight)
    disagreements = sum(popcount(words[..., i] ^ kernels[:, i]) for i in range(kernels.shape[1]))
    return n - 2 * disagreements


def sign_conv2d(
    x: Tensor,
    weight: Tensor,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    padding_value: int = 0,
) -> Tensor:
    """Convolution of sign(x) with sign(weight) by XNOR and popcount, int64 (N, out, H', W').

    The channels of a pixel are packed into words once; every kernel position adds its disagreements. The border is
    padded with the bit of `padding_value`; for zeros, with -1, whose products are then taken out of the result.

    Args:
        x: (N, C, H, W).
        weight: (out, C / groups, kh, kw).
        stride, padding, dilation, groups: of the convolution.
        padding_value: what the border holds: 0, -1 or 1.

    Raises:
        ValueError: another padding value.
    """
    if padding_value not in PADDINGS:
        raise ValueError(f"padding_value must be one of {PADDINGS}, got {padding_value}")
    (sh, sw), (ph, pw), (dh, dw) = map(_pair, (stride, padding, dilation))
    out_channels, channels, kh, kw = weight.shape
    border = 1.0 if padding_value == 1 else -1.0
    padded = F.pad(torch.where(x >= 0, 1.0, -1.0), (pw, pw, ph, ph), value=border)
    height = (padded.shape[2] - dh * (kh - 1) - 1) // sh + 1
    width = (padded.shape[3] - dw * (kw - 1) - 1) // sw + 1
    pixels = pack_signs(padded.unflatten(1, (groups, channels)).movedim(2, -1))  # (N, groups, H, W, words)
    kernels = pack_signs(weight.movedim(1, -1)).unflatten(0, (groups, -1))  # (groups, out / groups, kh, kw, words)
    disagreements = torch.zeros(
        len(x), groups, out_channels // groups, height, width, dtype=torch.int64, device=x.device
    )
    for i in range(kh):
        for j in range(kw):
            rows = slice(i * dh, i * dh + sh * (height - 1) + 1, sh)
            columns = slice(j * dw, j * dw + sw * (width - 1) + 1, sw)
            window = pixels[:, :, rows, columns]
            for word in range(kernels.shape[-1]):
                kernel = kernels[:, :, i, j, word, None, None]
                disagreements += popcount(window[:, :, None, ..., word] ^ kernel)
    y = channels * kh * kw - 2 * disagreements.flatten(1, 2)
    if padding_value:
        return y
    # Signs of the weights that lie on the border, summed: the same for all images. Exact in float64.
    outside = F.pad(torch.zeros(1, 1, *x.shape[2:], dtype=torch.float64, device=x.device), (pw, pw, ph, ph), value=1.0)
    taps = torch.where(weight >= 0, 1.0, -1.0).double().sum(1, keepdim=True)
    return y + F.conv2d(outside, taps, None, (sh, sw), 0, (dh, dw)).long()


@dataclass(frozen=True)
class OperationCounts:
    """What a convolution or linear layer of signs costs for one image.

    Attributes:
        macs: multiply-accumulates of the float layer.
        words: word operations: an XNOR, a population count and an addition each.
        multiplications: float multiplications of the results by alpha, and by K where there is one.
        scale_macs: additions and multiply-accumulates for K: the mean over the channels, the box filter.
    """

    macs: int
    words: int
    multiplications: int
    scale_macs: int

    @property
    def speedup(self) -> float:
        """macs over the sum of the others."""
        return self.macs / (self.words + self.multiplications + self.scale_macs)


def operation_counts(layer: Layer, box_scale: bool = True, word_bits: int = WORD_BITS) -> OperationCounts:
    """Operations of one image through an XNOR-Net layer, all calls together.

    Args:
        layer: of the layer table.
        box_scale: with XNOR-Net's K.
        word_bits: signs per word; the channels of a group begin a new word at every kernel position.
    """
    taps = math.prod(layer.kernel_size)
    words_per_output = taps * -(-(layer.in_channels // layer.groups) // word_bits)
    inputs = sum(map(math.prod, layer.input_shapes))
    outputs = sum(map(math.prod, layer.output_shapes))
    box = 0 if layer.kind == "linear" else taps * outputs // layer.out_channels
    return OperationCounts(
        macs=layer.num_macs,
        words=words_per_output * outputs,
        multiplications=2 * outputs if box_scale else outputs,
        scale_macs=inputs + box if box_scale else 0,
    )


def ideal_speedup(channels: int, taps: int, word_bits: int = WORD_BITS) -> float:
    """word_bits c k / (c k + word_bits): XNOR-Net's speedup of a convolution over c channels and k kernel positions.

    It counts c k / word_bits word operations and one float multiplication per output, nothing for K.
    """
    terms = channels * taps
    return word_bits * terms / (terms + word_bits)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value
