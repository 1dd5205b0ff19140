"""The runs of a comparison: what is finished, what runs now (in a process of its own), what became of each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.command_line import is_user_error, one_line
from common.errors import UserError
from reproduce import ledger
from reproduce.runner import Options, existing_record, run_row, settings_of
from reproduce.settings import Settings, relative
from reproduce.tables import Table, load_table, parse_table

Record = dict[str, Any]
TOLD = {
    "ran": "recorded in",
    "finished before": "finished before:",
    "taken over": "taken over, same settings, code and start weights:",
    "stale": "finished before with other code (--force runs it again):",
}


@dataclass(frozen=True)
class Job:
    """One run: a method at a size with a seed.

    Attributes:
        label: of the method, as the report names it.
        size: label of its group.
        content: of a table that only this comparison has; None: `table` is a file's.
        row: of the table.
        start_weights: hash that the run has to start from; None where it is not known.
        overrides: settings from the command line, of a table file's rows.
    """

    method: str
    label: str
    size: str
    seed: int
    table: Table
    content: Mapping[str, Any] | None
    row: str
    start_weights: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def settings(self) -> Settings:
        return settings_of(self.table, self.table.row(self.row), self.seed, Options(self.overrides))


@dataclass(frozen=True)
class Entry:
    """What there is of one method, size and seed.

    Attributes:
        state: "finished", "not offered", "refused" (on other terms, known before it ran), "failed" or "not run".
        reason: one line; why there is no record, or why it counts less (stale).
        how: key of TOLD where there is a record.
    """

    method: str
    label: str
    size: str
    seed: int
    state: str
    reason: str = ""
    record: Record | None = None
    path: Path | None = None
    how: str = ""

    @classmethod
    def of(cls, job: Job, state: str, reason: str = "", **found: Any) -> Entry:
        return cls(job.method, job.label, job.size, job.seed, state, reason, **found)


@dataclass(frozen=True)
class How:
    """How jobs run.

    Attributes:
        force: anew, even finished ones.
        checkpoint_every: batches between checkpoints.
        here: in this process.
        to_ledger: records are committed ones.
    """

    force: bool = False
    checkpoint_every: int = 200
    here: bool = False
    to_ledger: bool = False


def own_table(name: str, data_name: str, rows: Sequence[Mapping[str, Any]]) -> tuple[Table, dict[str, Any]]:
    """A table of a comparison's own, `compare/<name>`, and the content that makes it again.

    Args:
        rows: name, method, model and run of each.
    """
    content = {
        "caption": "a comparison on equal terms",
        "dataset": data_name,
        "columns": {"top1": "trained"},
        "rows": [{**row, "published": None} for row in rows],
    }
    return parse_table(content, "compare", name), content


def index() -> dict[tuple[str, str, str], tuple[Path, Record]]:
    """Measured records by settings, code and start weights; of equal ones the first, the ledger's before others."""
    found: dict[tuple[str, str, str], tuple[Path, Record]] = {}
    for path, record in ledger.measured_records():
        key = record["settings_hash"], record["code_hash"], str(record.get("start_weights"))
        found.setdefault(key, (path, record))
    return found


def finished(job: Job, how: How, known: Mapping[tuple[str, str, str], tuple[Path, Record]]) -> Entry | None:
    """The job's record without running anything; None where it has to run.

    Raises:
        UserError: a damaged record.
    """
    if how.force:
        return None
    settings = job.settings()
    row = job.table.row(job.row)
    code = ledger.run_code_hash(settings)
    own = existing_record(job.table, row, job.seed, rehearse=False)
    if own is not None and own[1]["settings_hash"] == settings.hash():
        path, record = own
        if job.start_weights is not None and record.get("start_weights") != job.start_weights:
            started = f"{relative(path)} started from weights {record.get('start_weights')}, not {job.start_weights}"
            return Entry.of(job, "refused", f"{started}; --force runs it again")
        current = record["code_hash"] == code
        reason = "" if current else "changed since: code"
        return Entry.of(
            job, "finished", reason, record=record, path=path, how="finished before" if current else "stale"
        )
    other = known.get((settings.hash(), code, str(job.start_weights))) if own is None else None
    if other is None:
        return None
    path, record = other
    if how.to_ledger and not path.is_relative_to(ledger.ledger_folder()):  # a committed record has to stay
        record = record | {"paper": job.table.paper, "table": job.table.name, "row": job.row}
        path = ledger.record_path(job.table, row, job.seed)
        ledger.write_json(path, record)
    return Entry.of(job, "finished", record=record, path=path, how="taken over")


def run_jobs(jobs: Sequence[Job], how: How) -> list[Entry]:
    """One entry a job, in their order; a job that fails leaves its reason and the others go on.

    Raises:
        KeyboardInterrupt: what was finished is recorded, what ran goes on from its checkpoint the next time.
    """
    known = {} if how.force else index()
    entries: list[Entry | None] = [finished(job, how, known) for job in jobs]
    for entry in entries:
        if entry is not None:
            _tell(entry)
    pending = [number for number, entry in enumerate(entries) if entry is None]
    begun = time.monotonic()
    for done, number in enumerate(pending):
        job = jobs[number]
        print(_bar(done, len(pending), time.monotonic() - begun, job), flush=True)
        entries[number] = entry = _run_here(job, how) if how.here else _run_apart(job, how)
        _tell(entry)
    return [entry for entry in entries if entry is not None]


