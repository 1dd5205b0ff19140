"""BinaryConnect's weights (Courbariaux et al. 2015)."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from common.graph import Layer
from common.quantizers import binary
from common.training.binary_aware import BinaryAware


class BinaryConnect(BinaryAware):
    """Weights +-H, latent weights clipped to [-H, H] after every step; inputs in float, all layers alike.

    Args:
        stochastic: in training +H with probability clip((w / H + 1) / 2, 0, 1); eval mode takes the sign.
        magnitude: H, 1 ("one") or the Glorot bound sqrt(1.5 / (fan_in + fan_out)) of the layer ("glorot").

    Other arguments: see BinaryAware.
    """

    def __init__(
        self,
        stochastic: bool = False,
        magnitude: Literal["one", "glorot"] = "one",
        first_last: Literal["float", "8bit", "same"] = "same",
        learning_rate_scale: Literal["one", "glorot"] = "glorot",
        optimizer: Literal["sgd", "adam", "radam"] = "adam",
        learning_rate: float = 3e-3,
        weight_decay: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.stochastic, self.magnitude = stochastic, magnitude
        super().__init__(
            clip_weights=magnitude,
            first_last=first_last,
            learning_rate_scale=learning_rate_scale,
            optimizer=optimizer,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            **kwargs,
        )

    def weight_quantizer(self, layer: Layer, bit_width: int) -> nn.Module:
        shape = self.sites[f"{layer.name}.weight"].shape
        return binary.BinaryConnect(
            bit_width, magnitude=self.bound(self.magnitude, shape), shape=shape if self.stochastic else None
        )
