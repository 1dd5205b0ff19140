"""Bit-widths that fall during training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback


class ProgressiveBitWidths(Callback):
    """At the first batch of every stage call `pl_module.set_bit_widths(weight, activation, images)`.

    The call comes again after a resume; the module does nothing where a width is what it was. Widths are buffers, so
    that a stage costs no recompilation.

    Args:
        stages: (begin, weight bit-width, activation bit-width), begin in fractions of the training, ascending from 0;
            32 is float.

    Raises:
        ValueError: stages that do not begin at 0 and ascend.
    """

    def __init__(self, stages: Sequence[tuple[float, int, int]]) -> None:
        begins = [begin for begin, _, _ in stages]
        if not begins or begins[0] != 0 or begins != sorted(begins) or begins[-1] >= 1:
            raise ValueError(f"stages must begin at 0 and ascend below 1, got {begins}")
        self.stages = tuple(stages)
        self._set: tuple[int, int] | None = None

    def widths(self, step: int, total_steps: int) -> tuple[int, int]:
        """(weight, activation) widths of a training batch."""
        return [(w, a) for begin, w, a in self.stages if round(begin * total_steps) <= step][-1]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if not hasattr(pl_module, "set_bit_widths"):
            raise TypeError(f"{type(pl_module).__name__} has no set_bit_widths")
        self._set = None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._change(pl_module, self.widths(pl_module.step, pl_module.total_steps), batch[0])

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.step >= pl_module.total_steps:  # a very short run may have skipped the last stage
            self._change(pl_module, self.stages[-1][1:], batch[0])

    def _change(self, pl_module: Any, widths: tuple[int, int], images: Any) -> None:
        if widths != self._set:
            pl_module.set_bit_widths(*widths, images)
            self._set = widths
