"""Deep Compression's weight sharing: k-means clusters with trained centroids (Han et al. 2016)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.graph import Layer
from common.quantizers.kmeans import KMeansQuantizer
from common.random import stream_key
from common.training.weights_only import WeightsOnly


class DeepCompression(WeightsOnly):
    """The weights of a layer share 2^b centroids; clusters stay, centroids train; inputs stay in float.

    Args:
        start: of the centroids: "linear" (paper), "density" or "random".
        cluster_at: fraction of the training before which weights are float: 0 (paper) clusters those that the network
            starts from; more trains them first.
        quantizer_learning_rate: of the centroids, whose gradients are sums over their members.

    Other arguments: see WeightsOnly; `weight_bit_width` is 1..8.

    Raises:
        UserError: unknown start, a fraction outside [0, 1); see also WeightsOnly.
    """

    own_eight_bits = False  # a table of 256 centroids would be larger than a small layer

    def __init__(
        self,
        weight_bit_width: int = 4,
        start: str = "linear",
        cluster_at: float = 0.0,
        first_last: Literal["float", "8bit", "same"] = "same",
        quantizer_learning_rate: float = 0.01,
        **kwargs: Any,
    ) -> None:
        if not 0 <= cluster_at < 1:
            raise UserError(f"cluster_at must be a fraction of the training below 1, got {cluster_at}")
        self.start, self.cluster_at = start, cluster_at
        super().__init__(
            weight_bit_width=weight_bit_width,
            first_last=first_last,
            quantizer_learning_rate=quantizer_learning_rate,
            **kwargs,
        )

    def weight_quantizer(self, layer: Layer, bit_width: int) -> nn.Module:
        shape = self.network.get_parameter(f"{layer.name}.weight").shape
        return KMeansQuantizer(bit_width, shape=shape, start=self.start, key=stream_key(self.seed, layer.name))

    def _clustered(self) -> dict[str, KMeansQuantizer]:
        return {site: q for site, q in self.quantizers.items() if isinstance(q, KMeansQuantizer)}

    def calibrate(self, batches: Iterable[Tensor]) -> None:
        super().calibrate(batches)
        if self.cluster_at > 0:
            for quantizer in self._clustered().values():
                quantizer.release()

    def before_step(self, images: Tensor) -> None:
        super().before_step(images)
        if self.cluster_at > 0 and self.step == math.ceil(self.cluster_at * self.total_steps):
            latent = self.latent_weights()
            for site, quantizer in self._clustered().items():
                quantizer.calibrate(latent[site])

    @torch.no_grad()
    def follow_weights(self) -> None:
        """Give the float weights, which play no part any more, the values that they stand for."""
        super().follow_weights()
        latent = self.latent_weights()
        for site, quantizer in self._clustered().items():
            latent[site].copy_(quantizer(latent[site]))
