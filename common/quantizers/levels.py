"""Level tables: projection onto arbitrary sorted levels, and tensors encoded as codes into a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from common.quantizers.encoding import AffineEncoding
from common.quantizers.functional import integer_range
from common.quantizers.lsq import check_channels, learned_scale, spread
from common.quantizers.modules import Quantizer, Traits
from common.quantizers.planes import check_width

MAX_UNROLLED = 32  # levels up to which one comparison per threshold beats a binary search on CPUs


@dataclass(frozen=True)
class LevelsEncoding:
    """value = levels[code], one table per tensor or one per group along an axis.

    Attributes:
        codes: int32, shape of the encoded tensor, 0 <= code < 2^bits of its group.
        levels: float32, (n,) for one table, or (G, n): group g has row g. Rows of groups with fewer levels are padded.
        axis: the axis along which the groups lie.
        group_sizes: channels per group along `axis`; they add up to the length of that axis.
        bits: bits per value of each group; 0 means pruned: nothing is stored and the values are 0.
    """

    codes: Tensor
    levels: Tensor
    axis: int
    group_sizes: tuple[int, ...]
    bits: tuple[int, ...]

    def __post_init__(self) -> None:
        groups = len(self.group_sizes)
        if len(self.bits) != groups or (self.levels.dim() > 1 and len(self.levels) != groups):
            raise ValueError(f"expected one width and one table (or a common table) for each of {groups} groups")
        if self.codes.dim() and sum(self.group_sizes) != self.codes.shape[self.axis]:
            raise ValueError(f"group_sizes add up to {sum(self.group_sizes)}, axis has {self.codes.shape[self.axis]}")

    def decode(self) -> Tensor:
        """The real values, float32, shape of codes."""
        sizes = torch.tensor(self.group_sizes, device=self.codes.device)
        shape = [1] * self.codes.dim()
        if shape:
            shape[self.axis] = -1
        rows = torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes).reshape(shape)
        kept = torch.tensor(self.bits, device=sizes.device)[rows] > 0
        levels = self.levels.float().expand(len(sizes), -1) if self.levels.dim() == 1 else self.levels.float()
        return torch.where(kept, levels[rows, self.codes.long()], 0.0)

    code_bytes = AffineEncoding.code_bytes
    pack = AffineEncoding.pack
    unpack_codes = staticmethod(AffineEncoding.unpack_codes)


def midpoints(levels: Tensor) -> Tensor:
    """Thresholds (n - 1,) halfway between neighbours of sorted levels (n,): every value goes to the nearest level."""
    return (levels[1:] + levels[:-1]) / 2


def level_codes(x: Tensor, thresholds: Tensor, ties_up: bool = True) -> Tensor:
    """Index of each value's level: the number of thresholds that it reaches, int32, shape and layout of x.

    Args:
        x: real values of the dtype of thresholds.
        thresholds: ascending, (n - 1,).
        ties_up: a value that equals a threshold belongs to the level above it.
    """
    if x.is_cpu and len(thresholds) < MAX_UNROLLED:
        count = torch.zeros_like(x, dtype=torch.uint8)
        for i in range(len(thresholds)):
            count += (x >= thresholds[i] if ties_up else x > thresholds[i]).view(torch.uint8)
        return count.int()
    flat, restore = _in_memory_order(x)
    return restore(torch.bucketize(flat, thresholds, out_int32=True, right=ties_up))


def project(x: Tensor, levels: Tensor, thresholds: Tensor, ties_up: bool = True) -> Tensor:
    """levels[level_codes(x, thresholds, ties_up)]: shape of x, dtype of levels, no gradient."""
    if torch.compiler.is_compiling() and len(levels) <= MAX_UNROLLED:  # selections fuse, look-ups do not
        y = levels[0].expand(x.shape)
        for i in range(len(thresholds)):
            y = torch.where(x >= thresholds[i] if ties_up else x > thresholds[i], levels[i + 1], y)
        return y
    flat, restore = _in_memory_order(level_codes(x, thresholds, ties_up))
    return restore(levels.index_select(0, flat))


def _in_memory_order(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The values of x in one row, without a copy where x is dense, and how a row becomes a tensor like x."""
    order = sorted(range(x.dim()), key=lambda axis: -x.stride(axis))
    permuted = x.permute(order)
    back = [order.index(axis) for axis in range(x.dim())]
    return permuted.reshape(-1), lambda row: row.reshape(permuted.shape).permute(back)


