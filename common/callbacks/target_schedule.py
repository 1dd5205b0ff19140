"""Compression targets that rise during training."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from common.training.schedule import equal_steps


class TargetCompressionSchedule(Callback):
    """Raise the weight and activation compression targets from `start` in equal steps, one at the start of each cycle.

    The targets reach their final values in the cycle `ramp_cycles` (counted from 1) and stay there (HMQ, section 5).
    The module takes them through `set_targets(wcr, acr)`; they are set again after a resume.

    Args:
        target_wcr, target_acr: final targets.
        ramp_cycles: cycles in which they rise.
        start_wcr, start_acr: targets of the first cycle, where they are not below them anyway.
    """

    def __init__(
        self, target_wcr: float, target_acr: float, ramp_cycles: int = 4, start_wcr: float = 4.0, start_acr: float = 4.0
    ) -> None:
        if ramp_cycles < 1:
            raise ValueError(f"ramp_cycles must be at least 1, got {ramp_cycles}")
        self.target_wcr, self.target_acr = target_wcr, target_acr
        self.ramp_cycles, self.start_wcr, self.start_acr = ramp_cycles, start_wcr, start_acr
        self._set: tuple[float, float] | None = None

    def targets(self, cycle: int) -> tuple[float, float]:
        """(target WCR, target ACR) in a cycle."""
        wcr = equal_steps(min(self.start_wcr, self.target_wcr), self.target_wcr, self.ramp_cycles, cycle)
        acr = equal_steps(min(self.start_acr, self.target_acr), self.target_acr, self.ramp_cycles, cycle)
        return wcr, acr

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if not hasattr(pl_module, "set_targets"):
            raise TypeError(f"{type(pl_module).__name__} has no set_targets")
        self._set = None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        targets = self.targets(pl_module.schedule.cycle(pl_module.step))
        if targets != self._set:
            pl_module.set_targets(*targets)
            self._set = targets
