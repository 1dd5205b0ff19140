"""`python -m reproduce tables`: cells of all tables, published beside measured, as text or JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.command_line import Parser
from common.errors import UserError
from reproduce import ledger
from reproduce.tables import (
    KINDS,
    Column,
    Row,
    Table,
    decimals,
    expand_names,
    list_tables,
    load_table,
    method_arguments,
    printed_text,
    static_cell,
    why_no_run,
)

ACCURACIES = ("top1", "float_top1", "top5", "float_top5")


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        state: "static", "measured", "rehearsed" or "not run".
        value: mean over seeds, or what is given; None where nothing may be shown (not run, or rehearsed).
        std: over seeds; None for one seed.
        seeds: number of records behind the value.
        verdict: of a static cell ("equal", "within residual", "fitted", "input", "differs"), or of a measured one
            ("within tolerance", "outside tolerance"); "" where the schedule was shortened or nothing is printed.
        residual: relative difference of a static cell from the print.
        epochs: such as "5 of 50 epochs" where the schedule was shortened.
        stale: why the record no longer stands for the present code; empty if it does.
    """

    table: Table
    row: Row
    column: Column
    published: float | str | None
    state: str
    value: float | str | None
    verdict: str
    reason: str
    residual: float | None = None
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
            "printed": None if self.published is None else printed_text(self.published),
            "unit": self.column.unit,
            "kind": "trained" if self.column.kind == "trained" else "static",
            "state": self.state,
            "value": self.value,
            "verdict": self.verdict,
            "reason": self.reason,
            "residual": self.residual,
            "record": self.record,
            "std": self.std,
            "seeds": self.seeds,
            "epochs": self.epochs,
            "stale": self.stale,
            "method": self.row.method,
            "model": self.row.model,
        }


def cells(
    table: Table, rows: Collection[str] | None = None, rehearsed: bool = True, kinds: Collection[str] = KINDS
) -> list[Cell]:
    """The cells of a table, row by row.

    Args:
        rows: names of rows; all of them without.
        rehearsed: take records of rehearsals into account.
        kinds: of the cells wanted.
    """
    result = []
    for row in table.rows:
        if rows is not None and row.name not in rows:
            continue
        records = ledger.records_of(table, row, rehearsed) if row.run else []
        stale = next(filter(None, (ledger.stale_reason(table, row, record) for _, record in records)), "")
        columns = [column for column in row.columns.values() if column.kind in kinds]
        result += [_cell(table, row, column, records, stale) for column in columns]
    return result


def static_cells(table: Table) -> list[Cell]:
    """The cells of static columns, row by row; where a row only gives such a cell, its verdict is "input"."""
    return [
        _cell(table, row, column, [], "")
        for row in table.rows
        for column in row.columns.values()
        if column.kind == "static" or (column.kind == "given" and table.columns[column.name].kind == "static")
    ]


def _cell(table: Table, row: Row, column: Column, records: list[tuple[Path, dict[str, Any]]], stale: str) -> Cell:
    published = row.published[column.name]
    note = row.notes.get(column.name, "")
    if column.kind == "given":
        value = published if published is not None else method_arguments(table, row).get(column.name)
        verdict = "input" if value is not None else ""
        return Cell(table, row, column, published, "static", value, verdict, note)
    if column.kind == "static":
        static = static_cell(table, row, column)
        if static is None:
            return Cell(table, row, column, published, "not run", None, "", note or "not computable without a run")
        return Cell(
            table, row, column, published, "static", static.value, static.verdict, static.reason, static.residual
        )
    holding = [(path, record) for path, record in records if column.name in record["cells"]]
    if not holding:
        reason = "; ".join(filter(None, (note, why_no_run(table, row) if row.run is None else "")))
        return Cell(table, row, column, published, "not run", None, "", reason)
    path, first = holding[0]
    if any(record["state"] != "measured" for _, record in holding):
        return Cell(
            table, row, column, published, "rehearsed", None, "", first.get("reason") or "",
            seeds=len(holding), stale=stale, record=_shown(path),
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
        table, row, column, published, "measured", value, verdict, reason,
        std=std, seeds=len(values), epochs=epochs, stale=stale, record=_shown(path),
    )  # fmt: skip


def _shortened(record: dict[str, Any]) -> str:
    published, done = record.get("epochs_published"), record.get("epochs_done", 0)
    if not published or record.get("steps", 0) == 0 or done >= published:
        return ""
    return f"{done:g} of {published} epochs"


