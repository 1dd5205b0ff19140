"""PACT: activations with a learned clipping level (Choi et al. 2018)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from common.quantizers.functional import least_squares_level, recomputed
from common.quantizers.lsq import UniformQuantizer, keep_where, positive, quantize_learned
from common.quantizers.modules import Traits

MIN_ALPHA = 1e-3


def pact_clip(x: Tensor, alpha: Tensor) -> Tensor:
    """y = 0.5 (|x| - |x - alpha| + alpha) = clip(x, 0, alpha) (eq. 1).

    dy/dx is 1 on [0, alpha), dy/dalpha 1 on [alpha, inf); 0 elsewhere. (The absolute values would give 0.5 at 0 and
    alpha, and zeros are common.)
    """
    return torch.where(x < 0, 0.0, torch.where(x >= alpha, alpha, x))


def pact(x: Tensor, alpha: Tensor, steps: Tensor) -> Tensor:
    """y = round(clip(x, 0, alpha) n / alpha) alpha / n with the gradients of `pact_clip`: alpha is a constant in the
    rounding (eq. 2 and 3).

    Args:
        x: real values, any shape, floating dtype. The arithmetic runs in the dtype of `alpha`.
        alpha: clipping level > 0, scalar.
        steps: n = 2^k - 1, scalar.

    Returns:
        shape and dtype of x.
    """
    if torch.compiler.is_compiling():
        return recomputed(_pact_plain, x, alpha, steps)
    return _PactEager.apply(x, alpha, steps)


def _quantized(x: Tensor, alpha: Tensor, steps: Tensor) -> Tensor:
    scale = alpha / steps
    return torch.div(x.to(scale.dtype), scale).round_().clamp_min_(0).clamp_max_(steps).mul_(scale)


def _pact_plain(x: Tensor, alpha: Tensor, steps: Tensor) -> Tensor:
    clipped = pact_clip(x.to(alpha.dtype), alpha)
    return (_quantized(x.detach(), alpha.detach(), steps) + (clipped - clipped.detach())).to(x.dtype)


class _PactEager(torch.autograd.Function):
    """The same in eager mode: keeps x alone and finds out again where it was clipped."""

    @staticmethod
    def forward(ctx, x, alpha, steps):
        ctx.save_for_backward(x, alpha)
        return _quantized(x, alpha, steps).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        x, alpha = ctx.saved_tensors
        values, grad = x.to(alpha.dtype), grad.to(alpha.dtype)
        above = keep_where(values - alpha, grad)
        grad_x = keep_where(values, torch.sub(grad, above)).to(x.dtype)
        return grad_x, above.sum() if ctx.needs_input_grad[1] else None, None


class PACT(UniformQuantizer):
    """clip(x, 0, alpha) on 2^k levels, alpha learned; it takes the place of a ReLU or follows one.

    The paper decays alpha like a weight (L2); that is the optimizer's business. An alpha that training pushes below
    1e-3 acts as 1e-3 (our choice).

    Args:
        bit_width: k, 1..8.
        signed: False.
        alpha: initial clipping level, above typical activations: too small stalls, too large decays slowly. 8 is that
            of public code, others take 10.
        calibrated: let alpha see the rounding error inside the range too: dy/dalpha = (y - x) / alpha there (SAT, Jin
            et al. 2019); the paper has 0.
        start: "constant": alpha begins as given; "mse": `calibrate` takes the one of the least squared error (ours).

    Parameter: alpha, scalar.

    Raises:
        ValueError: a width that the class does not have, a signed range, alpha <= 0, an unknown start.
    """

    traits: ClassVar[Traits] = Traits(bit_widths=tuple(range(1, 9)), signed=False)

    def __init__(
        self,
        bit_width: int = 4,
        signed: bool = False,
        alpha: float = 8.0,
        calibrated: bool = False,
        start: str = "constant",
    ) -> None:
        super().__init__(bit_width, signed)
        if not alpha > 0:
            raise ValueError(f"alpha must be positive, got {alpha}")
        if start not in ("constant", "mse"):
            raise ValueError(f"start must be constant or mse, got {start!r}")
        self.calibrated, self.start = calibrated, start
        self.alpha = nn.Parameter(torch.tensor(float(alpha)))

    @torch.no_grad()
    def calibrate(self, x: Tensor, max_abs: float | None = None) -> None:
        """With start "mse", set alpha by `least_squares_level` of the activations x; the paper leaves it as it is."""
        largest = float(x.max()) if max_abs is None else max_abs
        if self.start == "mse" and largest > 0:
            steps = self.quant_max
            self.alpha.fill_(least_squares_level(lambda v, a: pact(v, v.new_tensor(a), steps), x, largest))

    def step_size(self) -> Tensor:
        return positive(self.alpha, MIN_ALPHA) / self.quant_max

    def forward(self, x: Tensor) -> Tensor:
        if self.calibrated:
            return quantize_learned(x, self.step_size(), self.quant_min, self.quant_max)
        return pact(x, positive(self.alpha, MIN_ALPHA), self.quant_max)
