"""`python -m reproduce tables --check-static`: every static cell, and whether a verdict is worse than recorded."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from reproduce.ledger import write_json
from reproduce.show import Cell, format_difference, format_value, heading, print_lines, static_cells
from reproduce.tables import ROOT, Table, printed_text

VERDICTS = ROOT / "reproduce" / "static_verdicts.json"
RANK = {"equal": 0, "within residual": 1, "fitted": 2, "input": 2, "differs": 3}

Verdicts = dict[str, dict[str, dict[str, str]]]  # table -> row -> column -> verdict


def check(tables: Sequence[Table], update: bool = False, as_json: bool = False, complete: bool = True) -> int:
    """Print the static cells of these tables, and on standard error what is wrong with them; the exit status.

    Args:
        update: record the verdicts as they are.
        as_json: print the cells as `tables --json` does.
        complete: the tables are all there are, so that a recorded one which is missing is gone.
    """
    found = {table.path: static_cells(table) for table in tables}
    flat = [cell for own in found.values() for cell in own]
    if as_json:
        print(json.dumps([cell.to_json() for cell in flat], indent=1))
    else:
        for table in tables:
            _print_cells(table, found[table.path])
        print(summary(flat))
    recorded = read_verdicts()
    if not complete:
        recorded = {path: rows for path, rows in recorded.items() if path in found}
    if update:
        others = {} if complete else {path: rows for path, rows in read_verdicts().items() if path not in found}
        write_json(VERDICTS, _sorted({**others, **verdicts(flat)}))
        recorded = {}
    wrong = faults(recorded, flat)
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


def read_verdicts() -> Verdicts:
    """The recorded verdicts; none where there is no file."""
    return json.loads(VERDICTS.read_text()) if VERDICTS.is_file() else {}


def verdicts(cells: Sequence[Cell]) -> Verdicts:
    """Verdicts of the cells that have one."""
    tree: Verdicts = {}
    for cell in cells:
        if cell.verdict:
            tree.setdefault(cell.table.path, {}).setdefault(cell.row.name, {})[cell.column.name] = cell.verdict
    return tree


def faults(recorded: Verdicts, cells: Sequence[Cell]) -> list[str]:
    """A line for each cell that is gone, worse than recorded, or different from the print without a stated reason."""
    lines, present = [], verdicts(cells)
    for cell in cells:
        before = recorded.get(cell.table.path, {}).get(cell.row.name, {}).get(cell.column.name)
        found = []
        if before and cell.verdict and RANK[cell.verdict] > RANK[before]:
            found.append(f"recorded as {before!r}, now {cell.verdict!r}")
        if cell.verdict == "differs" and not cell.reason:
            found.append("no reason given")
        if found:
            shown = f"computed {format_value(cell)}, printed {printed_text(cell.published)}"
            lines.append(f"{cell.table.path} {cell.row.name} {cell.column.name}: {shown}: {', '.join(found)}")
    for path, rows in recorded.items():
        for row, columns in rows.items():
            for column, verdict in columns.items():
                if column not in present.get(path, {}).get(row, {}):
                    lines.append(f"{path} {row} {column}: recorded as {verdict!r}, no longer a static cell")
    return lines


def summary(cells: Sequence[Cell]) -> str:
    """Static cells with a printed value, by verdict."""
    counts = Counter(cell.verdict for cell in cells if cell.verdict)
    return f"{counts.total()} static cells: {', '.join(f'{counts[verdict]} {verdict}' for verdict in RANK)}"


def _print_cells(table: Table, cells: Sequence[Cell]) -> None:
    lines = [["row", "column", "printed", "computed", "residual", "verdict", "reason"]]
    previous = None
    for cell in cells:
        if cell.value is None:
            continue
        computed = "-" if cell.verdict == "input" else format_value(cell)
        shown = [heading(cell.column), printed_text(cell.published), computed, format_difference(cell)]
        lines.append(["" if cell.row is previous else cell.row.name, *shown, cell.verdict, cell.reason])
        previous = cell.row
    if len(lines) > 1:
        print(f"{table.path}: {table.caption}")
        print_lines(lines)
        print()


def _sorted(tree: Any) -> Any:
    return {key: _sorted(tree[key]) for key in sorted(tree)} if isinstance(tree, dict) else tree
