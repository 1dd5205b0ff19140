"""Annealing of a softmax temperature."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback


class TemperatureAnnealing(Callback):
    """tau = max(exp(-rate i), minimum) with i = round(step in cycle / N), N = cycle / updates_per_cycle (HMQ, eq. 12).

    The temperature starts at 1 in every cycle of the module's `schedule` and changes every N steps, so that a shortened
    cycle sees the same values as a full one. The module takes it through `set_temperature`.

    Args:
        rate: r of eq. 12.
        minimum: smallest temperature.
        updates_per_cycle: number of updates in a cycle.
    """

    def __init__(self, rate: float = 0.01, minimum: float = 0.5, updates_per_cycle: int = 125) -> None:
        if rate <= 0 or not 0 < minimum <= 1:
            raise ValueError(f"rate must be positive and minimum in (0, 1], got {rate} and {minimum}")
        if updates_per_cycle < 1:
            raise ValueError(f"updates_per_cycle must be at least 1, got {updates_per_cycle}")
        self.rate, self.minimum, self.updates_per_cycle = rate, minimum, updates_per_cycle

    def temperature(self, step_in_cycle: int, cycle_steps: float) -> float:
        """tau at a step of a cycle of `cycle_steps` steps."""
        update = round(step_in_cycle * self.updates_per_cycle / cycle_steps)
        return max(math.exp(-self.rate * update), self.minimum)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if not hasattr(pl_module, "set_temperature"):
            raise TypeError(f"{type(pl_module).__name__} has no set_temperature")

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        schedule = pl_module.schedule
        if schedule.phase(pl_module.step) == 1:
            in_cycle = schedule.step_in_cycle(pl_module.step)
            pl_module.set_temperature(self.temperature(in_cycle, schedule.cycle_steps))
