"""Encoded tensors: integer codes and what is needed to turn them back into real numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError


@dataclass(frozen=True)
class AffineEncoding:
    """value = scale * (code - zero_point) + offset, per group along one axis.

    Attributes:
        codes: int32, shape of the encoded tensor, 0 <= code < 2^bits of its group.
        scale, zero_point, offset: float32, one value per group, shape (G,).
        axis: the axis along which the groups lie.
        group_sizes: channels per group along `axis`; they add up to the length of that axis.
        bits: bits per value of each group; 0 means pruned: nothing is stored and the values are 0.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    offset: Tensor
    axis: int
    group_sizes: tuple[int, ...]
    bits: tuple[int, ...]

    def __post_init__(self) -> None:
        groups = len(self.group_sizes)
        if not (len(self.bits) == self.scale.numel() == self.zero_point.numel() == self.offset.numel() == groups):
            raise ValueError(f"expected one width, scale, zero point and offset for each of {groups} groups")
        if self.codes.dim() and sum(self.group_sizes) != self.codes.shape[self.axis]:
            raise ValueError(f"group_sizes add up to {sum(self.group_sizes)}, axis has {self.codes.shape[self.axis]}")

    def decode(self) -> Tensor:
        """The real values, float32, shape of codes."""
        sizes = torch.tensor(self.group_sizes, device=self.codes.device)
        shape = [1] * self.codes.dim()
        shape[self.axis] = -1

        def spread(values: Tensor) -> Tensor:
            return torch.repeat_interleave(values.float(), sizes).reshape(shape)

        steps = self.codes.float() - spread(self.zero_point)
        values = spread(self.scale) * steps + spread(self.offset)
        kept = spread(torch.tensor([float(b > 0) for b in self.bits], device=self.codes.device))
        return values * kept

    @property
    def code_bytes(self) -> int:
        """Bytes of the packed codes: all groups in one bit stream, padded to a whole byte at its end."""
        others = self.codes.numel() // max(1, sum(self.group_sizes))
        return -(-sum(others * s * b for s, b in zip(self.group_sizes, self.bits, strict=True)) // 8)

    def pack(self) -> Tensor:
        """Codes as a bit stream, uint8 of length `code_bytes`: group after group, lowest bit first."""
        groups = self.codes.detach().cpu().split(self.group_sizes, dim=self.axis)
        stream = [_to_bits(g.numpy().reshape(-1), b) for g, b in zip(groups, self.bits, strict=True)]
        return torch.from_numpy(np.packbits(np.concatenate(stream), bitorder="little"))

    @staticmethod
    def unpack_codes(
        packed: Tensor, shape: tuple[int, ...], axis: int, group_sizes: tuple[int, ...], bits: tuple[int, ...]
    ) -> Tensor:
        """Inverse of `pack`: int32 codes of the given shape.

        Raises:
            UserError: the stream does not have the length that shape and bits ask for.
        """
        stream = np.unpackbits(packed.cpu().numpy(), bitorder="little")
        groups, start = [], 0
        for size, width in zip(group_sizes, bits, strict=True):
            group_shape = [size if i == axis else n for i, n in enumerate(shape)]
            count = int(np.prod(group_shape))
            if start + count * width > stream.size:
                raise UserError(f"packed codes are too short: {packed.numel()} bytes for shape {tuple(shape)}")
            part = stream[start : start + count * width]
            groups.append(_from_bits(part, count, width).reshape(group_shape))
            start += count * width
        if stream.size - start >= 8:
            raise UserError(f"packed codes are too long: {packed.numel()} bytes for shape {tuple(shape)}")
        return torch.from_numpy(np.concatenate(groups, axis=axis).astype(np.int32))


def _to_bits(codes: np.ndarray, bits: int) -> np.ndarray:
    if bits and (codes.min(initial=0) < 0 or codes.max(initial=0) >= 2**bits):
        raise ValueError(f"codes must lie in 0..{2**bits - 1}, got {codes.min()}..{codes.max()}")
    return ((codes[:, None] >> np.arange(bits)) & 1).astype(np.uint8).reshape(-1)


def _from_bits(stream: np.ndarray, count: int, bits: int) -> np.ndarray:
    return (stream.reshape(count, bits).astype(np.int64) << np.arange(bits)).sum(axis=1)
