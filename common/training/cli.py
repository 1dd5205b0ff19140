"""LightningCLI with one-line errors, for the `__main__` of a paper folder."""

from __future__ import annotations

import argparse
import inspect
import logging
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from common.errors import UserError
from common.training.quantized_module import QuantizedModule


class QuantizationCLI(LightningCLI):
    """Subcommands fit, validate, test; the data module by name (`--data DigitsData`) or class path."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults({"trainer.num_sanity_val_steps": 0})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        super().parse_arguments(parser, args)
        path = self.config.get(f"{self.config.subcommand}.ckpt_path")
        if path and path not in ("best", "last", "hpc"):
            _check_checkpoint(Path(path))

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:  # a constructor's ValueError is about an argument, and all arguments are the user's
            raise UserError(str(error)) from error


def _check_checkpoint(path: Path) -> None:
    """
    Raises:
        UserError: no such file, or its end is missing.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint {path}")
    if not zipfile.is_zipfile(path):  # torch.save writes a zip archive, whose directory stands at the end
        raise UserError(f"{path} is damaged or no checkpoint: take an earlier one or start without --ckpt_path")


def _notices_to_stdout() -> None:
    """Lightning writes its notices to standard error, which is for errors here."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        for handler in logging.getLogger(name).handlers:
            if type(handler) is logging.StreamHandler:  # not those for files, nor those of a test runner
                handler.setStream(sys.stdout)


def expand_constraint(arguments: Sequence[str], method: type) -> list[str]:
    """`--constraint TEXT` as the method's own argument, in place of a size target that a configuration may set."""
    accepted = inspect.signature(method.__init__).parameters
    expanded, pending = [], list(arguments)
    while pending:
        argument = pending.pop(0)
        name, equals, text = argument.partition("=")
        if name != "--constraint" or "constraint" not in accepted or not (equals or pending):
            expanded.append(argument)
            continue
        # "=" with the first sign only: the text has one of its own.
        expanded.append(f"--model.constraint={text if equals else pending.pop(0)}")
        if "target_wcr" in accepted:
            expanded.append("--model.target_wcr=null")
    return expanded


def run_cli(
    method: type[QuantizedModule],
    errors: tuple[type[Exception], ...] = (),
    arguments: Sequence[str] | None = None,
) -> None:
    """Run a method from the command line. Bad input ends in one line on standard error and status 2.

    Data modules that the caller has imported are known by their class names.

    Args:
        method: the LightningModule.
        errors: further exceptions that the user caused, besides UserError.
        arguments: instead of the command line's.
    """
    _notices_to_stdout()
    if arguments is None:
        sys.argv[1:] = expand_constraint(sys.argv[1:], method)
    try:
        QuantizationCLI(
            method,
            pl.LightningDataModule,
            subclass_mode_data=True,
            args=expand_constraint(arguments, method) if arguments is not None else None,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"exit_on_error": False},
        )
    except (UserError, *errors, argparse.ArgumentError, MisconfigurationException) as error:
        message = " ".join(str(error).split())
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(2) from None
