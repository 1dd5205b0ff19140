"""DuQ that a schedule switches on and narrows."""

from __future__ import annotations

import torch
from torch import Tensor

from common.compression import FLOAT_BITS
from common.quantizers.duq import DuQ


class GradualDuQ(DuQ):
    """`DuQ` of changing width; at 32 bits it hands on its input.

    Args:
        bit_width, signed, offset: see `DuQ`.
        fitted: start at the least squared error instead of at the paper's range (see `calibrate`).

    Buffer: active, whether it quantizes.
    """

    def __init__(self, bit_width: int = 4, signed: bool = True, offset: float = 0.0, fitted: bool = False) -> None:
        super().__init__(bit_width, signed, offset)
        self.fitted = fitted
        self.register_buffer("active", torch.tensor(True))

    @property
    def bit_width(self) -> Tensor:  # type: ignore[override]
        return torch.where(self.active, self.grid.bit_width, FLOAT_BITS)

    @torch.no_grad()
    def set_bit_width(self, bit_width: int) -> None:
        """2 .. 8, or 32: off. What is learned stays as it is."""
        self.active.fill_(bit_width < FLOAT_BITS)
        if bit_width < FLOAT_BITS:
            self.grid.set_bit_width(bit_width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(self.active, super().forward(x), x)

    def calibrate(self, x: Tensor, max_abs: float | None = None) -> None:
        if self.fitted:
            self.fit_range(x)
        else:
            super().calibrate(x, max_abs)
