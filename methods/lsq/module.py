"""LSQ's choice of quantizers (Esser et al. 2020)."""

from __future__ import annotations

from typing import Any

from torch import nn

from common.graph import Layer, Site
from common.quantizers import lsq
from common.training.quantization_aware import QuantizationAware


class LSQ(QuantizationAware):
    """Step sizes of weights and inputs learned with the task loss; first and last layer at 8 bits.

    Args:
        per_channel: one step per output channel of a weight (paper: per layer).
        offset: learn an offset of the inputs too (LSQ+, Bhalgat et al. 2020).

    Other arguments: see QuantizationAware.
    """

    def __init__(self, per_channel: bool = False, offset: bool = False, **kwargs: Any) -> None:
        self.per_channel, self.offset = per_channel, offset
        super().__init__(**kwargs)

    def weight_quantizer(self, layer: Layer, bit_width: int) -> nn.Module:
        return lsq.LSQ(bit_width, signed=True, channels=layer.out_channels if self.per_channel else None)

    def input_quantizer(self, site: Site, bit_width: int) -> nn.Module:
        return lsq.LSQ(bit_width, signed=not site.non_negative, offset=self.offset, batched=True)
