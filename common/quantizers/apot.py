"""APoT: additive powers of two with a learned clipping level (Li et al. 2020)."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from typing import ClassVar

import torch
from torch import Tensor, nn

from common.quantizers.levels import LevelsQuantizer
from common.quantizers.lsq import positive
from common.quantizers.modules import Traits

CANDIDATES, SAMPLE = 100, 2**16  # of `APoT.calibrate`


def additive_powers(bit_width: int) -> list[Fraction]:
    """The 2^b magnitudes of b bits, ascending from 0: sums of one number from each of several small sets.

    n = floor(b / 2) sets {0, 2^-i, 2^-j, 2^-k}; an odd bit adds the set {0, 2^-l}. The exponents are dealt in turns: a
    first and a second one to each set of four, one to the odd bit, then a third one. b = 3: {0, 1/2, 1/4, 1/16} +
    {0, 1/8}.
    """
    pairs, odd = divmod(bit_width, 2)
    terms: list[list[Fraction]] = [[Fraction(0)] for _ in range(pairs + odd)]
    turns = [*range(pairs), *range(pairs), *range(pairs, pairs + odd), *range(pairs)]
    for exponent, term in enumerate(turns, start=1):
        terms[term].append(Fraction(1, 2**exponent))
    return sorted(map(sum, product(*terms)))


def apot_levels(bit_width: int, signed: bool) -> list[float]:
    """Levels divided by the largest: unsigned the magnitudes of b bits, signed +- those of b - 1 bits.

    Two signed bits are -1, 0, 1.
    """
    magnitudes = additive_powers(bit_width - signed)
    levels = [float(m / magnitudes[-1]) for m in magnitudes]
    return [-level for level in reversed(levels[1:])] + levels if signed else levels


class APoT(LevelsQuantizer):
    """y = alpha * the nearest level of clip(x / alpha, -1, 1), or of clip(x / alpha, 0, 1); alpha is learned.

    dy/dalpha is the level minus x / alpha within the range, the outermost level beyond; dy/dx is 1 within, 0 beyond.
    Weights are normalized first: `TransformedQuantizer(WeightNormalization(), APoT(b))`.

    Args:
        bit_width: b, 2..8.
        signed: weights; unsigned: activations.
        alpha: initial clipping level; default: the public code's 3 for (normalized) weights, 8 for activations (6 in
            its ImageNet code).
        straight: dy/dx = 1 beyond the range too, the "calibrated" gradient of the public code for 2-bit weights and for
            all weights on CIFAR-10.
        start: "constant": alpha stays what it is; "mse": `calibrate` takes the alpha of the least squared error (ours).

    Parameter: scale alpha, scalar.

    Raises:
        ValueError: a width that the class does not have, alpha <= 0, an unknown start.
    """

    traits: ClassVar[Traits] = Traits(bit_widths=tuple(range(2, 9)))

    def __init__(
        self,
        bit_width: int = 4,
        signed: bool = True,
        alpha: float | None = None,
        straight: bool = False,
        start: str = "constant",
    ) -> None:
        levels = apot_levels(bit_width, signed) if bit_width in self.traits.bit_widths else None
        super().__init__(bit_width, signed, levels=levels)
        if alpha is None:
            alpha = 3.0 if signed else 8.0
        if not alpha > 0:
            raise ValueError(f"alpha must be positive, got {alpha}")
        if start not in ("constant", "mse"):
            raise ValueError(f"start must be constant or mse, got {start!r}")
        self.straight, self.start = straight, start
        self.scale = nn.Parameter(torch.tensor(float(alpha)))

    def effective_scale(self) -> Tensor:
        return positive(self.scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x, self.straight)

    @torch.no_grad()
    def calibrate(self, x: Tensor, max_abs: float | None = None) -> None:
        """With start "mse", set alpha to the one of `CANDIDATES` equal parts of max |x| with the least squared error.

        Args:
            x: values of the tensor to be quantized; at most `SAMPLE` of them are looked at.
            max_abs: largest |x| of the whole tensor, if x is a sample.
        """
        if self.start == "constant":
            return
        largest = float(x.abs().max()) if max_abs is None else max_abs
        if largest == 0:
            return
        values = x.flatten()[:: max(1, x.numel() // SAMPLE)].to(self.scale.dtype)
        alphas = [largest * (i + 1) / CANDIDATES for i in range(CANDIDATES)]
        errors = []
        for alpha in alphas:
            self.scale.fill_(alpha)
            errors.append(float((self(values) - values).square().mean()))
        self.scale.fill_(alphas[errors.index(min(errors))])
