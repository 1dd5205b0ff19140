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
        write_packed(folder, pl_module, trainer.datamodule)


def write_packed(folder: Path, module: Any, data: Any) -> None:
    """Write `policy.json` and `packed.safetensors` of a module that was made with a data module."""
    module.policy().save(folder / "policy.json")
    save_packed(
        folder / "packed.safetensors",
        module.network,
        policy=module.policy(),
        num_classes=module.num_classes,
        model_args=module.model_args,
        method=type(module).__name__,
        start_weights=module.start_weights,
        data={"name": getattr(data, "name", ""), "mean": list(data.mean), "std": list(data.std)},
    )
