"""XNOR-Net's weights, inputs and scales (Rastegari et al. 2016, section 3.2)."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from common.errors import UserError
from common.graph import Layer, Site
from common.operators import scale_outputs
from common.quantizers.binary import BWN, SignQuantizer
from common.training.binary_aware import BinaryAware


class XNORNet(BinaryAware):
    """conv(sign(x), sign(w)) K alpha: alpha = mean |w| of the filter, K = mean |x| of the window; float ends.

    Args:
        activation_scale: "box" multiplies by K (paper), "none" leaves it out (authors' training code).
        gradient: of the weights, "ste" or the paper's "xnor", see `common.quantizers.binary.bwn`.

    Other arguments: see BinaryAware.

    Raises:
        UserError: another word for activation_scale; with "box", a layer over several groups of channels.
    """

    def __init__(
        self,
        activation_bit_width: int = 1,
        activation_scale: Literal["box", "none"] = "box",
        gradient: Literal["ste", "xnor"] = "ste",
        optimizer: Literal["sgd", "adam", "radam"] = "adam",
        learning_rate: float = 1e-3,
        **kwargs: Any,
    ) -> None:
        if activation_scale not in ("box", "none"):
            raise UserError(f"activation_scale must be one of box, none, got {activation_scale!r}")
        self.activation_scale, self.gradient = activation_scale, gradient
        super().__init__(
            activation_bit_width=activation_bit_width, optimizer=optimizer, learning_rate=learning_rate, **kwargs
        )
        if activation_scale == "box" and activation_bit_width == 1:
            scale_outputs(self.network, self.binary_inputs())

    def weight_quantizer(self, layer: Layer, bit_width: int) -> nn.Module:
        return BWN(bit_width, channels=layer.out_channels, gradient=self.gradient)

    def input_quantizer(self, site: Site, bit_width: int) -> nn.Module:
        return SignQuantizer(bit_width, signed=not (site.non_negative and self.remove_relus))
