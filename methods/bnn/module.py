"""BNN's inputs (Hubara et al. 2016)."""

from __future__ import annotations

from typing import Any

from torch import nn

from common.graph import Site
from common.quantizers.binary import SignQuantizer
from common.training.sign_weights import SignWeights


class BNN(SignWeights):
    """Signs of weights and of layer inputs, without scales; latent weights clipped; all layers alike.

    Arguments: see SignWeights and BinaryAware.
    """

    def __init__(self, activation_bit_width: int = 1, **kwargs: Any) -> None:
        super().__init__(activation_bit_width=activation_bit_width, **kwargs)

    def input_quantizer(self, site: Site, bit_width: int) -> nn.Module:
        return SignQuantizer(bit_width, signed=not (site.non_negative and self.remove_relus))
