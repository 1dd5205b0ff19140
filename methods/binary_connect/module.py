"""BinaryConnect's weights (Courbariaux et al. 2015)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from common.graph import Layer
from common.quantizers import binary
from common.training.binary_aware import BinaryAware

NORM_BATCHES = 50  # training batches over which stochastic training averages batch norm's statistics anew at its end


class BinaryConnect(BinaryAware):
    """Weights +-H, latent weights clipped to [-H, H] after every step; inputs in float, all layers alike.

    Args:
        stochastic: in training +H with probability clip((w / H + 1) / 2, 0, 1); eval mode takes the sign.
        magnitude: H, 1 ("one") or the Glorot bound sqrt(1.5 / (fan_in + fan_out)) of the layer ("glorot").

    Other arguments: see BinaryAware.
    """

    def __init__(
        self,
        stochastic: bool = False,
        magnitude: Literal["one", "glorot"] = "one",
        first_last: Literal["float", "8bit", "same"] = "same",
        learning_rate_scale: Literal["one", "glorot"] = "glorot",
        optimizer: Literal["sgd", "adam", "radam"] = "adam",
        learning_rate: float = 3e-3,
        weight_decay: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.stochastic, self.magnitude = stochastic, magnitude
        super().__init__(
            clip_weights=magnitude,
            first_last=first_last,
            learning_rate_scale=learning_rate_scale,
            optimizer=optimizer,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            **kwargs,
        )

    def weight_quantizer(self, layer: Layer, bit_width: int) -> nn.Module:
        shape = self.sites[f"{layer.name}.weight"].shape
        return binary.BinaryConnect(
            bit_width, magnitude=self.bound(self.magnitude, shape), shape=shape if self.stochastic else None
        )

    def on_train_end(self) -> None:
        super().on_train_end()
        if self.stochastic:
            self._estimate_norms()

    @torch.no_grad()
    def _estimate_norms(self) -> None:
        """Batch norm statistics of the network of signs: training left those of random weights, which differ much."""
        norms = [module for module in self.network.modules() if isinstance(module, _BatchNorm)]
        momenta = [norm.momentum for norm in norms]
        self.network.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
            norm.train()
        for images, _ in self.trainer.datamodule.calibration_batches(NORM_BATCHES):
            self.network.forward(images.to(self.device))  # not the compiled one
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        self.network.train()