class LevelsQuantizer(Quantizer):
    """y = scale * (the level of x / scale) for a table of levels; everything is a buffer.

    Gradients are those of `learned_scale` on the closed range from the lowest to the highest level.

    Args:
        bit_width: bits per value, 1..8.
        signed: range of the default table.
        channels: number of output channels (axis 0) with a scale each; None is per tensor.
        levels: (n,) ascending, n <= 2^bit_width, in units of scale; default: the integers of `bit_width` bits, divided
            by the largest absolute one.
        thresholds: (n - 1,) ascending; default: halfway between the levels.
        ties_up: a value that equals a threshold belongs to the level above it.

    Raises:
        ValueError: a width that the class does not have, levels or thresholds that do not fit.
    """

    traits: ClassVar[Traits] = Traits(bit_widths=tuple(range(1, 9)), per_channel=True)
    nearest: ClassVar[bool] = True  # whether every value goes to the nearest level

    def __init__(
        self,
        bit_width: int = 4,
        signed: bool = True,
        channels: int | None = None,
        levels: Sequence[float] | Tensor | None = None,
        thresholds: Sequence[float] | Tensor | None = None,
        ties_up: bool = True,
    ) -> None:
        super().__init__()
        check_width(type(self), bit_width, signed)
        check_channels(type(self), channels)
        if levels is None:
            low, high = integer_range(bit_width, signed)
            levels = torch.arange(low, high + 1) / max(-low, high)
        levels = torch.as_tensor(levels, dtype=torch.float32)
        thresholds = midpoints(levels) if thresholds is None else torch.as_tensor(thresholds, dtype=torch.float32)
        if not (levels.dim() == 1 and 2 <= len(levels) <= 2**bit_width and (levels.diff() > 0).all()):
            raise ValueError(f"levels must be 2 to {2**bit_width} ascending numbers, got {levels.tolist()}")
        if not (thresholds.shape == (len(levels) - 1,) and (thresholds.diff() >= 0).all()):
            raise ValueError(f"thresholds must be {len(levels) - 1} ascending numbers, got {thresholds.tolist()}")
        self.channels, self.ties_up = channels, ties_up
        self.register_buffer("bit_width", torch.tensor(bit_width))
        self.register_buffer("levels", levels.clone())
        self.register_buffer("thresholds", thresholds.clone())
        self.register_buffer("scale", torch.ones(() if channels is None else (channels,)))

    @property
    def quant_min(self) -> Tensor:
        """The lowest level, in units of scale."""
        return self.levels[0]

    @property
    def quant_max(self) -> Tensor:
        """The highest level, in units of scale."""
        return self.levels[-1]

    def effective_scale(self) -> Tensor:
        """The positive scale in use, shape () or (channels,)."""
        return self.scale

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x)

    def project(self, x: Tensor, straight: bool = False) -> Tensor:
        """x on the grid; `straight`: with dy/dx = 1 outside the range too."""

        def look_up(steps: Tensor) -> Tensor:
            return project(steps, self.levels, self.thresholds, self.ties_up)

        scale = spread(self.effective_scale(), x)
        return learned_scale(x, scale, self.quant_min, self.quant_max, look_up, straight=straight)

    @torch.no_grad()
    def encode(self, x: Tensor) -> LevelsEncoding:
        scale = self.effective_scale()
        codes = level_codes(x.to(scale.dtype) / spread(scale, x), self.thresholds, self.ties_up)
        groups = self.channels or 1
        return LevelsEncoding(
            codes=codes,
            levels=(scale.unsqueeze(-1) * self.levels).float(),
            axis=0,
            group_sizes=(1,) * groups if self.channels else (x.shape[0] if x.dim() else 1,),
            bits=(int(self.bit_width),) * groups,
        )

    @torch.no_grad()
    def inference_form(self) -> LevelsQuantizer:  # type: ignore[override]
        """The plain table with the present scale, which it does not share; a plain table itself."""
        if type(self) is LevelsQuantizer:
            return self
        plain = LevelsQuantizer(
            int(self.bit_width),
            channels=self.channels,
            levels=self.levels,
            thresholds=self.thresholds,
            ties_up=self.ties_up,
        ).to(self.levels.device)
        plain.scale.copy_(self.effective_scale())
        return plain