def _tell(entry: Entry) -> None:
    what = f"  {entry.label} {entry.size}, seed {entry.seed}: "
    if entry.state == "finished" and entry.path is not None:
        print(f"{what}{TOLD[entry.how]} {relative(entry.path)}", flush=True)
    else:
        print(f"{what}{entry.reason}", file=sys.stderr, flush=True)


def _bar(done: int, total: int, seconds: float, job: Job) -> str:
    bar = tqdm.format_meter(done, total, seconds, unit="run", prefix="runs", ncols=60)
    return f"{bar}  {job.label} {job.size}, seed {job.seed}"


# -- one job ----------------------------------------------------------------------------------------------------------


def _run_here(job: Job, how: How, alone: bool = False) -> Entry:
    options = Options(
        job.overrides,
        force=how.force,
        checkpoint_every=how.checkpoint_every,
        to_ledger=how.to_ledger,
        show_settings=False,
        alone=alone,
    )
    try:
        outcome = run_row(job.table, job.table.row(job.row), job.seed, options)
    except SystemExit as end:
        if end.code == 0:
            raise  # a process other than the first of several
        raise KeyboardInterrupt from None  # how Lightning ends on an interrupt
    except Exception as error:  # a failing method does not lose the others
        if not is_user_error(error):
            traceback.print_exc()
        return Entry.of(job, "failed", one_line(error) or type(error).__name__)
    return Entry.of(job, "finished", record=outcome.record, path=outcome.path, how=outcome.how)


def _run_apart(job: Job, how: How) -> Entry:
    """In a process of its own: its peak memory is its own, and its end does not end the others."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "outcome.json"
        spec = {
            "method": job.method,
            "label": job.label,
            "size": job.size,
            "seed": job.seed,
            "table": job.table.path,
            "content": job.content,
            "row": job.row,
            "overrides": dict(job.overrides),
            "force": how.force,
            "checkpoint_every": how.checkpoint_every,
            "to_ledger": how.to_ledger,
            "outcome": str(told),
        }
        file = Path(folder) / "job.json"
        file.write_text(json.dumps(spec))
        status = subprocess.run([sys.executable, "-m", "reproduce", "compare", "--worker", str(file)]).returncode
        if status in (130, -2):
            raise KeyboardInterrupt
        if not told.is_file():
            return Entry.of(job, "failed", f"its process ended with status {status}")
        outcome = json.loads(told.read_text())
    if "reason" in outcome:
        return Entry.of(job, "failed", outcome["reason"])
    path = Path(outcome["path"])
    record = ledger.read_record(path)
    if record is None:
        raise RuntimeError(f"{path} was written and is not there")
    return Entry.of(job, "finished", record=record, path=path, how=outcome["how"])


def work(file: str) -> int:
    """The process of one job: runs it and writes what became of it."""
    import torch

    spec = json.loads(Path(file).read_text())
    if spec["content"] is None:
        table = load_table(spec["table"])
    else:
        table = parse_table(spec["content"], *spec["table"].split("/"))
    job = Job(
        **{key: spec[key] for key in ("method", "label", "size", "seed", "content", "row", "overrides")}, table=table
    )
    if job.settings().data_name == "digits":
        torch.set_num_threads(1)  # a network this small gains nothing from two, and loses much beside other programs
    how = How(spec["force"], spec["checkpoint_every"], to_ledger=spec["to_ledger"])
    entry = _run_here(job, how, alone=True)
    if entry.path is None:
        outcome = {"reason": entry.reason}
    else:
        outcome = {"path": str(entry.path), "how": entry.how}
    ledger.write_json(Path(spec["outcome"]), outcome)
    return 0


# -- start weights ----------------------------------------------------------------------------------------------------


def float_weights(job: Job, how: How) -> Path:
    """The file with the weights of a float network, trained now unless it was trained before.

    Raises:
        UserError: the training failed.
    """
    file = ledger.run_folder(job.table, job.table.row(job.row), job.seed) / "weights.safetensors"
    known = finished(job, how, {})
    if known is None or known.how == "stale" or not file.is_file():
        again = How(force=known is not None, checkpoint_every=how.checkpoint_every, here=how.here)
        print(f"float network, seed {job.seed}: trained first", flush=True)
        entry = _run_here(job, again) if how.here else _run_apart(job, again)
        if entry.state != "finished":
            raise UserError(f"the float network that the methods start from: {entry.reason}")
    return file


def environment_name(model: str) -> str:
    """The variable with a network's weights: RESNET20_WEIGHTS."""
    return "".join(c if c.isalnum() else "_" for c in model.upper()) + "_WEIGHTS"


def given_weights(model: str, settings: Mapping[str, Any]) -> str | None:
    """Weights from --model.weights, else from the environment."""
    found = settings.get("model.weights") or os.environ.get(environment_name(model))
    return None if not found else str(found)
