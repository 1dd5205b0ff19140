"""`python -m reproduce run TABLE ...`: run rows of tables and report them beside the published numbers."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from common.command_line import Parser, is_user_error, one_line
from common.errors import UserError
from reproduce.cli import split_settings
from reproduce.tables import Row, Table, expand_names, has_code, load_table, why_no_run

Job = tuple[Table, Row, int]


def main(arguments: Sequence[str]) -> int:
    parser = Parser(
        prog="python -m reproduce run",
        description="Runs rows of tables: resumes interrupted ones, skips finished ones, records the results.",
        epilog="Settings: --model.NAME VALUE, --data.NAME VALUE, --trainer.NAME VALUE override the row's.",
    )
    parser.add_argument("tables", nargs="+", metavar="TABLE", help="for instance hmq/table1")
    parser.add_argument("--rows", metavar="A,B", help="these rows only")
    parser.add_argument("--seeds", metavar="0,1", help="instead of the rows' own")
    parser.add_argument("--list", action="store_true", help="print the rows and end")
    parser.add_argument("--force", action="store_true", help="start anew, even finished rows")
    parser.add_argument("--epochs", type=int, metavar="N", help="short for --trainer.max_epochs N")
    parser.add_argument("--devices", type=int, metavar="N", help="short for --trainer.devices N")
    parser.add_argument("--checkpoint-every", type=int, default=200, metavar="N", help="batches between checkpoints")
    parser.add_argument("--rehearse", action="store_true", help="a few steps on embedded data; no measurement")
    parser.add_argument("--no-table", action="store_true", help="leave out the table at the end")
    own, rest = split_settings(arguments)
    options = parser.parse_args(own)
    if options.list:
        _list(_selected(options))
        return 0
    jobs = _jobs(options)
    if options.checkpoint_every < 1:
        raise UserError(f"--checkpoint-every must be at least 1, got {options.checkpoint_every}")
    from reproduce.runner import Options, make_data_of, settings_of
    from reproduce.settings import parse_overrides

    overrides = parse_overrides(rest)
    for name, value in (("trainer.max_epochs", options.epochs), ("trainer.devices", options.devices)):
        if value is not None:
            if value < 1:
                raise UserError(f"--{name.removeprefix('trainer.max_').removeprefix('trainer.')} must be at least 1")
            overrides[name] = value
    settings = Options(overrides, options.rehearse, options.force, options.checkpoint_every)
    for table, row, seed in jobs:  # all of them are checked before the first one trains
        resolved = settings_of(table, row, seed, settings)
    if len(jobs) > 1:
        make_data_of(resolved)
    several = len(jobs) > 1
    apart = several and not options.rehearse and "LOCAL_RANK" not in os.environ
    failures, status = [], 0
    for number, job in enumerate(jobs, 1):
        print(f"[{number}/{len(jobs)}]", end=" ", flush=True)
        failure = _run_apart(job, options, rest) if apart else _run_here(job, settings)
        if failure is not None:
            failures.append((job, failure[1]))
            status = max(status, failure[0])
    from reproduce.show import print_table

    if options.no_table:
        jobs = []
    for table in dict.fromkeys(job[0].path for job in jobs):
        print()
        print_table(load_table(table), {job[1].name for job in jobs if job[0].path == table})
    for (table, row, seed), message in failures:
        print(f"error: {table.path} {row.name} seed {seed}: {message}", file=sys.stderr)
    # One bad input is the user's; among several rows it is a row that failed.
    return 1 if failures and several else status


def _selected(options: Any) -> list[tuple[Table, Row]]:
    """The rows that were named, or all of the tables'."""
    tables = [load_table(name) for name in expand_names(options.tables)]
    wanted = [name for name in (options.rows or "").split(",") if name]
    known = {row.name for table in tables for row in table.rows}
    if unknown := [name for name in wanted if name not in known]:
        tables[0].row(unknown[0])  # raises, with the closest names
    return [(table, row) for table in tables for row in table.rows if not wanted or row.name in wanted]


def _jobs(options: Any) -> list[Job]:
    selected = _selected(options)
    for table, row in selected:
        if row.run is None and options.rows:
            raise UserError(f"{table.path} row {row.name!r} has no run: {why_no_run(table, row)}")
    jobs = [(table, row, seed) for table, row in selected if row.run for seed in _seeds(options.seeds, row)]
    if not jobs:
        paths = ", ".join(dict.fromkeys(table.path for table, _ in selected))
        is_code = any(has_code(table.paper) for table, _ in selected)
        reason = "compared methods' rows have none" if is_code else "the paper's code is not written yet"
        raise UserError(f"{paths}: no row has a run: {reason}")
    return jobs


def _seeds(given: str | None, row: Row) -> list[int]:
    if given is None:
        return list((row.run or {}).get("seeds", [0]))
    try:
        return [int(seed) for seed in given.split(",")]
    except ValueError:
        raise UserError(f"--seeds takes integers such as 0,1,2, got {given!r}") from None


def _list(selected: Sequence[tuple[Table, Row]]) -> None:
    shown = None
    for table, row in selected:
        if table is not shown:
            print(f"{table.path}: {table.caption}")
            shown = table
        seeds = ",".join(map(str, (row.run or {}).get("seeds", [0])))
        how = f"seeds {seeds}" if row.run else f"published only: {why_no_run(table, row)}"
        print(f"  {row.name:<28}{row.method:<24}{row.model:<20}{how}")


def _run_here(job: Job, options: Any) -> tuple[int, str] | None:
    """Run in this process; (exit status, message) of a failure."""
    from reproduce.runner import run_row

    table, row, seed = job
    try:
        outcome = run_row(table, row, seed, options)
    except SystemExit as end:
        if end.code == 0:
            raise  # a process other than the first of several
        raise KeyboardInterrupt from None  # how Lightning ends on an interrupt
    except Exception as error:  # a failing row does not lose the others
        if not is_user_error(error):
            traceback.print_exc()
        return (2 if is_user_error(error) else 1), one_line(error) or type(error).__name__
    told = {
        "ran": "recorded in",
        "finished before": "finished before (--force runs it again):",
        "stale": "finished before with other code (--force runs it again):",
    }
    from reproduce.settings import relative

    print(f"{table.path} {row.name}, seed {seed}: {told[outcome.how]} {relative(outcome.path)}", flush=True)
    return None


def _run_apart(job: Job, options: Any, settings: Sequence[str]) -> tuple[int, str] | None:
    """Run in a process of its own: its peak memory is its own, and its end does not end the others."""
    table, row, seed = job
    command = [sys.executable, "-m", "reproduce", "run", table.path, "--rows", row.name, "--seeds", str(seed)]
    command += ["--no-table", "--checkpoint-every", str(options.checkpoint_every)]
    command += ["--force"] * options.force
    for name in ("epochs", "devices"):
        if getattr(options, name) is not None:
            command += [f"--{name}", str(getattr(options, name))]
    status = subprocess.run([*command, *settings], cwd=os.getcwd()).returncode
    if status in (130, -2):
        raise KeyboardInterrupt
    return (status, f"ended with status {status}, its error stands above") if status else None
