"""BinaryConnect's weights (Courbariaux et al. 2015)."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from common.training.sign_weights import SignWeights

NORM_BATCHES = 50  # training batches over which stochastic training averages batch norm's statistics anew at its end


class BinaryConnect(SignWeights):
    """Weights +-H, latent weights clipped to [-H, H] after every step; inputs in float, all layers alike.

    Args:
        stochastic: in training +H with probability clip((w / H + 1) / 2, 0, 1); eval mode takes the sign.

    Other arguments: see SignWeights and BinaryAware.
    """

    def __init__(self, stochastic: bool = False, **kwargs: Any) -> None:
        self.stochastic = stochastic
        super().__init__(**kwargs)

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
