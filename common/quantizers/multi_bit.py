"""Multi-bit quantizers, x ~ sum_m v_m B_m: greedy and Lloyd planes (KCNN), LQ-Nets, ABC-Net.

They differ in where the planes and the scales come from. Planes are constants of the backward pass; how the gradient
passes to x is said at each.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.quantizers.functional import recomputed
from common.quantizers.levels import LevelsEncoding, LevelsQuantizer
from common.quantizers.modules import Quantizer, Traits
from common.quantizers.planes import (
    PlanesEncoding,
    PlanesQuantizer,
    check_width,
    level_middles,
    nearest_codes,
    nearest_levels,
    plane_levels,
    plane_scales,
    refitted_scales,
    sign_codes,
    straight_through,
)

NORMAL_QUANTILE_75 = 0.6745  # as LQ-Nets' code has it
MAX_ITERATIONS = 50


# -- greedy start and Lloyd iterations (KCNN) --------------------------------------------------------------------------


def greedy_scales(x: Tensor, planes: int) -> Tensor:
    """Scales of the greedy start, (G, n) -> (G, planes): plane after plane the sign and mean |.| of what is left."""
    scales = []
    for _ in range(planes):
        scales.append(x.abs().mean(1))
        x = x - scales[-1].unsqueeze(1) * torch.where(x >= 0, 1.0, -1.0).to(x.dtype)
    return torch.stack(scales, 1)


def lloyd_scales(x: Tensor, scales: Tensor) -> Tensor:
    """One Lloyd step: every value takes the nearest level, then the scales are fitted. The error never grows.

    Args:
        x: (G, n).
        scales: (G, M).

    Returns:
        (G, M), none negative: a plane is flipped where the fit asks for it.
    """
    return refitted_scales(x, scales).abs()


def fit_planes(x: Tensor, planes: int, iterations: int = MAX_ITERATIONS) -> Tensor:
    """Scales (G, M) of the greedy start after Lloyd steps until nothing changes, at most `iterations`."""
    scales = greedy_scales(x, planes)
    for _ in range(iterations):
        previous, scales = scales, lloyd_scales(x, scales)
        if torch.equal(scales, previous):
            break
    return scales


class LloydPlanes(PlanesQuantizer):
    """KCNN's quantizer: scales per kernel from a greedy start and Lloyd iterations.

    Every forward pass in training takes one Lloyd step from the present scales, then quantizes to the nearest levels;
    eval mode keeps the scales. The gradient passes straight through (`clipped`: not beyond the largest level).
    Arguments as in `PlanesQuantizer`.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.scales.copy_(lloyd_scales(self.rows(x), self.scales))
        return super().forward(x)

    @torch.no_grad()
    def calibrate(self, x: Tensor, max_abs: float | None = None) -> None:
        """`fit_planes` of x; `max_abs` is not needed."""
        self.scales.copy_(fit_planes(self.rows(x), self.scales.shape[1]))


# -- LQ-Nets -----------------------------------------------------------------------------------------------------------


def qem_step(x: Tensor, basis: Tensor, low: int = -1, ridge: float = 0.0) -> Tensor:
    """One step of quantization error minimisation (LQ-Nets, algorithm 1): nearest levels, then the basis that fits.

    Args:
        x: (G, n), or any shape.
        basis: v, (G, M), or (M,).
        low: what a bit of 0 stands for: -1 for weights, 0 for activations.
        ridge: eps of (B^T B + eps I)^-1 (B^T x + eps v).

    Returns:
        the new basis. Where the fit leaves it open (planes that coincide, values that are all zero), it stays as near
        to the present one as it can.
    """
    return refitted_scales(x, basis, low, basis, ridge)


def fit_basis(x: Tensor, basis: Tensor, low: int = -1, iterations: int = MAX_ITERATIONS) -> Tensor:
    """`qem_step` until nothing changes, at most `iterations` times."""
    for _ in range(iterations):
        previous, basis = basis, qem_step(x, basis, low)
        if torch.equal(basis, previous):
            break
    return basis


