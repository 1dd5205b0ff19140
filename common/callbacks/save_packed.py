"""The packed low-bit file at the end of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from common.packing import save_packed


class SavePacked(Callback):
    """At the end of training write `packed.safetensors` and `policy.json` to `folder` (default: the log folder)."""

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        folder = Path(self.folder or trainer.log_dir or trainer.default_root_dir)  # collective: on every rank
        if not trainer.is_global_zero or pl_module.step < pl_module.total_steps:
            return  # an interrupted run has no final policy yet
        folder.mkdir(parents=True, exist_ok=True)
        pl_module.policy().save(folder / "policy.json")
        data = trainer.datamodule
        save_packed(
            folder / "packed.safetensors",
            pl_module.network,
            policy=pl_module.policy(),
            num_classes=pl_module.num_classes,
            model_args=pl_module.model_args,
            method=type(pl_module).__name__,
            start_weights=pl_module.start_weights,
            data={"name": getattr(data, "name", ""), "mean": list(data.mean), "std": list(data.std)},
        )
