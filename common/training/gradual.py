"""Training in stages: what INQ, UNIQ and others that quantize a network part by part have in common."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.training.optimizers import learning_rate_factor, with_factors
from common.training.quantization_aware import QuantizationAware


def even_starts(stages: int, end: float = 1.0) -> list[float]:
    """Fractions of the training at which `stages` equally long stages begin that are over at `end`."""
    return [end * stage / stages for stage in range(stages)]


def check_starts(starts: Sequence[float]) -> None:
    """
    Raises:
        UserError: not ascending fractions of the training.
    """
    if not starts or starts[0] < 0 or any(a >= b for a, b in pairwise([*starts, 1.0])):
        raise UserError(f"stage_starts must be ascending fractions of the training below 1, got {list(starts)}")


class Gradual(QuantizationAware):
    """A training in stages, each of which begins at a fraction of it. Everything follows from `step`: nothing is saved.

    Subclasses set `stage_starts` and define `enter_stage`, called before the first batch of each stage, 0 included;
    stages that a short training has no batch for are entered together with the next one, or at its end.

    Attributes:
        stage_starts: ascending fractions of the training; before the first one it is in no stage (-1).
        restart_learning_rate: run through the schedule of the learning rate, drops included, in every stage.
    """

    stage_starts: Sequence[float]
    restart_learning_rate: bool = False

    def enter_stage(self, stage: int, images: Tensor | None) -> None:
        """Stage `stage` begins, with this batch; None where the training is over."""
        raise NotImplementedError

    def frozen_weights(self) -> Iterable[nn.Parameter]:
        """Parameters that must not change at present; neither momentum nor weight decay moves them."""
        return ()

    def stage_of(self, step: int) -> int:
        """Index of the stage of a training batch."""
        return sum(step >= start * self.total_steps for start in self.stage_starts) - 1

    def before_step(self, images: Tensor) -> None:
        for stage in range(self.stage_of(self.step - 1) + 1, self.stage_of(self.step) + 1):
            self.enter_stage(stage, images)
        super().before_step(images)  # the random numbers of the stage just entered

    def on_train_end(self) -> None:
        if self.step >= self.total_steps:  # not interrupted
            for stage in range(self.stage_of(self.step - 1) + 1, len(self.stage_starts)):
                self.enter_stage(stage, None)
        super().on_train_end()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        for weight in self.frozen_weights():
            weight.grad = None  # which optimizers skip, momentum and decay included

    def configure_optimizers(self) -> dict[str, Any]:
        configured = super().configure_optimizers()
        if not self.restart_learning_rate:
            return configured
        ends = [math.ceil(start * self.total_steps) for start in [0.0, *self.stage_starts, 1.0]]

        def factor(step: int) -> float:
            first, end = ends[self.stage_of(step) + 1 :][:2]
            return learning_rate_factor(self.learning_rate_schedule, end - first, self.learning_rate_drops)(
                step - first
            )

        optimizer = configured["optimizer"]
        return with_factors(optimizer, [factor] * len(optimizer.param_groups), self.trainer.accumulate_grad_batches)
