"""Learning-rate schedules as factors of the step, one per parameter group."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from common.errors import UserError

Factor = Callable[[int], float]


def decay(name: str, total_steps: int) -> Factor:
    """Factor of the learning rate at a step: "constant" is 1, "cosine" falls from 1 to 0 over `total_steps`.

    Raises:
        UserError: another name.
    """
    if name == "constant":
        return lambda step: 1.0
    if name == "cosine":
        return lambda step: 0.5 * (1 + math.cos(math.pi * min(step, total_steps) / max(1, total_steps)))
    raise UserError(f"unknown learning_rate_schedule {name!r}: choose constant or cosine")


def with_factors(
    optimizer: torch.optim.Optimizer, factors: Sequence[Factor], batches_per_step: int = 1
) -> dict[str, Any]:
    """What `configure_optimizers` returns: group i learns at its own rate times factors[i](training batch).

    Args:
        factors: one per parameter group, of the index of the training batch.
        batches_per_step: training batches per optimizer step.
    """
    lambdas = [lambda step, factor=factor: factor(step * batches_per_step) for factor in factors]
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambdas)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
