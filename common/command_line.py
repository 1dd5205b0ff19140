"""What every command line here does: no guessing of options, and what the user can mend as one line and status 2."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from common.errors import UserError


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors and no guessing of shortened options."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **settings})

    def error(self, message: str) -> NoReturn:
        raise UserError(" ".join(message.split()))


def guarded(command: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """Run a command; errors that the user caused become one line and status 2."""
    try:
        return command(arguments)
    except BrokenPipeError:  # `... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if not is_user_error(error):
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


def is_user_error(error: BaseException) -> bool:
    """Whether the user caused an error and can mend it."""
    if isinstance(error, UserError):
        return True
    data_errors = sys.modules.get("data.errors")  # if it is not imported, nothing can have raised it
    return data_errors is not None and isinstance(error, data_errors.DataError)


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
