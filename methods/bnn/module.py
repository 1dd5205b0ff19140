"""BNN's weights and inputs (Hubara et al. 2016)."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from common.graph import Layer, Site
from common.quantizers.binary import BinaryConnect, SignQuantizer
from common.training.binary_aware import BinaryAware


class BNN(BinaryAware):
    """Signs of weights and of layer inputs, without scales; latent weights clipped to [-1, 1]; all layers alike.

    Other arguments: see BinaryAware.
    """

    def __init__(
        self,
        activation_bit_width: int = 1,
        first_last: Literal["float", "8bit", "same"] = "same",
        clip_weights: Literal["none", "one", "glorot"] = "one",
        learning_rate_scale: Literal["one", "glorot"] = "glorot",
        optimizer: Literal["sgd", "adam", "radam"] = "adam",
        learning_rate: float = 3e-3,
        weight_decay: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            activation_bit_width=activation_bit_width,
            first_last=first_last,
            clip_weights=clip_weights,
            learning_rate_scale=learning_rate_scale,
            optimizer=optimizer,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            **kwargs,
        )

    def weight_quantizer(self, layer: Layer, bit_width: int) -> nn.Module:
        return BinaryConnect(bit_width)

    def input_quantizer(self, site: Site, bit_width: int) -> nn.Module:
        return SignQuantizer(bit_width, signed=not (site.non_negative and self.remove_relus))
