"""A tiny training job that notes every batch it sees."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.nn import functional as F


class Recorder(LightningModule):
    """A linear classifier; `batches` holds (epoch, batch index, hash of images and labels) of every training step."""

    def __init__(
        self, input_shape: tuple[int, int, int], num_classes: int, interrupt_at: tuple[int, int] | None = None
    ):
        super().__init__()
        self.linear = torch.nn.Linear(torch.Size(input_shape).numel(), num_classes)
        torch.nn.init.zeros_(self.linear.weight)
        torch.nn.init.zeros_(self.linear.bias)
        self.interrupt_at = interrupt_at
        self.at_end: Callable[[Recorder], None] | None = None
        self.batches: list[tuple[int, int, str]] = []
        self.val_batches: list[str] = []

    def training_step(self, batch, batch_idx):
        if self.interrupt_at == (self.current_epoch, batch_idx):
            raise InterruptedError("stopped by the test")
        self.batches.append((self.current_epoch, batch_idx, batch_hash(batch)))
        return F.cross_entropy(self.linear(batch[0].flatten(1)), batch[1])

    def validation_step(self, batch, batch_idx):
        self.val_batches.append(batch_hash(batch))

    def on_train_end(self):
        if self.at_end is not None:
            self.at_end(self)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def batch_hash(batch) -> str:
    images, labels = batch
    return hashlib.sha256(images.contiguous().numpy().tobytes() + labels.numpy().tobytes()).hexdigest()[:12]


@dataclass
class Run:
    batches: list[tuple[int, int, str]]
    val_batches: list[str]
    weights: dict[str, torch.Tensor]
    checkpoints: Path = field(default_factory=Path)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def train(tmp_path):
    """train(data, **trainer settings) -> Run; interrupt_at=(epoch, batch) raises there, in a step not yet done;
    on_train_end(module) is called in every process."""

    def train(
        data: LightningDataModule, *, ckpt_path=None, interrupt_at=None, checkpoint=None, on_train_end=None, **settings
    ) -> Run:
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        module = Recorder(data.input_shape, data.num_classes, interrupt_at)
        module.at_end = on_train_end
        trainer = Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            callbacks=[ModelCheckpoint(folder, "{step}", save_top_k=-1, **(checkpoint or {"every_n_epochs": 1}))],
            **{"devices": 1} | settings,
        )
        try:
            trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
        except InterruptedError:
            assert interrupt_at is not None
        weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        return Run(module.batches, module.val_batches, weights, folder)

    return train
