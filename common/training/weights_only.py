"""What methods share that quantize weights and leave the inputs of layers in float."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from common.graph import Site
from common.training.quantization_aware import QuantizationAware


class WeightsOnly(QuantizationAware):
    """Weights behind quantizers, inputs in float.

    A quantizer whose numbers are computed from the latent weight may have `follow(weight)`, called with the latest
    weight before every evaluation and at the end of the training, before the packed file is written.

    Args:
        weight_bit_width: of all layers but the first and the last.
        activation_bit_width: 32; here because every method has it.

    Other arguments: see QuantizationAware.

    Raises:
        UserError: quantized inputs; see also QuantizationAware.
    """

    def __init__(
        self,
        weight_bit_width: int = 2,
        activation_bit_width: int = 32,
        first_last: Literal["float", "8bit", "same"] = "float",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            weight_bit_width=weight_bit_width,
            activation_bit_width=activation_bit_width,
            first_last=first_last,
            **kwargs,
        )

    def input_quantizer(self, site: Site, bit_width: int) -> nn.Module:
        raise ValueError(f"it quantizes weights alone, activation_bit_width must be 32, got {bit_width}")

    def follow_weights(self) -> None:
        """Bring what is computed from the weights up to date with them."""
        quantizers = self.quantizers
        for site, weight in self.latent_weights().items():
            if hasattr(quantizers[site], "follow"):
                quantizers[site].follow(weight)

    def on_validation_start(self) -> None:
        self.follow_weights()

    def on_test_start(self) -> None:
        self.follow_weights()

    def on_train_end(self) -> None:
        self.follow_weights()
