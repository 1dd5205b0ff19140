"""Records of runs: one JSON file a table, row and seed.

Measured records are committed (reproduce/ledger/); rehearsals leave theirs in the run's folder only.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError
from reproduce.tables import ROOT, Row, Table

if TYPE_CHECKING:
    from reproduce.settings import Settings  # imports torch; listing tables needs none of it

FORMAT = 1
STATES = ("measured", "rehearsed")
_REQUIRED = ("paper", "table", "row", "seed", "state", "cells", "settings_hash", "code_hash")


def ledger_folder() -> Path:
    """Where measured records are: LEDGER_DIR, or reproduce/ledger."""
    return Path(os.environ.get("LEDGER_DIR") or ROOT / "reproduce" / "ledger")


def runs_folder() -> Path:
    """Where runs keep their files: RUNS_DIR, or runs/."""
    return Path(os.environ.get("RUNS_DIR") or ROOT / "runs")


def run_folder(table: Table, row: Row, seed: int, rehearse: bool = False) -> Path:
    return runs_folder() / table.paper / table.name / row.name / f"{'rehearsal-' if rehearse else ''}seed{seed}"


def record_path(table: Table, row: Row, seed: int, rehearse: bool = False) -> Path:
    """Where the record of a run belongs."""
    if rehearse:
        return run_folder(table, row, seed, rehearse=True) / "record.json"
    return ledger_folder() / table.paper / table.name / row.name / f"seed{seed}.json"


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.partial")
    temporary.write_text(json.dumps(content, indent=1, default=list) + "\n")
    os.replace(temporary, path)


def read_record(path: Path) -> dict[str, Any] | None:
    """A record, or None where there is no file.

    Raises:
        UserError: not a record.
    """
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is no readable record ({' '.join(str(error).split())}): restore or remove it"
        ) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is no record of format {FORMAT}: restore or remove it")
    if missing := [name for name in _REQUIRED if name not in content]:
        raise UserError(f"{path} lacks {missing[0]!r}: restore or remove it")
    if content["state"] not in STATES:
        raise UserError(f"{path}: state must be one of {', '.join(STATES)}, got {content['state']!r}")
    return content


def records_of(table: Table, row: Row, rehearsed: bool = True) -> list[tuple[Path, dict[str, Any]]]:
    """The measured records of a row by seed, or, where there are none, those of rehearsals."""
    folder = ledger_folder() / table.paper / table.name / row.name
    found = [(path, record) for path in _by_seed(folder.glob("seed*.json")) if (record := read_record(path))]
    if found or not rehearsed:
        return found
    folder = runs_folder() / table.paper / table.name / row.name
    return [(p, record) for p in _by_seed(folder.glob("rehearsal-seed*/record.json")) if (record := read_record(p))]


def measured_records() -> Iterator[tuple[Path, dict[str, Any]]]:
    """All measured records: the ledger's, then those of run folders. What is no record is passed over."""
    for path in [*sorted(ledger_folder().rglob("*.json")), *sorted(runs_folder().glob("*/*/*/*/record.json"))]:
        try:
            record = read_record(path)
        except UserError:
            continue
        if record is not None and record["state"] == "measured":
            yield path, record


def _by_seed(paths: Any) -> list[Path]:
    return sorted(paths, key=lambda path: (len(str(path)), str(path)))


def stale_reason(table: Table, row: Row, record: Mapping[str, Any]) -> str:
    """Why a record no longer stands for the present code and settings; empty if it does."""
    from reproduce.settings import resolve

    reasons = []
    data_class = None
    if record["state"] == "rehearsed":
        from reproduce.rehearsal import RehearsalData as data_class
    try:
        settings = resolve(table, row, record["seed"], record.get("overrides"), data_class)
    except UserError as error:
        return f"settings: {error}"
    if settings.hash() != record["settings_hash"]:
        reasons.append("settings")
    if run_code_hash(settings) != record["code_hash"]:
        reasons.append("code")
    return f"changed since: {' and '.join(reasons)}" if reasons else ""


# What writes down a run and does not shape it; the record itself tells that the packed file gives the network's logits.
_WRITERS = frozenset(
    {("common.callbacks.save_packed", "SavePacked"), ("common.callbacks.policy_logger", "PolicyLogger")}
)
_MODELS, _DATA_SETS = ("common.models.registry", "_OWN"), ("data", "DATA_SETS")


def run_code_hash(settings: Settings) -> str:
    """Hash of the code that a run rests on: its method, network and data, and cost models where it has a constraint."""
    from reproduce.code_hash import code_hash

    return code_hash(
        (f"methods.{settings.folder}", "METHOD"),
        _DATA_SETS,
        without=("hardware",) if settings.model.get("constraint") is None else (),
        passed_over=_WRITERS,
        entries={_MODELS: (settings.model.get("model"),), _DATA_SETS: (settings.data_name,)},
    )


def versions() -> dict[str, str]:
    """Versions of what computes."""
    found = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "pytorch-lightning", "timm", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


def commit() -> tuple[str | None, bool | None]:
    """(commit of the checkout, whether tracked files differ from it); None outside a git checkout."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return None, None
