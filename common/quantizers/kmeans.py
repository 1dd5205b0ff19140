"""K-means: weights that share 2^b centroids (Deep Compression, Han et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from common.quantizers.levels import LevelsEncoding
from common.quantizers.modules import Quantizer, Traits
from common.quantizers.planes import check_width, nearest_codes, straight_through
from common.random import counter_uniform

STARTS = ("linear", "density", "random")
MAX_ITERATIONS = 50


def start_centroids(ascending: Tensor, clusters: int, start: str = "linear", key: int = 0) -> Tensor:
    """First centroids of sorted values (n,), ascending (clusters,).

    Args:
        ascending: the values, sorted.
        clusters: k.
        start: "linear" between the least and the largest value; "density", the middles of k parts of equally many
            values; "random", k different ones of the values.
        key: random stream of the last (`stream_key`).

    Raises:
        ValueError: another start; fewer values than clusters for "random".
    """
    n, device = len(ascending), ascending.device
    if start == "linear":
        steps = torch.arange(clusters, device=device, dtype=ascending.dtype) / max(1, clusters - 1)
        return ascending[0] + (ascending[-1] - ascending[0]) * steps
    if start == "density":
        return ascending[(2 * torch.arange(clusters, device=device) + 1) * n // (2 * clusters)]
    if start != "random":
        raise ValueError(f"start must be one of {STARTS}, got {start!r}")
    if n < clusters:
        raise ValueError(f"clusters must not exceed the number of values, {n}, got {clusters}")
    draws = counter_uniform(torch.tensor(key, device=device), 0, torch.arange(n, device=device))
    return ascending[draws.topk(clusters).indices.sort().values]


@torch.no_grad()
def kmeans(
    values: Tensor, clusters: int, start: str = "linear", iterations: int = MAX_ITERATIONS, key: int = 0
) -> tuple[Tensor, int]:
    """Lloyd's algorithm on a line: k centroids with a small sum of squared distances, never growing.

    On sorted values with prefix sums, in float64: O(n log n) once, O(k log n) for an iteration. A value halfway between
    two centroids belongs to the upper one. A centroid without values moves to the value that is farthest from its own.

    Args:
        values: any shape, not empty.
        clusters: k.
        start, key: see `start_centroids`.
        iterations: at most so many.

    Returns:
        centroids, ascending (k,), dtype of values, and how many iterations changed them.
    """
    ascending = values.detach().double().flatten().sort().values
    prefix = torch.cat([ascending.new_zeros(1), ascending.cumsum(0)])
    centroids = start_centroids(ascending, clusters, start, key)
    for iteration in range(iterations):
        updated = _lloyd_step(ascending, prefix, centroids)
        if torch.equal(updated, centroids):
            return centroids.to(values.dtype), iteration
        centroids = updated
    return centroids.to(values.dtype), iterations


def _lloyd_step(ascending: Tensor, prefix: Tensor, centroids: Tensor) -> Tensor:
    inner = torch.searchsorted(ascending, (centroids[1:] + centroids[:-1]) / 2)
    ends = torch.cat([inner.new_zeros(1), inner, inner.new_full((1,), len(ascending))])
    counts = ends.diff()
    filled = counts > 0
    updated = torch.where(filled, prefix[ends].diff() / counts, centroids)
    if empty := int((~filled).sum()):
        # The farthest values of a cluster are its least and its largest one.
        owner = filled.nonzero().squeeze(1).repeat(2)
        farthest = torch.cat([ends[:-1][filled], ends[1:][filled] - 1])
        distances = (ascending[farthest] - centroids[owner]).abs()
        order = distances.sort(dim=0, descending=True, stable=True).indices[:empty]
        order = order[distances[order] > 0]
        updated[(~filled).nonzero().squeeze(1)[: len(order)]] = ascending[farthest[order]]
    return updated.sort().values


def shared_weights(centroids: Tensor, codes: Tensor) -> Tensor:
    """centroids[codes]; the gradient of a centroid is the sum over its members, taken in float64.

    Args:
        centroids: (k,).
        codes: integers, any shape.
    """
    return centroids.double()[codes.long()].to(centroids.dtype)


def compression_rate(num_weights: int, bit_width: int) -> float:
    """32 n / (n b + 32 2^b): b bits per weight and a float32 table of 2^b centroids."""
    return 32 * num_weights / (num_weights * bit_width + 32 * 2**bit_width)


class KMeansQuantizer(Quantizer):
    """Weights that share 2^b trained centroids.

    With a `shape` the clusters stay as `calibrate` finds them: the values of a weight of this shape do not depend on it
    any more, and only the centroids have a gradient, the sum over their members. `release` leaves the weight in float
    until `calibrate` is called again. Without a shape, and for tensors of another one, a value takes the nearest
    centroid, and the gradient passes straight through to it as well.

    Args:
        bit_width: b.
        signed: True; the centroids lie where the weights do.
        shape: of the weight, for clusters that stay.
        start, key: see `start_centroids`.

    Parameters: centroids (2^b,), at first linear from -1 to 1.
    Buffers: bit_width; codes of the shape, uint8; clustered, bool.
    """

    traits: ClassVar[Traits] = Traits(bit_widths=tuple(range(1, 9)), unsigned=False, zero_is_level=False)

    def __init__(
        self,
        bit_width: int = 4,
        signed: bool = True,
        shape: Sequence[int] | None = None,
        start: str = "linear",
        key: int = 0,
    ) -> None:
        super().__init__()
        check_width(type(self), bit_width, signed)
        if start not in STARTS:
            raise ValueError(f"start must be one of {STARTS}, got {start!r}")
        self.start, self.key, self.fixed = start, key, shape is not None
        self.centroids = nn.Parameter(torch.linspace(-1, 1, 2**bit_width))
        self.register_buffer("bit_width", torch.tensor(bit_width))
        self.register_buffer("codes", torch.zeros(tuple(shape or (0,)), dtype=torch.uint8))
        self.register_buffer("clustered", torch.tensor(True))

    def _nearest(self, x: Tensor) -> Tensor:
        centroids = self.centroids.detach()
        return nearest_codes(x.detach().to(centroids.dtype), centroids)

    def _is_weight(self, x: Tensor) -> bool:
        return self.fixed and x.shape == self.codes.shape

    def forward(self, x: Tensor) -> Tensor:
        if self._is_weight(x):
            return torch.where(self.clustered, shared_weights(self.centroids, self.codes).to(x.dtype), x)
        value = shared_weights(self.centroids, self._nearest(x)).to(x.dtype)
        return value + straight_through(torch.zeros_like(x), x)

    @torch.no_grad()
    def calibrate(self, x: Tensor, max_abs: float | None = None) -> None:
        """Cluster x; `max_abs` is not needed."""
        self.centroids.copy_(kmeans(x, len(self.centroids), self.start, key=self.key)[0])
        self.clustered.fill_(True)
        if self.fixed:
            self.codes.copy_(self._nearest(x))

    def release(self) -> None:
        """Leave the weight in float."""
        self.clustered.fill_(False)

    def encode(self, x: Tensor) -> LevelsEncoding:
        codes = self.codes if self._is_weight(x) else self._nearest(x)
        bits = (len(self.centroids) - 1).bit_length()
        return LevelsEncoding(codes.to(torch.int32), self.centroids.detach().float(), 0, (x.shape[0],), (bits,))

    def inference_form(self) -> KMeansQuantizer:
        return self
