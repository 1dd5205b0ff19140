"""An invented method, small enough to be read at a glance: weights are pulled towards their grid while they train."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from common.callbacks import PolicyLogger, SavePacked
from common.quantizers import SymmetricQuantizer
from common.training import QuantizedModule


class GridPull(QuantizedModule):
    """Quantized weights, float activations; loss = task loss + pull * mean (w - Q(w))^2.

    Args:
        bit_width: of every weight tensor.
        pull: weight of the second term.
        learning_rate: of RAdam.

    Other arguments: see QuantizedModule.
    """

    def __init__(self, bit_width: int = 4, pull: float = 0.1, learning_rate: float = 1e-3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pull, self.learning_rate = pull, learning_rate
        self.insert({f"{layer.name}.weight": SymmetricQuantizer(bit_width) for layer in self.layers})

    def calibrate(self, batches: Iterable[Tensor]) -> None:
        for name, quantizer in self.quantizers.items():
            weight = self.network.get_parameter(name).detach()
            quantizer.calibrate(weight, float(weight.abs().max()))

    def training_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        task_loss = self.task.loss(self(images), labels)
        weights = {name: self.network.get_parameter(name) for name in self.quantizers}
        errors = [(w - self.quantizers[name](w).detach()).square().sum() for name, w in weights.items()]
        pull_loss = torch.stack(errors).sum() / sum(w.numel() for w in weights.values())
        self.log_dict({"train/task_loss": task_loss, "train/pull_loss": pull_loss})
        return task_loss + self.pull * pull_loss

    def acr(self) -> float:
        return 1.0  # activations stay in float

    def configure_callbacks(self) -> list[Callback]:
        return [PolicyLogger(), SavePacked()]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        self.prepare_schedule()
        return torch.optim.RAdam(self.parameter_groups(), lr=self.learning_rate)
