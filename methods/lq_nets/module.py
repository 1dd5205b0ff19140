"""LQ-Nets' choice of quantizers (Zhang et al. 2018)."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from common.graph import Layer, Site
from common.quantizers.multi_bit import LQNetsActivations, LQNetsWeights
from common.training.quantization_aware import QuantizationAware


class LQNets(QuantizationAware):
    """A basis per output channel of a weight and per layer input, fitted in every forward pass (QEM); ends in float.

    Every process fits the bases of its own images; after each step all take the mean.

    Args:
        momentum_of_bases: share of the old basis in the new one.

    Other arguments: see QuantizationAware.

    Raises:
        UserError: a layer whose input can be negative; widths outside 1..8 (32: float).
    """

    own_eight_bits: ClassVar[bool] = False  # 8 planes would take 256 levels and a fit of 8 unknowns

    def __init__(
        self,
        momentum_of_bases: float = 0.9,
        first_last: Literal["float", "8bit", "same"] = "float",
        learning_rate: float = 0.1,
        weight_decay: float = 5e-5,
        **kwargs: Any,
    ) -> None:
        self.momentum_of_bases = momentum_of_bases
        super().__init__(first_last=first_last, learning_rate=learning_rate, weight_decay=weight_decay, **kwargs)

    def weight_quantizer(self, layer: Layer, bit_width: int) -> nn.Module:
        fan_out = math.prod(layer.kernel_size) * layer.out_channels
        return LQNetsWeights(bit_width, channels=layer.out_channels, fan_out=fan_out, momentum=self.momentum_of_bases)

    def input_quantizer(self, site: Site, bit_width: int) -> nn.Module:
        return LQNetsActivations(bit_width, signed=not site.non_negative, momentum=self.momentum_of_bases)

    def after_optimizer_step(self) -> None:
        super().after_optimizer_step()
        self._average_bases()

    @torch.no_grad()
    def _average_bases(self) -> None:
        """Those of weights agree already: all processes have the same weights."""
        bases = [q.basis for q in self.quantizers.values() if isinstance(q, LQNetsActivations)]
        if not (bases and torch.distributed.is_available() and torch.distributed.is_initialized()):
            return
        flat = torch.cat(bases)
        torch.distributed.all_reduce(flat)
        flat /= torch.distributed.get_world_size()
        for basis, mean in zip(bases, flat.split([len(basis) for basis in bases]), strict=True):
            basis.copy_(mean)
