"""Level tables: projection onto arbitrary sorted levels, and tensors encoded as codes into a table."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.quantizers.encoding import AffineEncoding


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
