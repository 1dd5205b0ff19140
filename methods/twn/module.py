"""TWN's choice of quantizers (Li et al. 2016)."""

from __future__ import annotations

from typing import Any

from torch import nn

from common.graph import Layer
from common.quantizers import ternary
from common.training.weights_only import WeightsOnly


class TWN(WeightsOnly):
    """Weights are alpha times -1, 0 or 1; threshold and alpha follow the latent weights; inputs stay in float.

    Args:
        factor: threshold in mean magnitudes of the weights (0.7 in the paper).
        per_channel: a threshold and an alpha for every filter (paper: per layer).

    Other arguments: see WeightsOnly; `weight_bit_width` is 2.
    """

    own_eight_bits = False

    def __init__(self, factor: float = ternary.TWN_FACTOR, per_channel: bool = False, **kwargs: Any) -> None:
        self.factor, self.per_channel = factor, per_channel
        super().__init__(**kwargs)

    def weight_quantizer(self, layer: Layer, bit_width: int) -> nn.Module:
        channels = layer.out_channels if self.per_channel else None
        return ternary.TWN(bit_width, channels=channels, factor=self.factor)