class LQNetsWeights(PlanesQuantizer):
    """LQ-Nets' weight quantizer: one basis per output channel, codes in {-1, 1}^M.

    A forward pass in training quantizes with the present basis, then moves it towards the least squares fit:
    v <- 0.9 v + 0.1 v_new. Eval mode keeps it. The gradient passes straight through.

    Args:
        bit_width, signed, channels: as in `PlanesQuantizer`.
        fan_out: kernel area times output channels, for the first basis v_m = 2^m 0.6745 sqrt(2 / fan_out) / 2^(M-1);
            None: weights of standard deviation 1.
        momentum: 0.9.
        ridge: eps of the fit.
    """

    def __init__(
        self,
        bit_width: int = 2,
        signed: bool = True,
        channels: int | None = None,
        fan_out: int | None = None,
        momentum: float = 0.9,
        ridge: float = 1e-4,
    ) -> None:
        super().__init__(bit_width, signed, channels)
        self.momentum, self.ridge = momentum, ridge
        deviation = math.sqrt(2 / fan_out) if fan_out else 1.0
        self.scales.copy_(NORMAL_QUANTILE_75 * deviation * 2.0 ** torch.arange(1 - bit_width, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.training:
            self.scales.lerp_(qem_step(self.rows(x), self.scales, -1, self.ridge), 1 - self.momentum)
        return y

    @torch.no_grad()
    def calibrate(self, x: Tensor, max_abs: float | None = None) -> None:
        """`fit_basis` of x from the present basis; `max_abs` is not needed."""
        self.scales.copy_(fit_basis(self.rows(x), self.scales))


class LQNetsActivations(Quantizer):
    """LQ-Nets' activation quantizer: one basis for the tensor, codes in {0, 1}^M; behind a ReLU.

    Training as in `LQNetsWeights`, without a ridge; an entry that the fit would make negative becomes 0 (ours: the
    levels stay at or above 0). The gradient is 1 where 0 < x < the largest level, else 0.

    Args:
        bit_width: M.
        signed: False.
        momentum: 0.9.

    Buffers: bit_width; basis (M,), at first v_m = 2^m 2 0.6745 / (2^M - 1).
    """

    traits: ClassVar[Traits] = Traits(bit_widths=tuple(range(1, 9)), signed=False)

    def __init__(self, bit_width: int = 2, signed: bool = False, momentum: float = 0.9) -> None:
        super().__init__()
        check_width(type(self), bit_width, signed)
        self.momentum = momentum
        self.register_buffer("bit_width", torch.tensor(bit_width))
        self.register_buffer("basis", 2.0 ** torch.arange(bit_width) * 2 * NORMAL_QUANTILE_75 / (2**bit_width - 1))

    def levels(self) -> Tensor:
        """Value of every code, (2^M,)."""
        return plane_levels(self.basis, 0)

    def forward(self, x: Tensor) -> Tensor:
        levels = self.levels()
        # What the backward pass needs of a buffer that this pass changes has to come from an operator that compilers do
        # not repeat, such as a sort: they would repeat it on the changed buffer.
        y = recomputed(_nearest_between, x, levels, levels.sort().values[-1])
        if self.training:
            self.basis.lerp_(qem_step(self._values(x), self.basis, 0), 1 - self.momentum).clamp_(min=0)
        return y

    def _values(self, x: Tensor) -> Tensor:
        return x.detach().to(self.basis.dtype)

    @torch.no_grad()
    def calibrate(self, x: Tensor, max_abs: float | None = None) -> None:
        """`fit_basis` of x from the present basis; `max_abs` is not needed."""
        self.basis.copy_(fit_basis(self._values(x), self.basis, 0).clamp(min=0))

    def encode(self, x: Tensor) -> LevelsEncoding:
        levels = self.levels()
        codes = nearest_codes(self._values(x), levels).to(torch.int32)
        return LevelsEncoding(codes, levels.float(), 0, (x.shape[0],), (len(self.basis),))

    @torch.no_grad()
    def inference_form(self) -> LevelsQuantizer:  # type: ignore[override]
        """The plain table of the present levels, independent of this module."""
        levels = self.levels().float().unique()  # planes that coincide or vanish leave fewer of them
        thresholds = level_middles(levels)
        if len(levels) == 1:  # a table has at least two: one that is never reached
            levels, thresholds = torch.cat([levels, levels + 1]), torch.full_like(levels, torch.inf)
        return LevelsQuantizer(int(self.bit_width), levels=levels, thresholds=thresholds).to(levels.device)


def _nearest_between(x: Tensor, levels: Tensor, top: Tensor) -> Tensor:
    values = x.detach().to(levels.dtype)
    return straight_through(nearest_levels(values, levels).to(x.dtype), x, (values > 0) & (values < top))


# -- ABC-Net -----------------------------------------------------------------------------------------------------------


def abc_shifts(planes: int) -> Tensor:
    """u_i = -1 + 2 (i - 1) / (M - 1); 0 for one plane (ABC-Net, section 3.1)."""
    return torch.linspace(-1, 1, planes) if planes > 1 else torch.zeros(1)


def abc_planes(x: Tensor, center: Tensor, spread: Tensor, shifts: Tensor) -> Tensor:
    """B_i = sign(x - center + u_i spread), (M, G, n).

    Args:
        x: (G, n).
        center, spread: mean and standard deviation, (G, 1).
        shifts: u, (M,).
    """
    shifted = x - center + shifts.reshape(-1, 1, 1) * spread
    return torch.where(shifted >= 0, 1.0, -1.0).to(x.dtype)


class ABCNetWeights(PlanesQuantizer):
    """ABC-Net's weights: planes at fixed shifts of mean and standard deviation, scales by least squares.

    In training all three follow the weights; eval mode keeps them. As the planes come from thresholds instead of the
    nearest levels, quantizing twice may change values whose level lies beyond a threshold (weights far from mean 0);
    `inference_form` is the grid of nearest levels. With g the upstream gradient the gradient is g sum_m v_m: each plane
    passes v_m g straight through.

    Args:
        bit_width, signed, channels: as in `PlanesQuantizer`; the paper has one set of scales per layer.
        clipped: pass no gradient where |w| > 1.

    Buffers: scales v (G, M), center and spread (G, 1), shifts (M,).
    """

    def __init__(
        self, bit_width: int = 3, signed: bool = True, channels: int | None = None, clipped: bool = False
    ) -> None:
        super().__init__(bit_width, signed, channels, clipped)
        self.register_buffer("center", torch.zeros(channels or 1, 1))
        self.register_buffer("spread", torch.ones(channels or 1, 1))
        self.register_buffer("shifts", abc_shifts(bit_width))

    def codes(self, rows: Tensor) -> Tensor:
        return sign_codes(abc_planes(rows, self.center, self.spread, self.shifts))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calibrate(x)
        return super().forward(x)

    def values(self, rows: Tensor) -> Tensor:
        return plane_levels(self.scales).gather(1, self.codes(rows))

    def _slope(self, x: Tensor) -> Tensor:
        total = self.per_group(self.scales.sum(1), x).to(x.dtype)
        return torch.where(x.detach().abs() <= 1, total, 0.0) if self.clipped else total

    @torch.no_grad()
    def calibrate(self, x: Tensor, max_abs: float | None = None) -> None:
        """Mean, standard deviation (of the population) and scales of x; `max_abs` is not needed."""
        rows = self.rows(x)
        self.center.copy_(rows.mean(1, keepdim=True))
        self.spread.copy_(rows.std(1, correction=0, keepdim=True))
        self.scales.copy_(plane_scales(rows, abc_planes(rows, self.center, self.spread, self.shifts)))


def abc_activation(x: Tensor, scales: Tensor, shifts: Tensor) -> Tensor:
    """sum_n beta_n A_n with A_n = +1 where clip(x + v_n, 0, 1) >= 1/2, else -1 (ABC-Net, section 3.2).

    Args:
        x: any shape.
        scales, shifts: beta and v, (N,).

    Returns:
        shape and dtype of x. With upstream gradient g and the indicator's gradient taken as 1 where 0 <= x + v_n <= 1:
        dx = g sum_n beta_n 1[n], dv_n = beta_n sum g 1[n], dbeta_n = sum g A_n.
    """
    return recomputed(_abc_activation, x, scales, shifts)


def _abc_activation(x: Tensor, scales: Tensor, shifts: Tensor) -> Tensor:
    total, values = torch.zeros_like(x, dtype=scales.dtype), x.to(scales.dtype)
    for n in range(len(scales)):
        shifted = values + shifts[n]
        inside = ((shifted >= 0) & (shifted <= 1)).detach()
        plane = torch.where(shifted >= 0.5, 1.0, -1.0).to(shifted.dtype)
        total = total + scales[n] * straight_through(plane, shifted, inside)
    return total.to(x.dtype)


class ABCNetActivations(Quantizer):
    """ABC-Net's activations: N binary activations with trained shifts and scales.

    At first they are the uniform levels of N + 1 values from -1 to 1, with thresholds halfway; `calibrate` moves and
    stretches the thresholds to the mean and standard deviation of what it sees. Trained levels need not
    lie between their own thresholds, in which case quantizing twice changes values.

    Args:
        bit_width: N, planes.
        signed: True.

    Parameters: scales beta, shifts v, (N,) each.
    """

    traits: ClassVar[Traits] = Traits(bit_widths=tuple(range(1, 9)), unsigned=False, zero_is_level=False)

    def __init__(self, bit_width: int = 3, signed: bool = True) -> None:
        super().__init__()
        check_width(type(self), bit_width, signed)
        self.register_buffer("bit_width", torch.tensor(bit_width))
        self.scales = nn.Parameter(torch.full((bit_width,), 1 / bit_width))
        thresholds = (2 * torch.arange(bit_width) + 1 - bit_width) / bit_width
        self.shifts = nn.Parameter(0.5 - thresholds)

    def forward(self, x: Tensor) -> Tensor:
        return abc_activation(x, self.scales, self.shifts)

    def encode(self, x: Tensor) -> PlanesEncoding:
        shifts = self.shifts.detach().reshape(-1, *[1] * x.dim())
        return PlanesEncoding(
            codes=sign_codes(x.detach().to(shifts.dtype) + shifts - 0.5).to(torch.int32),
            scales=self.scales.detach().float().unsqueeze(0),
            axis=0,
            group_sizes=(x.shape[0],),
            planes=(len(self.scales),),
        )

    @torch.no_grad()
    def calibrate(self, x: Tensor, max_abs: float | None = None) -> None:
        """Thresholds at mean + std (2 n + 1 - N) / N, then the scales of least squares; `max_abs` is not needed."""
        row = x.to(self.scales.dtype).reshape(1, -1)
        thresholds = (2 * torch.arange(len(self.shifts)) + 1 - len(self.shifts)) / len(self.shifts)
        self.shifts.copy_(0.5 - (row.mean() + row.std() * thresholds.to(row)))
        planes = torch.where(row + self.shifts.reshape(-1, 1, 1) >= 0.5, 1.0, -1.0)
        self.scales.copy_(plane_scales(row, planes).squeeze(0))

    def inference_form(self) -> ABCNetActivations:
        return self


def planes_conv2d(
    x: Tensor,
    planes: Tensor,
    scales: Tensor,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    """sum_m scale_m conv(x, B_m): additions inside, one multiplication per output value and plane (KCNN).

    Args:
        x: (N, C, H, W).
        planes: B, +1 and -1, (M, out, C / groups, kh, kw).
        scales: (out, M).
        stride, padding, dilation, groups: of the convolution.
    """
    results = [F.conv2d(x, plane, None, stride, padding, dilation, groups) for plane in planes]
    return sum(y * scale.reshape(-1, 1, 1) for y, scale in zip(results, scales.T, strict=True))
