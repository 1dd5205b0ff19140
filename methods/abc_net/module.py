"""ABC-Net's weights and inputs (Lin et al. 2017)."""

from __future__ import annotations

from typing import Any

from torch import nn

from common.graph import Layer, Site
from common.quantizers.multi_bit import ABCNetActivations, ABCNetWeights
from common.training.binary_aware import BinaryAware


class ABCNet(BinaryAware):
    """Weights are sums of M binary tensors, inputs of N with trained thresholds and scales; float ends.

    Args:
        weight_bit_width, activation_bit_width: M and N, the numbers of planes; 32 inputs are float.
        per_channel: fit the scales of the weights per output channel (paper: per layer).
        clipped_gradient: pass no gradient to weights beyond +-1.

    Other arguments: see BinaryAware.
    """

    def __init__(
        self,
        weight_bit_width: int = 3,
        activation_bit_width: int = 3,
        per_channel: bool = False,
        clipped_gradient: bool = False,
        **kwargs: Any,
    ) -> None:
        self.per_channel, self.clipped_gradient = per_channel, clipped_gradient
        super().__init__(weight_bit_width=weight_bit_width, activation_bit_width=activation_bit_width, **kwargs)

    def weight_quantizer(self, layer: Layer, bit_width: int) -> nn.Module:
        channels = layer.out_channels if self.per_channel else None
        return ABCNetWeights(bit_width, channels=channels, clipped=self.clipped_gradient)

    def input_quantizer(self, site: Site, bit_width: int) -> nn.Module:
        return ABCNetActivations(bit_width)
