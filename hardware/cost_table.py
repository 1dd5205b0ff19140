"""Costs of every layer at every pair of widths, computed once; exact look-up and differentiable forms."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
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
    by the hash of layers, cost model and the code of this package.

    Raises:
        UserError: a layer that the model cannot cost, by name.
    """
    return _table(model, tuple(layers))


def interpolated_cost(values: Tensor, weight_bits: Tensor, activation_bits: Tensor) -> Tensor:
    """Total cost at real widths by bilinear interpolation: equal to the table at integers, differentiable between them.

    At an integer the gradient is that of the interval above (at 8: below).

    Args:
        values: (layers, 8, 8), `CostTable.tensor()`.
        weight_bits, activation_bits: (layers,), in 1..8; values beyond are clamped.

    Returns:
        scalar of the dtype of `weight_bits`.
    """
    values = values.to(weight_bits.dtype)
    w, a = weight_bits.clamp(1, MAX_WIDTH), activation_bits.to(weight_bits.dtype).clamp(1, MAX_WIDTH)
    i = w.detach().floor().clamp(max=MAX_WIDTH - 1).long()
    j = a.detach().floor().clamp(max=MAX_WIDTH - 1).long()
    u, v = w - i, a - j
    rows = torch.arange(len(w), device=w.device)
    low = values[rows, i - 1, j - 1] * (1 - v) + values[rows, i - 1, j] * v
    high = values[rows, i, j - 1] * (1 - v) + values[rows, i, j] * v
    return (low * (1 - u) + high * u).sum()


def expected_cost(values: Tensor, weight_probabilities: Tensor, activation_probabilities: Tensor) -> Tensor:
    """Exact expectation of the total cost under independent distributions of the widths 1..8 of every layer.

    Args:
        values: (layers, 8, 8), `CostTable.tensor()`.
        weight_probabilities, activation_probabilities: (layers, 8), rows sum to 1.

    Returns:
        scalar of the dtype of the probabilities, differentiable in them.
    """
    p, q = weight_probabilities, activation_probabilities
    return torch.einsum("lwa,lw,la->", values.to(p.dtype), p, q.to(p.dtype))


@lru_cache(maxsize=32)
def _table(model: CostModel, layers: tuple[Layer, ...]) -> CostTable:
    path = _cache_file(model, layers) if model.slow else None
    if path is not None and path.is_file():
        values = np.load(path, allow_pickle=False)
    else:
        values = _compute(model, layers)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{os.getpid()}.npy")
            np.save(temporary, values)
            os.replace(temporary, path)
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


def _cache_file(model: CostModel, layers: tuple[Layer, ...]) -> Path:
    folder = os.environ.get("HARDWARE_CACHE")
    if folder is None:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "network-quantization"
    digest = hashlib.sha256(repr((model.name, model.constants, layers)).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return Path(folder) / f"{model.name}-{digest.hexdigest()[:16]}.npy"
