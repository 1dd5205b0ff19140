"""Calibrators: networks quantized after training, from a few images. Their command line, and how one run goes."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor

from common.calibration import quantizers_off
from common.callbacks.save_packed import write_packed
from common.errors import UserError
from common.training.cli import QuantizationCLI, _notices_to_stdout
from common.training.quantized_module import QuantizedModule


def calibrate(
    module: QuantizedModule,
    data: Any,
    folder: Path,
    device: torch.device | str = "cpu",
    progress: Callable[[str], None] | None = None,
) -> None:
    """Calibrate with `module.calibration_images` training images and write what a trainer writes at its end.

    The folder gets `packed.safetensors`, `policy.json` and one line of `history.jsonl`.
    """
    module.to(device).eval()
    module.calibrate(calibration_images(module, data, device), progress)
    folder.mkdir(parents=True, exist_ok=True)
    write_packed(folder, module, data)
    report = {"step": 0, "policy/wcr": module.wcr(), "policy/acr": module.acr(), "bit_widths": module.policy().sites}
    (folder / "history.jsonl").write_text(json.dumps(report) + "\n")


def calibration_images(module: Any, data: Any, device: torch.device | str) -> Iterator[Tensor]:
    """Batches of training images without augmentation, the last one cut; read when they are asked for."""
    left, size = module.calibration_images, min(module.calibration_batch_size, module.calibration_images)
    for images, _ in data.calibration_batches(-(-left // size), size):
        yield images[:left].to(device)
        left -= len(images)


class CalibrationTrainer(pl.Trainer):
    """A Trainer that calibrates instead of fitting."""

    def calibrate(self, model: QuantizedModule, datamodule: pl.LightningDataModule) -> None:
        """Calibrate a module, write its policy and packed file, and print the accuracy before and after.

        Args:
            model: the calibrator.
            datamodule: images to calibrate on and to test with.
        """
        datamodule.setup()
        with quantizers_off(model.network):
            before = self._top1(model, datamodule)
        folder = Path(self.log_dir or self.default_root_dir)
        calibrate(model, datamodule, folder, self.strategy.root_device, progress=lambda line: print(line, flush=True))
        after = self._top1(model, datamodule)
        print(f"top-1 {before:.2f} % before quantization, {after:.2f} % after")
        print(f"WCR {model.wcr():.2f}, ACR {model.acr():.2f}")
        print(f"wrote {folder / 'packed.safetensors'} and {folder / 'policy.json'}")

    def _top1(self, model: QuantizedModule, datamodule: pl.LightningDataModule) -> float:
        (metrics,) = self.test(model, datamodule=datamodule, verbose=False)
        return metrics["test/top1"]


class CalibrationCLI(QuantizationCLI):
    """Subcommand calibrate; the data module by name (`--data DigitsData`) or class path."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"calibrate": {"model", "datamodule"}}


def run_calibration_cli(method: type[QuantizedModule], errors: tuple[type[Exception], ...] = ()) -> None:
    """Run a calibrator from the command line. Bad input ends in one line on standard error and status 2.

    Args:
        method: the calibrator.
        errors: further exceptions that the user caused, besides UserError.
    """
    _notices_to_stdout()
    try:
        CalibrationCLI(
            method,
            pl.LightningDataModule,
            trainer_class=CalibrationTrainer,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_callback=None,
            parser_kwargs={"exit_on_error": False},
        )
    except (UserError, *errors, argparse.ArgumentError, MisconfigurationException) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
