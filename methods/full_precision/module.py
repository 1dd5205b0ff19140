"""Float training by SGD with momentum and a cosine schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from safetensors.torch import save_file

from common.training import QuantizedModule
from common.training.optimizers import decay, with_factors


class SaveWeights(Callback):
    """At the end of training write the network's state dict to `weights.safetensors`, as `--weights` reads it."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # collective: on every rank
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            state = {name: value.detach().cpu().contiguous() for name, value in pl_module.network.state_dict().items()}
            save_file(state, folder / "weights.safetensors")


class FullPrecision(QuantizedModule):
    """No quantizers; Nesterov momentum 0.9, cosine learning rate down to 0 over all steps.

    Args:
        learning_rate: initial learning rate.
        weight_decay: on all parameters.

    Other arguments: see QuantizedModule.
    """

    def __init__(
        self,
        model: str = "digits_net",
        weights: str | None = None,
        num_classes: int | None = None,
        input_shape: tuple[int, int, int] | None = None,
        model_args: dict[str, Any] | None = None,
        seed: int = 0,
        compile_network: bool = False,
        channels_last: bool = False,
        learning_rate: float = 0.1,
        weight_decay: float = 5e-4,
    ) -> None:
        super().__init__(
            model=model,
            weights=weights,
            num_classes=num_classes,
            input_shape=input_shape,
            model_args=model_args,
            seed=seed,
            compile_network=compile_network,
            channels_last=channels_last,
            calibration_batches=0,
        )
        self.learning_rate, self.weight_decay = learning_rate, weight_decay

    def configure_callbacks(self) -> list[Callback]:
        return [SaveWeights()]

    def configure_optimizers(self) -> dict[str, Any]:
        self.prepare_schedule()
        optimizer = torch.optim.SGD(
            self.parameters(), lr=self.learning_rate, momentum=0.9, nesterov=True, weight_decay=self.weight_decay
        )
        return with_factors(optimizer, [decay("cosine", self.total_steps)], self.trainer.accumulate_grad_batches)
