"""BWN's weights (Rastegari et al. 2016, section 3.1)."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from common.graph import Layer
from common.quantizers import binary
from common.training.binary_aware import BinaryAware


class BWN(BinaryAware):
    """Weights alpha sign(w), alpha = mean |w|; inputs, first and last layer in float.

    Args:
        per_channel: one alpha per output channel (paper), or one per layer (lecture).
        gradient: "ste" passes the gradient through; "xnor" is the paper's rule, see `common.quantizers.binary.bwn`.

    Other arguments: see BinaryAware. The authors' code also sets `clip_weights: one` and `center_weights: true`.
    """

    def __init__(self, per_channel: bool = True, gradient: Literal["ste", "xnor"] = "ste", **kwargs: Any) -> None:
        self.per_channel, self.gradient = per_channel, gradient
        super().__init__(**kwargs)

    def weight_quantizer(self, layer: Layer, bit_width: int) -> nn.Module:
        channels = layer.out_channels if self.per_channel else None
        return binary.BWN(bit_width, channels=channels, gradient=self.gradient)
