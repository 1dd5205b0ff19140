"""The command line: `python -m reproduce <command>`. Bad input ends in one line on standard error and status 2."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

from common.command_line import guarded

# Imported when asked for: torch alone takes seconds, and `--list` needs none of it.
COMMANDS = {
    "run": ("reproduce.run", "run rows of tables, with resume, and record them"),
    "tables": ("reproduce.show", "all tables, published beside measured"),
    "evaluate": ("reproduce.evaluate", "accuracy and size of a packed model"),
    "render": ("reproduce.render", "write RESULTS.md and the results block of README.md"),
    "compare": ("reproduce.compare", "methods side by side on equal terms: table, plots, one page"),
    "bench": ("reproduce.bench", "step time and peak memory against full precision"),
    "plots": ("reproduce.plots", "figures from the ledger and the runs"),
}
SETTINGS = ("--model.", "--data.", "--trainer.")


def split_settings(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments that are a command's own, and the settings among them: --model.NAME VALUE, --data..., --trainer...

    They are taken out before argparse sees them, which would take the value of an option that it does not know for a
    positional argument.
    """
    own, settings = [], []
    pending = list(arguments)
    while pending:
        argument = pending.pop(0)
        if not argument.startswith(SETTINGS):
            own.append(argument)
            continue
        settings.append(argument)
        if "=" not in argument and pending and not pending[0].startswith("--"):
            settings.append(pending.pop(0))
    return own, settings


def usage() -> str:
    lines = [f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(["usage: python -m reproduce COMMAND ... (COMMAND --help explains each)", "", *lines])


def main(arguments: Sequence[str]) -> int:
    """Run a command; the exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    name = arguments[0]
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(COMMANDS)}"
        print(f"error: unknown command {name!r}; {hint}", file=sys.stderr)
        return 2
    return guarded(importlib.import_module(COMMANDS[name][0]).main, arguments[1:])
