"""Bit planes: x ~ sum_m scale_m B_m with B_m in {-1, +1} and M scales per group.

A code of M bits stands for a sign vector: bit m is 1 where plane m is +1. The 2^M sums of +-scale_m are the levels of a
group. What lies halfway between two levels goes to the upper one, so that sign(0) is +1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from common.quantizers.encoding import AffineEncoding
from common.quantizers.modules import Quantizer, Traits

FEW = 16  # so many levels are compared one after the other, which the compiler fuses; more are searched


def straight_through(value: Tensor, x: Tensor, slope: Tensor | None = None) -> Tensor:
    """`value` with the gradient of slope * x: that of a quantizer whose derivative is replaced.

    Args:
        value: any shape; a constant.
        x: of the same shape and dtype.
        slope: a constant that broadcasts to x, or the bool tensor of where the gradient passes; None: everywhere.
    """
    if not torch.compiler.is_compiling():
        return _StraightThrough.apply(value.detach(), x, slope)
    if slope is not None:
        x = torch.where(slope, x, 0.0) if slope.dtype == torch.bool else slope.detach() * x
    return value.detach() + (x - x.detach())


class _StraightThrough(torch.autograd.Function):
    """In eager mode: fewer passes over memory than the sum, which the compiler fuses with its neighbours."""

    @staticmethod
    def forward(ctx, value: Tensor, x: Tensor, slope: Tensor | None) -> Tensor:
        ctx.save_for_backward(slope)
        return value.view_as(value)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (slope,) = ctx.saved_tensors
        if slope is not None:
            grad = torch.where(slope, grad, 0.0) if slope.dtype == torch.bool else slope * grad
        return None, grad, None


def code_signs(codes: Tensor, planes: int, low: int = -1, dtype: torch.dtype = torch.float32) -> Tensor:
    """The planes of codes, lowest bit first: shape (planes, *codes.shape), 1 where the bit is set, else `low`."""
    shifts = torch.arange(planes, device=codes.device).reshape(-1, *[1] * codes.dim())
    return (((codes >> shifts) & 1) * (1 - low) + low).to(dtype)


def sign_codes(planes: Tensor) -> Tensor:
    """Codes of planes (M, ...), int64 of shape (...): bit m is set where plane m is >= 0."""
    shifts = torch.arange(len(planes), device=planes.device).reshape(-1, *[1] * (planes.dim() - 1))
    return ((planes >= 0).long() << shifts).sum(0)


def plane_levels(scales: Tensor, low: int = -1) -> Tensor:
    """Value of every code, (..., M) -> (..., 2^M): the sum of scale_m where bit m is set, low * scale_m elsewhere."""
    count = scales.shape[-1]
    signs = code_signs(torch.arange(2**count, device=scales.device), count, low, scales.dtype)
    levels = torch.zeros_like(scales[..., :1] * signs[0])
    for m in range(count):  # in this order, whatever the shape: decoded values equal the forward pass bit by bit
        levels = levels + scales[..., m : m + 1] * signs[m]
    return levels


# The following take levels (G, L), in any order, with x (G, n), or one table (L,) with x of any shape. A value halfway
# between two levels belongs to the upper one.


def _ascending(levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Levels in ascending order, their indices, and the middles between neighbours."""
    ascending, order = levels.sort(dim=-1, stable=True)
    return ascending, order, level_middles(ascending)


def level_middles(ascending: Tensor) -> Tensor:
    """Halfway between neighbours of ascending levels, (..., L) -> (..., L - 1)."""
    low, high = ascending[..., :-1], ascending[..., 1:]
    middle = low + (high - low) / 2
    # Between neighbouring floats it rounds to one of them; a level has to stay its own nearest one.
    return torch.where(middle > low, middle, high)


def nearest_codes(x: Tensor, levels: Tensor) -> Tensor:
    """Index of the nearest level, int64, shape of x."""
    _, order, middles = _ascending(levels)
    rank = torch.searchsorted(middles, x.contiguous(), right=True)
    return order[rank] if levels.dim() == 1 else order.gather(1, rank)


def nearest_levels(x: Tensor, levels: Tensor) -> Tensor:
    """The nearest level, shape of x, dtype of levels."""
    if levels.shape[-1] > FEW:
        codes = nearest_codes(x, levels)
        return levels[codes] if levels.dim() == 1 else levels.gather(1, codes)
    ascending, _, middles = _ascending(levels)
    value = ascending[..., :1].expand_as(x)
    for i in range(middles.shape[-1]):
        value = torch.where(x >= middles[..., i : i + 1], ascending[..., i + 1 : i + 2], value)
    return value


