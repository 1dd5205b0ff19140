"""Seeded sample order, sharding by rank and resuming in mid-epoch: what every training loader here has in common."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor

from data.errors import DataError

Batch = tuple[Tensor, Tensor]


def derived_seed(*keys: int | str) -> int:
    """A seed in [0, 2^63) that depends on every key, equal on all machines and library versions."""
    digest = hashlib.sha256(repr(keys).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def derived_generator(*keys: int | str) -> torch.Generator:
    """An own CPU generator seeded from the keys; the global one is never touched."""
    return torch.Generator().manual_seed(derived_seed(*keys))


def rank_and_world_size() -> tuple[int, int]:
    """This process's rank and the number of processes; (0, 1) outside distributed training."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def shuffled(size: int, *keys: int | str) -> Tensor:
    """A permutation of 0..size-1, (size,) int64, which is a function of the keys alone."""
    return torch.randperm(size, generator=derived_generator("order", *keys))


def processed_batches(data_module: LightningDataModule) -> Callable[[], int] | None:
    """How many training batches of the current epoch the module's trainer has processed; None without a trainer."""
    trainer = data_module.trainer
    if trainer is None:
        return None
    return lambda: trainer.fit_loop.epoch_loop.batch_progress.current.processed


def data_device(data_module: LightningDataModule) -> torch.device:
    """The module's `device` setting; without one its trainer's device; without a trainer the CPU."""
    trainer = data_module.trainer
    return torch.device(data_module.device or (trainer.strategy.root_device if trainer else "cpu"))


class ResumableLoader(ABC):
    """An iterable over the batches of one epoch; subclasses say how a batch is made.

    The order of the samples is a function of (seed, epoch), so the state of a loader is an epoch and a number of
    batches. Lightning keeps `state_dict()` in its checkpoints and gives it to `load_state_dict` when it resumes in
    mid-epoch. Every pass is of the next epoch, also after one that was broken off.

    In distributed training every rank takes its strided part of the same permutation. Training parts (`shuffle`) are of
    equal length: what is left over is dropped with `drop_last`, otherwise the permutation is continued from its start.
    Evaluation parts hold every sample exactly once, so their lengths may differ by one sample.

    Args:
        size: number of samples.
        batch_size: samples per batch and rank.
        seed: of the sample order.
        shuffle: a new permutation in every epoch; otherwise samples come in their stored order.
        drop_last: leave out a last batch smaller than batch_size.
        sharded: take this rank's part; False gives every rank everything.
    Raises:
        DataError: there is no complete batch to give.
    """

    batch_sampler = None  # Lightning looks for it wherever there is a sampler

    def __init__(
        self, size: int, batch_size: int, seed: int, *, shuffle: bool, drop_last: bool, sharded: bool = True
    ) -> None:
        if batch_size < 1:
            raise DataError(f"batch_size must be at least 1, got {batch_size}")
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.sharded = sharded
        self.batches_processed: Callable[[], int] | None = None  # the trainer's own count for this epoch, where known
        self._epoch = 0  # of the latest pass, or of the first one to come
        self._position = 0  # batches given out in it
        self._counting = False  # a pass was begun or a state restored: the next pass is of the next epoch
        self._resume = False  # except this: the next pass goes on at _position
        if len(self) == 0:
            world_size = self._shard()[1]
            raise DataError(
                f"batch_size {batch_size} on {world_size} rank(s) needs {batch_size * world_size} training images, "
                f"but there are {size}: lower batch_size"
            )

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def sampler(self) -> "ResumableLoader":
        """Where Lightning looks for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """The trainer announces its epoch: a new loader starts there.

        Later the loader counts its passes itself, because Lightning 2.6 skips a number when it resumes with max_steps
        from the end of an epoch. What a restored loader learns is whether the epoch it stands in is still to be
        finished: with limit_train_batches it cannot know.
        """
        if not self._counting:
            self._epoch = epoch
        elif epoch != self._epoch:
            self._resume = False

    def __len__(self) -> int:
        samples = self._samples_per_rank()
        return samples // self.batch_size if self.drop_last else -(-samples // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        # A generator runs nothing before its first batch is asked for: Lightning calls iter() before it sets the epoch.
        if not (self._resume and self._position < len(self)):
            self._epoch += self._counting
            self._position = 0
        self._counting, self._resume = True, False
        for batch in self._batches(self._rank_indices(), self._position):
            self._position += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        position = self._position
        if self.batches_processed is not None:
            # A batch given out but interrupted before its step was done has to come again.
            position = min(position, self.batches_processed())
        return {
            "epoch": self._epoch,
            "position": position,
            "length": len(self),
            "batch_size": self.batch_size,
            "seed": self.seed,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after the batch that the state was saved at.

        Raises:
            DataError: the state stands in mid-epoch and this loader's order is another one.
        """
        if 0 < state["position"] < state["length"]:
            own = {"seed": self.seed, "batch_size": self.batch_size, "length": len(self)}
            if changed := [name for name, value in own.items() if state[name] != value]:
                was = ", ".join(f"{name} {state[name]}" for name in changed)
                now = ", ".join(f"{name} {own[name]}" for name in changed)
                raise DataError(
                    f"the checkpoint stands in mid-epoch with {was}, the data now have {now}: "
                    "resume with the same settings"
                )
        self._epoch, self._position = state["epoch"], state["position"]
        self._counting = self._resume = True

    @abstractmethod
    def _batches(self, indices: Tensor, start: int) -> Iterator[Any]:
        """Yield batches start, start + 1, ..., len(self) - 1 of this rank's sample indices, (samples,) int64."""

    def _batch_indices(self, indices: Tensor, batch: int) -> Tensor:
        return indices[batch * self.batch_size : (batch + 1) * self.batch_size]

    def _shard(self) -> tuple[int, int]:
        return rank_and_world_size() if self.sharded else (0, 1)

    def _samples_per_rank(self) -> int:
        rank, world_size = self._shard()
        if not self.shuffle:
            return (self.size - rank + world_size - 1) // world_size
        return self.size // world_size if self.drop_last else -(-self.size // world_size)

    def _rank_indices(self) -> Tensor:
        rank, world_size = self._shard()
        if not self.shuffle:
            return torch.arange(rank, self.size, world_size)
        order = shuffled(self.size, self.seed, self._epoch)
        total = self._samples_per_rank() * world_size
        return torch.cat([order, order[: max(0, total - self.size)]])[:total][rank::world_size]
