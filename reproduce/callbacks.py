"""What the runner adds to every training: checkpoints that survive kill -9, times that survive resumes, progress."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, Checkpoint
from torch.nn.modules.batchnorm import _BatchNorm

LAST = "last.ckpt"
_KEPT_STEPS = 2000  # step times kept for the median


class AtomicCheckpoint(Checkpoint):
    """`last.ckpt` every `every_n_steps` batches and at the end of every epoch, replaced at once.

    Lightning writes to a temporary folder and moves the file, which on another file system is a copy and can be cut
    short; here the finished file is renamed within its folder.
    """

    def __init__(self, folder: Path, every_n_steps: int) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        self.folder, self.every_n_steps = folder, every_n_steps

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.step % self.every_n_steps == 0 and not trainer.is_last_batch:
            self.save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.save(trainer)

    def save(self, trainer: pl.Trainer) -> None:
        temporary = self.folder / f"{LAST}.partial"
        trainer.save_checkpoint(temporary)  # on every rank
        if trainer.is_global_zero:
            os.replace(temporary, self.folder / LAST)
        trainer.strategy.barrier("checkpoint")


class RunStatistics(Callback):
    """Wall time over all resumes, step times, and the mode of batch norm.

    Attributes:
        batch_norm_training: whether batch norms used batch statistics in the latest step; None without batch norm.
    """

    def __init__(self) -> None:
        self.wall_time_s = 0.0
        self.step_times_s: deque[float] = deque(maxlen=_KEPT_STEPS)
        self.batch_norm_training: bool | None = None
        self.resumed_at: list[int] = []
        self._begun = self._last = self._told = 0.0
        self._previous_end: float | None = None

    @property
    def step_time_ms(self) -> float | None:
        """Median over the latest steps, loading included."""
        return 1e3 * statistics.median(self.step_times_s) if self.step_times_s else None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._begun = time.monotonic() - self.wall_time_s
        if pl_module.step:
            self.resumed_at.append(pl_module.step)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._previous_end = None  # the first step of an epoch waits for loaders and follows a validation

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        now = time.monotonic()
        if self._previous_end is not None:
            self.step_times_s.append(now - self._previous_end)
        self._previous_end, self.wall_time_s = now, now - self._begun
        norms = [module for module in pl_module.modules() if isinstance(module, _BatchNorm)]
        self.batch_norm_training = all(module.training for module in norms) if norms else None
        if trainer.is_global_zero and not sys.stderr.isatty() and now - self._told > 30:
            self._told = now
            print(f"  step {pl_module.step} of {pl_module.total_steps}, {self.wall_time_s:.0f} s", flush=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.wall_time_s = time.monotonic() - self._begun
        if trainer.is_global_zero:
            top1 = trainer.callback_metrics.get("val/top1")
            shown = "" if top1 is None else f", top1 {float(top1):.2f}"
            print(
                f"  epoch {trainer.current_epoch + 1} of {trainer.max_epochs}: {self.wall_time_s:.0f} s{shown}",
                flush=True,
            )

    def state_dict(self) -> dict[str, Any]:
        return {
            "wall_time_s": time.monotonic() - self._begun,
            "step_times_s": list(self.step_times_s),
            "resumed_at": self.resumed_at,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.wall_time_s = state_dict["wall_time_s"]
        self.step_times_s.extend(state_dict["step_times_s"])
        self.resumed_at = list(state_dict["resumed_at"])
