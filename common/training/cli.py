"""LightningCLI with one-line errors, for the `__main__` of a paper folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import pytorch_lightning as pl
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

from common.errors import UserError
from common.training.quantized_module import QuantizedModule


class QuantizationCLI(LightningCLI):
    """Subcommands fit, validate, test; the data module by name (`--data DigitsData`) or class path."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults({"trainer.num_sanity_val_steps": 0})


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
    try:
        QuantizationCLI(
            method,
            pl.LightningDataModule,
            subclass_mode_data=True,
            args=list(arguments) if arguments is not None else None,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"exit_on_error": False},
        )
    except (UserError, *errors, argparse.ArgumentError) as error:
        message = " ".join(str(error).split())
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(2) from None
