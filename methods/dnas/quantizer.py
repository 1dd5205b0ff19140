"""DNAS's edge: one weight at several bit-widths, mixed by a Gumbel-softmax over their logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from common.compression import FLOAT_BITS
from common.quantizers.binary import BWN
from common.quantizers.dorefa import HalfIntegerQuantizer
from common.quantizers.encoding import AffineEncoding
from common.quantizers.planes import PlanesEncoding
from common.quantizers.transformed import TanhNormalization
from common.search.gumbel import gumbel_softmax

WIDTHS = (0, 1, 2, 3, 4, 5, 6, 7, 8, FLOAT_BITS)


class MixedWeight(nn.Module):
    """sum_p m_p q_p(w), m a Gumbel-softmax of the logits theta; the most probable width alone in eval mode.

    A convolution is linear in its weights, so that one with mixed weights has the output that a mixture of one
    convolution per candidate would have. q_0 is 0; q_1 mean |w| sign(w); q_2 to q_8 DoReFa-Net's, times `reach`, which
    gives all candidates the scale of w; q_32 is w.

    Args:
        bit_widths: the candidates.
        theta: their logits, (candidates,), which the weights of a block share.

    Buffers: reach, the largest |tanh w| at the start; bit_widths; noise and temperature of the step, not saved.

    Raises:
        ValueError: no candidates, one twice, or one of another width.
    """

    def __init__(self, bit_widths: Sequence[int], theta: nn.Parameter) -> None:
        super().__init__()
        if not bit_widths or len(set(bit_widths)) < len(bit_widths) or not set(bit_widths) <= set(WIDTHS):
            raise ValueError(f"weight_bit_widths must be different ones of 0 .. 8 and 32, got {list(bit_widths)}")
        self.candidates = tuple(bit_widths)
        self.theta = theta
        self.fixed: int | None = None
        self.normalization = TanhNormalization()
        self.sign = BWN()
        self.grids = nn.ModuleDict({str(width): HalfIntegerQuantizer(width) for width in bit_widths if 2 <= width <= 8})
        self.register_buffer("reach", torch.tensor(1.0))
        self.register_buffer("bit_widths", torch.tensor(self.candidates))
        self.register_buffer("noise", torch.zeros(len(bit_widths)), persistent=False)
        self.register_buffer("temperature", torch.tensor(1.0), persistent=False)

    @property
    def bit_width(self) -> Tensor:
        """The fixed width, or the most probable one."""
        return self.bit_widths[self.theta.argmax()] if self.fixed is None else torch.tensor(self.fixed)

    @torch.no_grad()
    def calibrate(self, w: Tensor, max_abs: float | None = None) -> None:
        """Take the scale of the start weights; `max_abs` is not needed."""
        largest = torch.tanh(w).abs().max()
        self.reach.copy_(torch.where(largest == 0, 1.0, largest))
        for width, grid in self.grids.items():
            grid.scale.copy_(2 * self.reach / (2 ** int(width) - 1))

    def fix(self, bit_width: int) -> None:
        """End the mixture: this candidate alone from now on.

        Raises:
            ValueError: it is none.
        """
        if bit_width not in self.candidates:
            raise ValueError(f"bit_width must be one of {self.candidates}, got {bit_width}")
        self.fixed = bit_width

    def mask(self) -> Tensor:
        """m of the step, (candidates,)."""
        return gumbel_softmax(self.theta, self.noise, self.temperature)

    def quantized(self, w: Tensor, bit_width: int) -> Tensor:
        """q_p(w), shape and dtype of w."""
        if bit_width == FLOAT_BITS:
            return w
        if bit_width == 0:
            return torch.zeros_like(w)
        if bit_width == 1:
            return self.sign(w)
        return self.grids[str(bit_width)](self.reach * self.normalization(w))

    def forward(self, w: Tensor) -> Tensor:
        if self.fixed is not None:
            return self.quantized(w, self.fixed)
        if self.training:
            mask = self.mask()
        else:
            mask = (torch.arange(len(self.candidates), device=w.device) == self.theta.argmax()).to(w.dtype)
        total = mask[0] * self.quantized(w, self.candidates[0])
        for index, width in enumerate(self.candidates[1:], 1):
            total = total + mask[index] * self.quantized(w, width)
        return total

    @torch.no_grad()
    def encode(self, w: Tensor) -> AffineEncoding | PlanesEncoding:
        """Codes of w at the present width.

        Raises:
            ValueError: it is 32.
        """
        width = int(self.bit_width)
        if width == FLOAT_BITS:
            raise ValueError("float weights have no codes")
        if width == 1:
            return self.sign.encode(w)
        if width:
            return self.grids[str(width)].encode(self.reach * self.normalization(w))
        none = torch.zeros(1, device=w.device)
        return AffineEncoding(torch.zeros_like(w, dtype=torch.int32), none + 1, none, none, 0, (w.shape[0],), (0,))
