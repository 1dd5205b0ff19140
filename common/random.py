"""Random numbers that are a pure function of (seed, rank, site, step, index).

A resumed run draws what the uninterrupted one would. The generator is counter-based: 32-bit integer hashing in plain
tensor code, which gives the same numbers on every device. It has no state, hence nothing to save. Call it outside
compiled code: each round uses its input twice, which an inlining compiler turns into an exponentially long expression.
Products stay below 2^63, because the multipliers are below 2^31 and the operands below 2^32.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def stream_key(*parts: object) -> int:
    """A 32-bit key of a random stream from what identifies it, such as (seed, rank, site name)."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "little")


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit integers (held in int64) in which every input bit moves about half of the output bits."""
    x = ((x >> 16) ^ x) * 0x45D9F3B & _MASK
    x = ((x >> 16) ^ x) * 0x45D9F3B & _MASK
    return (x >> 16) ^ x


def counter_uniform(key: Tensor, step: int, index: Tensor) -> Tensor:
    """Numbers of the open interval (0, 1), float32, uniform on the 2^23 values (n + 1/2) 2^-23.

    With 2^24 values the largest ones would need 25 bits, and the last would be rounded to 1.

    Args:
        key: streams (`stream_key`), int64, broadcasts to index.
        step: counter.
        index: position within the stream and step, int64, any shape; the result has its shape.
    """
    state = _mix(_mix(key ^ _mix(torch.as_tensor(step & _MASK, device=index.device))) + index & _MASK)
    return ((_mix(state ^ key) >> 9).to(torch.float32) + 0.5) * 2.0**-23


def counter_gumbel(key: Tensor, step: int, index: Tensor, eps: float = 0.0) -> Tensor:
    """Gumbel(0, 1) numbers -log(-log(u + eps) + eps), float32; arguments as in `counter_uniform`."""
    return -torch.log(-torch.log(counter_uniform(key, step, index) + eps) + eps)