def level_sums(x: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """How many values are nearest to each level, and their sum: float64 of the shape of levels."""
    zeros = torch.zeros_like(levels, dtype=torch.float64)
    if levels.shape[-1] > FEW:
        codes, values = nearest_codes(x, levels), x.double()
        codes, values = (t.flatten(levels.dim() - 1) for t in (codes, values))
        return zeros.scatter_add(-1, codes, torch.ones_like(values)), zeros.scatter_add(-1, codes, values)
    _, order, middles = _ascending(levels)
    over = tuple(range(levels.dim() - 1, x.dim()))
    # Of what lies above each middle; differences of neighbours belong to the level between them.
    above = [x >= middles[..., i : i + 1] for i in range(middles.shape[-1])]
    none = zeros[..., 0]
    counts = [none + x.numel() // max(1, none.numel()), *(mask.sum(over).double() for mask in above), none]
    sums = [x.sum(over, dtype=torch.float64)]
    sums += [*(torch.where(mask, x, 0.0).sum(over, dtype=torch.float64) for mask in above), none]
    return tuple(zeros.scatter(-1, order, -torch.stack(t, -1).diff(dim=-1)) for t in (counts, sums))


def solve_scales(gram: Tensor, moments: Tensor, start: Tensor | None = None, ridge: float = 0.0) -> Tensor:
    """v that minimises v^T gram v - 2 v^T moments + ridge |v - start|^2 per row; of several, the nearest to `start`.

    Args:
        gram: B^T B, float64 (..., M, M).
        moments: B^T x, float64 (..., M).
        start: (..., M); None is zero.

    Returns:
        float64 (..., M).
    """
    start = torch.zeros_like(moments) if start is None else start.double()
    residual = moments - (gram * start.unsqueeze(-2)).sum(-1)
    gram = gram + ridge * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    inverse = torch.linalg.pinv(gram, rtol=1e-10, hermitian=True)
    return start + (inverse * residual.unsqueeze(-2)).sum(-1)


def plane_scales(x: Tensor, planes: Tensor) -> Tensor:
    """Least squares scales of given planes: v that minimises |x - sum_m v_m B_m|^2 per row, (G, M).

    Args:
        x: (G, n).
        planes: B, (M, G, n).
    """
    gram = torch.stack([(planes * plane).sum(-1, dtype=torch.float64) for plane in planes]).permute(2, 0, 1)
    return solve_scales(gram, (planes * x).sum(-1, dtype=torch.float64).T).to(x.dtype)


def refitted_scales(
    x: Tensor, scales: Tensor, low: int = -1, start: Tensor | None = None, ridge: float = 0.0
) -> Tensor:
    """Least squares scales for the codes that x has with the present ones, shape of scales.

    Args:
        x: (G, n), or any shape.
        scales: (G, M), or (M,).
        low: what a bit of 0 stands for, see `plane_levels`.
        start, ridge: see `solve_scales`.
    """
    counts, sums = level_sums(x, plane_levels(scales, low))
    planes = scales.shape[-1]
    signs = code_signs(torch.arange(2**planes, device=x.device), planes, low, torch.float64)  # (M, 2^M)
    gram = (signs.unsqueeze(0) * signs.unsqueeze(1) * counts[..., None, None, :]).sum(-1)
    moments = (signs * sums.unsqueeze(-2)).sum(-1)
    return solve_scales(gram, moments, start, ridge).to(x.dtype)


@dataclass(frozen=True)
class PlanesEncoding:
    """value = sum_m scales[g, m] * (+1 where bit m of the code is set, else -1), per group along one axis.

    Attributes:
        codes: int32, shape of the encoded tensor, 0 <= code < 2^planes of its group.
        scales: float32, (G, M); those of a group beyond its number of planes are not used.
        axis: the axis along which the groups lie.
        group_sizes: channels per group along `axis`; they add up to the length of that axis.
        planes: planes of each group, 0..M; 0 means pruned: nothing is stored and the values are 0.
    """

    codes: Tensor
    scales: Tensor
    axis: int
    group_sizes: tuple[int, ...]
    planes: tuple[int, ...]

    def __post_init__(self) -> None:
        groups = len(self.group_sizes)
        if not len(self.planes) == len(self.scales) == groups:
            raise ValueError(f"expected scales and a number of planes for each of {groups} groups")
        if not all(0 <= count <= self.scales.shape[1] for count in self.planes):
            raise ValueError(f"planes must lie in 0..{self.scales.shape[1]}, the scales of a group, got {self.planes}")
        if sum(self.group_sizes) != self.codes.shape[self.axis]:
            raise ValueError(f"group_sizes add up to {sum(self.group_sizes)}, axis has {self.codes.shape[self.axis]}")

    @property
    def bits(self) -> tuple[int, ...]:
        """Bits per value of each group: one per plane."""
        return self.planes

    def decode(self) -> Tensor:
        """The real values, float32, shape of codes."""
        device = self.codes.device
        used = torch.arange(self.scales.shape[1]) < torch.tensor(self.planes).unsqueeze(-1)
        levels = plane_levels(torch.where(used.to(device), self.scales.float(), 0.0))
        shape = [1] * self.codes.dim()
        shape[self.axis] = -1
        group = torch.repeat_interleave(torch.arange(len(self.planes)), torch.tensor(self.group_sizes))
        return levels[group.to(device).reshape(shape), self.codes.long()]

    code_bytes = AffineEncoding.code_bytes
    pack = AffineEncoding.pack
    unpack_codes = staticmethod(AffineEncoding.unpack_codes)


class PlanesQuantizer(Quantizer):
    """y = the nearest of the 2^M sums of +-scale_m; everything is a buffer.

    The gradient is that of a straight-through estimator.

    Args:
        bit_width: M, planes and bits per value.
        signed: True; levels lie symmetrically around zero.
        channels: number of output channels (axis 0) with scales of their own; None is per tensor.
        clipped: pass no gradient where |x| exceeds the largest level.

    Buffers: bit_width; scales (G, M), whose first values make the levels uniform on [-1, 1].

    Raises:
        ValueError: a width that the class does not have, an unsigned range.
    """

    traits: ClassVar[Traits] = Traits(
        bit_widths=tuple(range(1, 9)), unsigned=False, per_channel=True, zero_is_level=False
    )

    def __init__(
        self, bit_width: int = 2, signed: bool = True, channels: int | None = None, clipped: bool = False
    ) -> None:
        super().__init__()
        check_width(type(self), bit_width, signed)
        self.channels, self.clipped = channels, clipped
        self.register_buffer("bit_width", torch.tensor(bit_width))
        self.register_buffer("scales", uniform_scales(bit_width).repeat(channels or 1, 1))

    def rows(self, x: Tensor) -> Tensor:
        """x as one row per group of scales, (G, n), without gradient."""
        return x.detach().to(self.scales.dtype).reshape(len(self.scales), -1)

    def per_group(self, values: Tensor, x: Tensor) -> Tensor:
        """One value per group, (G,), in a shape that broadcasts to x."""
        return values.reshape(-1, *[1] * (x.dim() - 1))

    def codes(self, rows: Tensor) -> Tensor:
        """Codes of rows in eval mode, int64 (G, n)."""
        return nearest_codes(rows, plane_levels(self.scales))

    def values(self, rows: Tensor) -> Tensor:
        """The levels of these codes, (G, n)."""
        return nearest_levels(rows, plane_levels(self.scales))

    def forward(self, x: Tensor) -> Tensor:
        return straight_through(self.values(self.rows(x)).reshape(x.shape).to(x.dtype), x, self._slope(x))

    def _slope(self, x: Tensor) -> Tensor | None:
        """The gradient with respect to x."""
        return x.detach().abs() <= self.per_group(self.scales.abs().sum(1), x) if self.clipped else None

    @torch.no_grad()
    def calibrate(self, x: Tensor, max_abs: float | None = None) -> None:
        """Fill the scales from x; here with uniform levels up to the largest |x| of each group.

        Args:
            x: the tensor that will be quantized; a sample will do for activations.
            max_abs: as in `SymmetricQuantizer.calibrate`; not needed.
        """
        largest = self.rows(x).abs().amax(1, keepdim=True)
        self.scales.copy_(largest * uniform_scales(self.scales.shape[1]).to(largest))

    def encode(self, x: Tensor) -> PlanesEncoding:
        groups, planes = self.scales.shape
        return PlanesEncoding(
            codes=self.codes(self.rows(x)).reshape(x.shape).to(torch.int32),
            scales=self.scales.detach().float(),
            axis=0,
            group_sizes=(1,) * groups if self.channels else (x.shape[0],),
            planes=(planes,) * groups,
        )

    def inference_form(self) -> PlanesQuantizer:
        """The grid: nearest levels with the present scales, which it shares with this module."""
        grid = PlanesQuantizer(self.scales.shape[1], channels=self.channels).to(self.scales)
        grid.scales = self.scales
        return grid


def uniform_scales(planes: int) -> Tensor:
    """Scales 2^m / (2^M - 1), whose levels are uniform from -1 to 1."""
    return 2.0 ** torch.arange(planes) / (2**planes - 1)


def check_width(kind: type[Quantizer], bit_width: int, signed: bool) -> None:
    """
    Raises:
        ValueError: `kind` has no such width or range.
    """
    widths = kind.traits.bit_widths
    if bit_width not in widths:
        raise ValueError(f"bit_width of {kind.__name__} must be one of {widths}, got {bit_width}")
    if not (kind.traits.signed if signed else kind.traits.unsigned):
        raise ValueError(f"{kind.__name__} has no {'signed' if signed else 'unsigned'} range, got signed={signed}")
