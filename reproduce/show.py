"""`python -m reproduce tables`: cells of all tables, published beside measured, as text or JSON."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from reproduce import ledger
from reproduce.cli import Parser
from reproduce.tables import Column, Row, Table, expand_names, list_tables, load_table, method_arguments, static_cell

ACCURACIES = ("top1", "float_top1", "top5", "float_top5")


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        state: "static", "measured", "rehearsed" or "not run".
        value: mean over seeds; None where nothing may be shown (not run, or rehearsed).
        std: over seeds; None for one seed.
        seeds: number of records behind the value.
        verdict: of a static cell ("equal", "within residual", "differs", "input"), or of a measured one
            ("within tolerance", "outside tolerance", "" where the schedule was shortened or nothing is printed).
        epochs: such as "5 of 50 epochs" where the schedule was shortened.
        stale: why the record no longer stands for the present code; empty if it does.
    """

    table: Table
    row: Row
    column: Column
    published: float | None
    state: str
    value: float | None
    verdict: str
    reason: str
    std: float | None = None
    seeds: int = 0
    epochs: str = ""
    stale: str = ""
    record: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The shape of `tables --json`."""
        return {
            "paper": self.table.paper,
            "table": self.table.name,
            "row": self.row.name,
            "column": self.column.name,
            "published": self.published,
            "kind": "trained" if self.column.kind == "trained" else "static",
            "state": self.state,
            "value": self.value,
            "verdict": self.verdict,
            "reason": self.reason,
            "record": self.record,
            "std": self.std,
            "seeds": self.seeds,
            "epochs": self.epochs,
            "stale": self.stale,
            "method": self.row.method,
            "model": self.row.model,
        }


def cells(table: Table, rehearsed: bool = True, check_stale: bool = True) -> list[Cell]:
    """All cells of a table, row by row.

    Args:
        rehearsed: take records of rehearsals into account.
        check_stale: compare records with the present code and settings.
    """
    result = []
    for row in table.rows:
        records = ledger.records_of(table, row, rehearsed) if row.run else []
        stale = next(filter(None, (ledger.stale_reason(table, row, r) for _, r in records)), "") if check_stale else ""
        result += [_cell(table, row, column, records, stale) for column in row.columns.values()]
    return result


def _cell(table: Table, row: Row, column: Column, records: list[tuple[Path, dict[str, Any]]], stale: str) -> Cell:
    published = row.published[column.name]
    note = row.notes.get(column.name, "")
    if column.kind == "given":
        value = published if published is not None else method_arguments(table, row).get(column.name)
        verdict = "input" if value is not None else ""
        return Cell(table, row, column, published, "static", value, verdict, note)
    if column.kind == "static":
        if row.run is None and not row.inputs:
            reason = note or "not computable from what is printed"
            return Cell(table, row, column, published, "not run", None, "", reason)
        static = static_cell(table, row, column)
        return Cell(table, row, column, published, "static", static.value, static.verdict, static.reason)
    holding = [(path, record) for path, record in records if column.name in record["cells"]]
    if not holding:
        reason = "not one of our runs" if row.run is None else note
        return Cell(table, row, column, published, "not run", None, "", reason)
    path, first = holding[0]
    if any(record["state"] != "measured" for _, record in holding):
        return Cell(
            table, row, column, published, "rehearsed", None, "", first.get("reason") or "", 0, len(holding), "", stale,
            _shown(path),
        )  # fmt: skip
    values = [record["cells"][column.name] for _, record in holding]
    value = statistics.fmean(values)
    epochs = _shortened(first) if any(_shortened(record) for _, record in holding) else ""
    verdict, tolerance = "", row.tolerance.get(column.name)
    if published is not None and tolerance is not None and not epochs:
        verdict = "within tolerance" if abs(value - published) <= tolerance else "outside tolerance"
    reason = "; ".join(filter(None, (note, first.get("cause") or "")))
    std = statistics.stdev(values) if len(values) > 1 else None
    return Cell(
        table, row, column, published, "measured", value, verdict, reason, std, len(values), epochs, stale, _shown(path)
    )


def _shortened(record: dict[str, Any]) -> str:
    published, done = record.get("epochs_published"), record.get("epochs_done", 0)
    if not published or record.get("steps", 0) == 0 or done >= published:
        return ""
    return f"{done:g} of {published} epochs"


def _shown(path: Path) -> str:
    from reproduce.settings import relative

    return relative(path)


# -- text -------------------------------------------------------------------------------------------------------------


def format_value(cell: Cell, text_unit: str = "") -> str:
    """What stands in a table: a number with its spread, or the state where there is none."""
    if cell.value is None:
        return cell.state if cell.column.kind == "trained" else "-"
    decimals = 2 if cell.column.kind == "trained" or cell.value != int(cell.value) else 0
    text = f"{cell.value:.{decimals}f}"
    if cell.std is not None:
        text += f" ± {cell.std:.{decimals}f}"
    return f"{text} (stale)" if cell.stale else text


def format_published(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def print_table(table: Table, rows: Collection[str] | None = None) -> None:
    """Rows with, for every column, published, ours, difference and verdict; then the drop of accuracy."""
    print(f"{table.path}: {table.caption} [{table.dataset}]")
    lines = [["row", "column", "published", "ours", "difference", "verdict", "reason"]]
    all_cells, shown = cells(table), set()
    for row in table.rows:
        if rows is not None and row.name not in rows:
            continue
        own = [cell for cell in all_cells if cell.row.name == row.name]
        for cell in own:
            if cell.value is None and cell.published is None and cell.state != "rehearsed":
                continue
            gap = "" if cell.value is None or cell.published is None else f"{cell.value - cell.published:+.2f}"
            if cell.verdict == "input":
                gap = ""
            reason = "; ".join(filter(None, (cell.epochs, cell.reason, cell.stale)))
            name = "" if row.name in shown else row.name
            shown.add(row.name)
            ours = format_value(cell)
            lines.append([name, cell.column.name, format_published(cell.published), ours, gap, cell.verdict, reason])
        if (drop := accuracy_drop(own)) is not None:
            lines.append(["", "drop", "", f"{drop:.2f}", "", "", "float_top1 - top1"])
    widths = [max(len(line[i]) for line in lines) for i in range(6)]
    for line in lines:
        print(
            "  "
            + "  ".join([*(text.ljust(width) for text, width in zip(line, widths, strict=False)), line[6]]).rstrip()
        )


def accuracy_drop(row_cells: Sequence[Cell]) -> float | None:
    """Float top-1 minus top-1 of a measured row, in points; from its records, as not every table has both columns."""
    top1 = next((cell for cell in row_cells if cell.column.name == "top1"), None)
    if top1 is None or top1.state != "measured":
        return None
    records = [record["cells"] for _, record in ledger.records_of(top1.table, top1.row, rehearsed=False)]
    drops = [c["float_top1"] - c["top1"] for c in records if "float_top1" in c and "top1" in c]
    return statistics.fmean(drops) if drops else None


def unexplained(all_cells: Sequence[Cell]) -> list[Cell]:
    """Static cells that differ from the print without a stated reason."""
    return [cell for cell in all_cells if cell.verdict == "differs" and not cell.reason]


def main(arguments: Sequence[str]) -> int:
    parser = Parser(prog="python -m reproduce tables", description="All tables, published beside measured.")
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="default: all")
    parser.add_argument(
        "--check-static", action="store_true", help="status 1 if a static cell differs without a reason"
    )
    parser.add_argument("--json", action="store_true", help="a list of cells")
    options = parser.parse_args(list(arguments))
    tables = [load_table(name) for name in expand_names(options.tables) or list_tables()]
    if not tables:
        raise UserError("there are no tables in methods/*/tables")
    collected = []
    for table in tables:
        if options.json or options.check_static:
            collected += cells(table)
        if not options.json:
            print_table(table)
            print()
    if options.json:
        print(json.dumps([cell.to_json() for cell in collected], indent=1))
    wrong = unexplained(collected) if options.check_static else []
    for cell in wrong:
        where = f"{cell.table.path} {cell.row.name} {cell.column.name}"
        print(f"{where}: computed {cell.value:.4f}, printed {cell.published:g}, no reason given", file=sys.stderr)
    return 1 if wrong else 0
