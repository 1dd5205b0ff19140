"""The switch from search to fine-tuning."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback


class PhaseSwitch(Callback):
    """Call `pl_module.on_phase(2)` once, before the first batch of the second phase of the module's `schedule`.

    What the module decides there must be part of its own state; the callback only remembers that it has happened.
    """

    def __init__(self) -> None:
        self.phase = 1

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        phase = pl_module.schedule.phase(pl_module.step)
        if phase != self.phase:
            self.phase = phase
            pl_module.on_phase(phase)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        # A schedule without fine-tuning ends with its search, and the policy is still to be decided.
        if self.phase == 1 and pl_module.step >= pl_module.total_steps:
            self.phase = 2
            pl_module.on_phase(2)

    def state_dict(self) -> dict[str, Any]:
        return {"phase": self.phase}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.phase = state_dict["phase"]
