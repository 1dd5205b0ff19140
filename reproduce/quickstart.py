"""From a float network to packed low-bit files on the embedded digits, in about a minute.

Trains a small float network, quantizes it with HMQ at two target rates and with uniform quantization of the same sizes,
packs every model, loads the files again and measures what they hold. All models have the same number of steps.
"""

from __future__ import annotations

import logging
import shutil
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger
from tqdm import tqdm

from common.command_line import Parser, guarded
from common.compression import FLOAT_BITS
from common.errors import UserError
from common.packing import read_metadata
from common.training import QuantizedModule
from data import DigitsData
from methods.full_precision import FullPrecision
from methods.hmq import HMQ
from methods.uniform import Uniform
from reproduce.evaluate import evaluate
from reproduce.measure import accuracy, sampling_error
from reproduce.plots import Point, plot_pareto, plot_run

MODEL = "digits_net"
FLOAT_EPOCHS, EPOCHS = 40, 30
TARGET_ACR = 4.0
FLOAT_LEARNING_RATE = 0.1
# HMQ's published 1e-5 is for 10,000 steps on a trained CIFAR network; 660 steps on a small one take larger ones.
LEARNING_RATE = 1e-3
LOGIT_MULTIPLIER = 50.0
RUNS: dict[str, tuple[type[QuantizedModule], dict[str, Any]]] = {
    "hmq_wcr8": (HMQ, {"target_wcr": 8.0}),
    "uniform_4bit": (Uniform, {"weight_bit_width": 4}),
    "hmq_wcr16": (HMQ, {"target_wcr": 16.0}),
    "uniform_2bit": (Uniform, {"weight_bit_width": 2}),
}


@dataclass(frozen=True)
class Row:
    """One measured model: accuracies in percent, sizes in bytes."""

    name: str
    weight_bits: str
    top1: float
    wcr: float
    acr: float
    code_bytes: int
    file_bytes: int


class Progress(Callback):
    """One bar over all steps of all runs."""

    def __init__(self, bar: tqdm) -> None:
        self.bar = bar

    def on_train_batch_end(self, *args: Any) -> None:
        self.bar.update()


