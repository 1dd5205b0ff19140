"""Weights that are plain signs: what BinaryConnect and BNN share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from torch import Tensor, nn

from common.graph import Layer
from common.quantizers.binary import BinaryConnect
from common.training.binary_aware import BinaryAware


class SignWeights(BinaryAware):
    """Weights +-H in all layers, latent weights clipped to [-H, H] after every step, Adam.

    Args:
        magnitude: H, 1 ("one") or the Glorot bound sqrt(1.5 / (fan_in + fan_out)) of the layer ("glorot"). Behind batch
            norm it makes no difference; a last layer without one gives smaller logits with "glorot".
        learning_rate_scale: see BinaryAware. With H = 1 and "glorot" a step is the same part of [-H, H] as with
            "glorot" and "one".

        fill_range: before the first step multiply each layer's weights so that the largest is H: the same signs, of
            which a step changes fewer. For trained start weights, most of which are much smaller than H.

    Other arguments: see BinaryAware.
    """

    stochastic = False

    def __init__(
        self,
        magnitude: Literal["one", "glorot"] = "one",
        fill_range: bool = False,
        first_last: Literal["float", "8bit", "same"] = "same",
        learning_rate_scale: Literal["one", "glorot"] = "glorot",
        optimizer: Literal["sgd", "adam", "radam"] = "adam",
        learning_rate: float = 3e-3,
        weight_decay: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.magnitude, self.fill_range = magnitude, fill_range
        super().__init__(
            clip_weights=magnitude,
            first_last=first_last,
            learning_rate_scale=learning_rate_scale,
            optimizer=optimizer,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            **kwargs,
        )

    def calibrate(self, batches: Iterable[Tensor]) -> None:
        if self.fill_range:
            for weight in map(self.network.get_parameter, self.planes()):
                weight.data.mul_(self.bound(self.magnitude, weight.shape) / weight.data.abs().max())
        super().calibrate(batches)

    def weight_quantizer(self, layer: Layer, bit_width: int) -> nn.Module:
        shape = self.sites[f"{layer.name}.weight"].shape
        magnitude = self.bound(self.magnitude, shape)
        return BinaryConnect(bit_width, magnitude=magnitude, shape=shape if self.stochastic else None)
