"""DoReFa-Net's choice of quantizers (Zhou et al. 2016)."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from common.compression import FLOAT_BITS
from common.errors import UserError
from common.graph import Layer, Site
from common.graph.gradients import gradient_quantizers, insert_gradient_quantizers
from common.quantizers.dorefa import DoReFaActivation, DoReFaGradient, dorefa_weight
from common.training.quantization_aware import QuantizationAware


class DoReFa(QuantizationAware):
    """Weights on the grid of tanh(w) / max |tanh(w)|, inputs clipped to [0, 1]; first and last layer in float.

    Args:
        differentiate_max: let the gradient flow through the maximum of |tanh(w)|, as the public code does.
        gradient_bit_width: of the gradients that enter the layers in between, 1..16; 32 leaves them alone. With
            first_last "same" those of the first and the last layer too. They are no part of the bit policy, for they
            do not outlive the training.

    Other arguments: see QuantizationAware.

    Raises:
        UserError: a layer whose input can be negative; widths outside 1..8, of gradients 1..16 (32: float).
    """

    def __init__(
        self,
        differentiate_max: bool = True,
        first_last: Literal["float", "8bit", "same"] = "float",
        gradient_bit_width: int = FLOAT_BITS,
        **kwargs: Any,
    ) -> None:
        self.differentiate_max = differentiate_max
        super().__init__(first_last=first_last, **kwargs)
        if gradient_bit_width != FLOAT_BITS:
            layers = [layer for layer in self.layers if first_last == "same" or not self.is_outer(layer)]
            try:
                chosen = {f"{layer.name}.gradient": DoReFaGradient(gradient_bit_width) for layer in layers}
            except ValueError as error:
                raise UserError(f"DoReFa, gradients: {error}") from None
            insert_gradient_quantizers(self.network, chosen)

    def weight_quantizer(self, layer: Layer, bit_width: int) -> nn.Module:
        return dorefa_weight(bit_width, self.differentiate_max)

    def input_quantizer(self, site: Site, bit_width: int) -> nn.Module:
        return DoReFaActivation(bit_width, signed=not site.non_negative)

    def before_step(self, images: Tensor) -> None:
        super().before_step(images)
        for site, quantizer in gradient_quantizers(self.network).items():
            quantizer.draw(self.noise_key(site), self.step)
