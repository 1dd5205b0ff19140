"""WRPN's choice of quantizers (Mishra et al. 2018)."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from common.graph import Layer, Site
from common.quantizers import wrpn
from common.quantizers.binary import BWN
from common.quantizers.dorefa import DoReFaActivation
from common.training.binary_weights import BinaryWeights


class WRPN(BinaryWeights):
    """Weights on uniform levels of [-1, 1], inputs clipped to [0, 1], for widened networks; ends in float.

    The network is widened by its model: `common.models.widened.resnet34` with `model_args: {width: 2}`.

    Args:
        start: limits of the weights' range: "constant" is 1; "mse" that of the least squared error at the start.

    Other arguments: see QuantizationAware.

    Raises:
        UserError: a layer whose input can be negative; widths outside 1..8 (32: float), an unknown start.
    """

    def __init__(
        self,
        weight_bit_width: int = 4,
        activation_bit_width: int = 4,
        start: Literal["constant", "mse"] = "constant",
        **kwargs: Any,
    ) -> None:
        self.start = start
        super().__init__(weight_bit_width=weight_bit_width, activation_bit_width=activation_bit_width, **kwargs)

    def weight_quantizer(self, layer: Layer, bit_width: int) -> nn.Module:
        if bit_width == 1:
            return BWN(channels=layer.out_channels)
        return wrpn.WRPN(bit_width, start=self.start)

    def input_quantizer(self, site: Site, bit_width: int) -> nn.Module:
        return DoReFaActivation(bit_width, signed=not site.non_negative)
