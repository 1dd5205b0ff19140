"""What tests of several folders share: one thread, and short quiet runs on the embedded digits."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; inherited by the processes that tests start

import pytest
import pytorch_lightning as pl
import torch

torch.set_num_threads(1)
REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture
def fit(tmp_path):
    """fit(module, steps=8, batch_size=16, **trainer options) -> trainer: train on 128 of the digits, 8 steps an epoch.

    With `max_epochs` it ends after whole epochs instead. Logs go to `folder` (default: tmp_path); `resume` is a
    checkpoint; `callbacks` and other options are the trainer's.
    """
    from data import DigitsData

    def run(module, steps=8, batch_size=16, subset=128, folder=None, resume=None, **options):
        trainer = pl.Trainer(
            default_root_dir=folder or tmp_path,
            max_steps=-1 if "max_epochs" in options else steps,
            accelerator="cpu",
            devices=1,
            **{
                "logger": False,
                "enable_checkpointing": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "limit_val_batches": 0,
            }
            | options,
        )
        trainer.fit(module, datamodule=DigitsData(batch_size=batch_size, subset=subset), ckpt_path=resume)
        return trainer

    return run
