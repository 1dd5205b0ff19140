"""Batch norm statistics of a network whose weights or inputs are no longer those that it was trained with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def fresh_statistics(network: nn.Module) -> Iterator[None]:
    """Batch norms forget their running statistics and average those of the batches that they see, all alike.

    Inside, batch norms are in train mode, whatever the rest of the network is in; afterwards they are as before.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    before = [(norm.training, norm.momentum) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        yield
    finally:
        for norm, (training, momentum) in zip(norms, before, strict=True):
            norm.train(training)
            norm.momentum = momentum
