"""BinaryConnect's weights (Courbariaux et al. 2015)."""

from __future__ import annotations

from typing import Any

import torch

from common.calibration.norms import fresh_statistics
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
        self.network.eval()
        with fresh_statistics(self.network):
            for images, _ in self.trainer.datamodule.calibration_batches(NORM_BATCHES):
                self.network.forward(images.to(self.device))  # not the compiled one
        self.network.train()
