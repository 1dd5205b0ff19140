"""PACT's choice of quantizers (Choi et al. 2018)."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from common.graph import Layer, Site
from common.quantizers import pact
from common.quantizers.dorefa import dorefa_weight
from common.training.quantization_aware import QuantizationAware


class PACT(QuantizationAware):
    """Inputs clipped at a learned level, which decays like a weight; DoReFa's weights; first and last layer in float.

    Args:
        alpha: clipping level at the start.
        start: "constant" takes that one; "mse" the one of the least squared error on the first batch instead.
        quantizer_weight_decay: of the clipping levels; None is that of the weights (paper: L2 on alpha).
        differentiate_max: of DoReFa's weights.

    Other arguments: see QuantizationAware.

    Raises:
        UserError: a layer whose input can be negative; widths outside 1..8 (32: float), an unknown start.
    """

    def __init__(
        self,
        alpha: float = 8.0,
        start: Literal["constant", "mse"] = "constant",
        differentiate_max: bool = True,
        first_last: Literal["float", "8bit", "same"] = "float",
        weight_decay: float = 2e-4,
        quantizer_weight_decay: float | None = None,
        **kwargs: Any,
    ) -> None:
        self.alpha, self.start, self.differentiate_max = alpha, start, differentiate_max
        super().__init__(
            first_last=first_last,
            weight_decay=weight_decay,
            quantizer_weight_decay=weight_decay if quantizer_weight_decay is None else quantizer_weight_decay,
            **kwargs,
        )

    def weight_quantizer(self, layer: Layer, bit_width: int) -> nn.Module:
        return dorefa_weight(bit_width, self.differentiate_max)

    def input_quantizer(self, site: Site, bit_width: int) -> nn.Module:
        return pact.PACT(bit_width, signed=not site.non_negative, alpha=self.alpha, start=self.start)