def main(arguments: Sequence[str]) -> int:
    """`bash reproduce/quickstart.sh`: prints the table and where everything is; the exit status.

    Raises:
        UserError, DataError: bad arguments.
    """
    parser = Parser(prog="bash reproduce/quickstart.sh", description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", default="runs/quickstart", help="folder for everything (default %(default)s)")
    parser.add_argument("--float-epochs", type=int, default=FLOAT_EPOCHS, help="default %(default)s")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of every quantized model (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--subset", type=int, help="use only the first so many training images")
    options = parser.parse_args(arguments)
    if min(options.epochs, options.float_epochs) < 1:
        raise UserError("--epochs and --float-epochs must be at least 1")
    torch.set_num_threads(1)  # a network this small gains nothing from two, and loses much beside other programs
    run(Path(options.out), options.float_epochs, options.epochs, options.seed, options.subset)
    return 0


def run(out: Path, float_epochs: int, epochs: int, seed: int = 0, subset: int | None = None) -> list[Row]:
    """Train, quantize, pack, measure, draw and print; the rows, float first."""
    start = time.monotonic()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    data = DigitsData(seed=seed, subset=subset)
    steps_per_epoch = len(data.train_dataloader())
    print(
        f"Digits: {data.train_size} training and {data.test_size} test images of 8x8. Float: {float_epochs} epochs of "
        f"SGD from {FLOAT_LEARNING_RATE:g}.\nQuantized: {epochs} epochs of RAdam each, weights {LEARNING_RATE:g}, "
        f"HMQ's logits {LEARNING_RATE * LOGIT_MULTIPLIER:g}; activations at ACR {TARGET_ACR:g}."
    )
    total = steps_per_epoch * (float_epochs + epochs * len(RUNS))
    interval = 0.5 if sys.stderr.isatty() else 10.0  # seconds; a log file needs few lines
    with tqdm(total=total, unit="step", mininterval=interval) as bar, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bar.set_description("full precision")
        full = FullPrecision(MODEL, seed=seed, learning_rate=FLOAT_LEARNING_RATE)
        _fit(full, data, float_epochs, out / "full_precision", bar)
        weights = out / "full_precision" / "weights.safetensors"
        rows = [_float_row(full, data, weights)]
        for name, (method, settings) in RUNS.items():
            bar.set_description(name)
            settings = settings | {"learning_rate": LEARNING_RATE, "target_acr": TARGET_ACR, "log_every_n_steps": 10}
            if method is HMQ:
                # With repair the packed codes are no larger than those of the uniform model beside it.
                settings |= {"logit_learning_rate_multiplier": LOGIT_MULTIPLIER, "budget_repair": True}
            module = method(MODEL, weights=str(weights), seed=seed, **settings)
            _fit(module, data, epochs, out / name, bar)
            rows.append(_packed_row(name, out / name / "packed.safetensors"))
        bar.set_description("done")
    pictures = _draw(rows, out)
    print("\n" + table(rows) + "\n")
    print(
        f"Measured on the packed files, loaded again. One test image is {100 / data.test_size:.2f} points, the "
        f"sampling error {sampling_error(rows[0].top1, data.test_size):.2f}."
    )
    print(f"Packed models  {out}/<model>/packed.safetensors\nPlots          {pictures[0].parent} ({len(pictures)})")
    print(f"TensorBoard    tensorboard --logdir {out}\nTook {time.monotonic() - start:.0f} s.")
    return rows


def _fit(module: QuantizedModule, data: DigitsData, epochs: int, folder: Path, bar: tqdm) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # an earlier quickstart's
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        logger=TensorBoardLogger(folder.parent, name=folder.name, version=""),
        callbacks=[Progress(bar)],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        log_every_n_steps=10,
    )
    trainer.fit(module, datamodule=data)


def _float_row(module: FullPrecision, data: DigitsData, weights: Path) -> Row:
    float_bytes = 4 * sum(layer.num_weights for layer in module.layers)
    top1 = accuracy(module.network, data.test_dataloader())["top1"]
    return Row("full precision", "32", top1, 1.0, 1.0, float_bytes, weights.stat().st_size)


def _packed_row(name: str, path: Path) -> Row:
    """What the packed file holds, from the file alone."""
    measured = evaluate(path)
    policy = read_metadata(path)["policy"]
    widths = sorted({policy.bits(site) for site in policy.sites if site.endswith(".weight")})
    mixed = f"{widths[0]:g}-{widths[-1]:g}, mean {FLOAT_BITS / measured['wcr']:.2f}"
    return Row(
        name,
        f"{widths[0]:g}" if len(widths) == 1 else mixed,
        measured["top1"],
        measured["wcr"],
        measured["acr"],
        measured["bytes"]["codes_bytes"],
        measured["bytes"]["file_bytes"],
    )


def table(rows: list[Row]) -> str:
    """The side-by-side table; the drop is against the first row."""
    lines = [
        f"{'model':16}{'weight bits':>18}{'top-1 %':>9}{'drop':>7}{'WCR':>8}{'ACR':>6}"
        f"{'code bytes':>12}{'file bytes':>12}"
    ]
    for row in rows:
        lines.append(
            f"{row.name:16}{row.weight_bits:>18}{row.top1:9.2f}{rows[0].top1 - row.top1:7.2f}{row.wcr:8.3f}"
            f"{row.acr:6.2f}{row.code_bytes:12,}{row.file_bytes:12,}"
        )
    return "\n".join(lines)


def _draw(rows: list[Row], out: Path) -> list[Path]:
    folder = out / "plots"
    series = {
        label: [Point(row.wcr, row.top1) for row in rows if row.name.startswith(prefix)]
        for label, prefix in (("HMQ", "hmq"), ("uniform", "uniform"))
    }
    front = plot_pareto(series, folder / "pareto.png", title="digits_net on digits, ACR 4", float_top1=rows[0].top1)
    pictures = [front] if front else []
    for name, (method, _) in RUNS.items():
        if method is HMQ:
            pictures += plot_run(out / name, folder, prefix=f"{name}_")
    return pictures


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