def _shown(path: Path) -> str:
    from reproduce.settings import relative

    return relative(path)


# -- text -------------------------------------------------------------------------------------------------------------


def heading(column: Column) -> str:
    """A column's name with its unit."""
    return f"{column.name} [{column.unit}]" if column.unit else column.name


def format_value(cell: Cell) -> str:
    """What stands in a table: a value with its spread, or the state where there is none.

    Computed values have one digit more than the print, so that the rounding can be followed.
    """
    value = cell.value
    if value is None:
        return cell.state if cell.column.kind == "trained" else "-"
    if value is cell.published or isinstance(value, str):
        return printed_text(value)
    places = 2
    if cell.column.kind != "trained":
        places = 0 if value == int(value) else max(2, decimals(cell.published or 0) + 1)
    text = f"{value:.{places}f}"
    if cell.std is not None:
        text += f" ± {cell.std:.{places}f}"
    return f"{text} (stale)" if cell.stale else text


def format_difference(cell: Cell) -> str:
    """Ours minus published; of computed cells in percent of the print."""
    if cell.residual is not None:
        return f"{100 * cell.residual:+.2f} %"
    if cell.state != "measured" or cell.published is None:
        return ""
    return f"{cell.value - cell.published:+.2f}"


def print_lines(lines: Sequence[Sequence[str]]) -> None:
    """Lines of equally many entries, aligned; the last entry as long as it is."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]) - 1)]
    for *head, last in lines:
        padded = [text.ljust(width) for text, width in zip(head, widths, strict=True)]
        print("  " + "  ".join([*padded, last]).rstrip())


def print_table(table: Table, rows: Collection[str] | None = None) -> None:
    """Rows with, for every column, published, ours, difference and verdict; then the drop of accuracy."""
    print(f"{table.path}: {table.caption} [{table.dataset}]")
    lines = [["row", "column", "published", "ours", "difference", "verdict", "reason"]]
    all_cells, shown = cells(table, rows), set()
    for row in table.rows:
        own = [cell for cell in all_cells if cell.row is row]
        for cell in own:
            if cell.value is None and cell.published is None and cell.state != "rehearsed":
                continue
            name = "" if row.name in shown else row.name
            shown.add(row.name)
            published, ours, gap = printed_text(cell.published), format_value(cell), format_difference(cell)
            reason = "; ".join(filter(None, (cell.epochs, cell.reason, cell.stale)))
            lines.append([name, heading(cell.column), published, ours, gap, cell.verdict, reason])
        if (drop := accuracy_drop(own)) is not None:
            lines.append(["", "drop", "", f"{drop:.2f}", "", "", "float_top1 - top1"])
    print_lines(lines)


def accuracy_drop(row_cells: Sequence[Cell]) -> float | None:
    """Float top-1 minus top-1 of a measured row, in points; from its records, as not every table has both columns."""
    top1 = next((cell for cell in row_cells if cell.column.name == "top1"), None)
    if top1 is None or top1.state != "measured":
        return None
    records = [record["cells"] for _, record in ledger.records_of(top1.table, top1.row, rehearsed=False)]
    drops = [c["float_top1"] - c["top1"] for c in records if "float_top1" in c and "top1" in c]
    return statistics.fmean(drops) if drops else None


def main(arguments: Sequence[str]) -> int:
    parser = Parser(prog="python -m reproduce tables", description="All tables, published beside measured.")
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="default: all")
    parser.add_argument(
        "--check-static",
        action="store_true",
        help="static cells only; status 1 if a verdict is worse than recorded or a difference has no reason",
    )
    parser.add_argument("--update", action="store_true", help="with --check-static: record the present verdicts")
    parser.add_argument("--json", action="store_true", help="a list of cells")
    options = parser.parse_args(list(arguments))
    if options.update and not options.check_static:
        raise UserError("--update records the verdicts of --check-static: give both")
    tables = [load_table(name) for name in expand_names(options.tables) or list_tables()]
    if not tables:
        raise UserError("there are no tables in methods/*/tables")
    torch.set_num_threads(1)  # static cells send one image through each network: more threads wait for each other
    if options.check_static:
        from reproduce import static_check

        return static_check.check(tables, update=options.update, as_json=options.json, complete=not options.tables)
    if options.json:
        print(json.dumps([cell.to_json() for table in tables for cell in cells(table)], indent=1))
        return 0
    for table in tables:
        print_table(table)
        print()
    return 0
