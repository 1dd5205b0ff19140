"""Costs of every layer at every pair of widths, computed once; exact look-up and differentiable forms."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.graph import Layer
from hardware.cost_model import MAX_WIDTH, CostModel, Unmeasured


@dataclass(frozen=True)
class CostTable:
    """Costs of a network's layers.

    Attributes:
        name: of the cost model.
        unit: of the values.
        layers: names.
        values: (layers, 8, 8) float64, [l, w - 1, a - 1] at w weight and a activation bits; zero for layers that the
            cost model does not count, NaN for pairs that a measured table lacks. Read-only.
    """

    name: str
    unit: str
    layers: tuple[str, ...]
    values: np.ndarray

    def cost(self, weight_bits: Sequence[int], activation_bits: Sequence[int]) -> float:
        """Total of integer widths 1..8, one of each per layer.

        Raises:
            ValueError: not one width a layer.
            IndexError: a width outside 1..8.
            UserError: a pair that a measured table lacks.
        """
        w, a = np.asarray(weight_bits), np.asarray(activation_bits)
        if w.shape != (len(self.layers),) or a.shape != w.shape:
            raise ValueError(f"expected {len(self.layers)} widths of each kind, got {w.shape} and {a.shape}")
        if min(w.min(), a.min()) < 1 or max(w.max(), a.max()) > MAX_WIDTH:
            raise IndexError(f"widths must lie in 1..{MAX_WIDTH}")
        costs = self.values[np.arange(len(w)), w - 1, a - 1]
        total = float(costs.sum())
        if math.isnan(total):
            missing = int(np.isnan(costs).argmax())
            raise UserError(
                f"{self.name} has no cost of layer {self.layers[missing]!r} at {w[missing]}/{a[missing]} bits"
            )
        return total

    def tensor(self) -> Tensor:
        """The values as a new float64 tensor, for the differentiable forms."""
        return torch.from_numpy(self.values.copy())


def cost_table(model: CostModel, layers: Sequence[Layer]) -> CostTable:
    """The cost table of a network, from memory, from the cache on disk (slow models), or computed.

    The cache is the folder `HARDWARE_CACHE`, or network-quantization/ in the user's cache folder; its entries are named
    by the hash of layers, cost model and the code of this package. Entries that are damaged are computed anew; a folder
    that cannot be written is done without.

    Raises:
        UserError: a layer that the model cannot cost, by name.
    """
    return _table(model, tuple(layers))


def interpolated_cost(values: Tensor, weight_bits: Tensor, activation_bits: Tensor) -> Tensor:
    """Total cost at real widths by bilinear interpolation: equal to the table at integers, differentiable between them.

    At an integer the gradient is that of the interval above (at 8: below), or 0 if its far end was not measured.

    Args:
        values: (layers, 8, 8), `CostTable.tensor()`.
        weight_bits, activation_bits: (layers,), in 1..8; values beyond are clamped, their gradient is 0.

    Returns:
        scalar of the dtype of `weight_bits`; NaN where it rests on a pair that a measured table lacks.
    """
    values = values.to(weight_bits)
    w, a = _within_widths(weight_bits), _within_widths(activation_bits.to(weight_bits))
    i = w.detach().floor().clamp(max=MAX_WIDTH - 1).long()
    j = a.detach().floor().clamp(max=MAX_WIDTH - 1).long()
    u, v = w - i, a - j
    rows = torch.arange(len(w), device=w.device)
    total = torch.zeros_like(w)
    for x, p, other_x in ((i - 1, 1 - u, i), (i, u, i - 1)):
        for y, q, other_y in ((j - 1, 1 - v, j), (j, v, j - 1)):
            corner = values[rows, x, y]
            # a corner that was not measured must not matter where its weight is 0, nor to the gradient there
            spare = values[rows, torch.where(p == 0, other_x, x), torch.where(q == 0, other_y, y)]
            total = total + torch.where(corner.isnan(), spare, corner) * p * q
    return total.sum()


def expected_cost(values: Tensor, weight_probabilities: Tensor, activation_probabilities: Tensor) -> Tensor:
    """Exact expectation of the total cost under independent distributions of the widths 1..8 of every layer.

    Args:
        values: (layers, 8, 8), `CostTable.tensor()`.
        weight_probabilities, activation_probabilities: (layers, 8), rows sum to 1.

    Returns:
        scalar of the dtype of the probabilities, differentiable in them; NaN where a pair that a measured table lacks
        has a probability above 0.
    """
    p = weight_probabilities
    joint = p[:, :, None] * activation_probabilities.to(p)[:, None, :]
    values = values.to(p)
    return (torch.where(values.isnan() & (joint == 0), 0, values) * joint).sum()


def _within_widths(bits: Tensor) -> Tensor:
    """Clamped to 1..8, with gradient 1 at both ends too (torch.clamp has had 0, 0.5 and 1 there)."""
    return torch.where((bits >= 1) & (bits <= MAX_WIDTH), bits, bits.detach().clamp(1, MAX_WIDTH))


@lru_cache(maxsize=32)
def _table(model: CostModel, layers: tuple[Layer, ...]) -> CostTable:
    if model.slow:
        key = _key(model, layers)
        path = _cache_folder() / f"{model.name}-{key.hex()[:16]}.bin".replace("/", "_")
        values = _read_cache(path, key, len(layers))
        if values is None:
            values = _compute(model, layers)
            _write_cache(path, key, values)
    else:
        values = _compute(model, layers)
    values.flags.writeable = False
    return CostTable(model.name, model.unit, tuple(layer.name for layer in layers), values)


def _compute(model: CostModel, layers: tuple[Layer, ...]) -> np.ndarray:
    values = np.zeros((len(layers), MAX_WIDTH, MAX_WIDTH))
    widths = range(1, MAX_WIDTH + 1)
    for row, (layer, counts) in enumerate(zip(layers, model.counted(layers), strict=True)):
        if counts:
            values[row] = [[_cost(model, layer, w, a) for a in widths] for w in widths]
    return values


def _cost(model: CostModel, layer: Layer, weight_bits: int, activation_bits: int) -> float:
    try:
        return model.layer_cost(layer, weight_bits, activation_bits)
    except Unmeasured:
        return math.nan


def _key(model: CostModel, layers: tuple[Layer, ...]) -> bytes:
    """Hash of all that a table follows from."""
    digest = hashlib.sha256(repr((model.name, model.machine, model.constants, layers)).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.digest()


def _cache_folder() -> Path:
    if folder := os.environ.get("HARDWARE_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "network-quantization"


def _read_cache(path: Path, key: bytes, num_layers: int) -> np.ndarray | None:
    """The table of an entry; None where there is none, or one that `_write_cache` did not write for this key."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    check, values = content[:32], content[32:]
    if hashlib.sha256(key + values).digest() != check:
        return None
    return np.frombuffer(values, "<f8").reshape(num_layers, MAX_WIDTH, MAX_WIDTH).copy()


def _write_cache(path: Path, key: bytes, values: np.ndarray) -> None:
    content = values.astype("<f8").tobytes()
    temporary = path.with_suffix(f".{os.getpid()}")
    with suppress(OSError):  # a table that cannot be kept is still a table
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(hashlib.sha256(key + content).digest() + content)
        os.replace(temporary, path)
