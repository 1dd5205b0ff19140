"""Train a method on 128 of the digits, 8 batches of 16 an epoch, in a process of its own: to be killed, resumed, split.

    python train_digits.py FOLDER METHOD '{"target_wcr": 8}' [--epochs 3] [--kill-at 5] [--devices 2]

Started again with the same command it resumes from the latest checkpoint (one every 3 steps). At the end every rank
writes FOLDER/final-RANK.pt: state dict, policy and logits of fixed images.
"""

import argparse
import importlib
import json
import os
import signal
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from data import DigitsData
from reproduce.callbacks import LAST, AtomicCheckpoint


class KillOnce(Callback):
    """SIGKILL before the given batches, each time only in the first process that gets there."""

    def __init__(self, folder: Path, steps: list[int]) -> None:
        self.folder, self.steps = folder, steps

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        mark = self.folder / f"killed-{pl_module.step}"
        if pl_module.step in self.steps and not mark.exists():
            mark.write_text("")
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("method")
    parser.add_argument("settings", type=json.loads)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--kill-at", type=int, nargs="*", default=[])
    parser.add_argument("--devices", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    module = importlib.import_module(f"methods.{options.method}").METHOD(**options.settings)
    checkpoints = options.folder / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    trainer = pl.Trainer(
        default_root_dir=options.folder,
        max_epochs=options.epochs,
        accelerator="cpu",
        devices=options.devices,
        strategy="ddp" if options.devices > 1 else "auto",
        callbacks=[KillOnce(options.folder, options.kill_at), AtomicCheckpoint(checkpoints, 3)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    last = checkpoints / LAST
    data = DigitsData(batch_size=16, subset=128)
    trainer.fit(module, datamodule=data, ckpt_path=str(last) if last.exists() else None)
    module.eval()
    with torch.no_grad():
        logits = module(torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    final = {"state": module.state_dict(), "policy": module.policy().to_dict(), "logits": logits, "step": module.step}
    torch.save(final, options.folder / f"final-{trainer.global_rank}.pt")


if __name__ == "__main__":
    main()
