"""`python -m reproduce render`: RESULTS.md and the results block of README.md, drawn from tables and ledger."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from common.errors import UserError
from reproduce import ledger
from reproduce.cli import Parser
from reproduce.show import Cell, accuracy_drop, cells, format_published, format_value
from reproduce.tables import ROOT, Row, Table, list_tables, load_table

BEGIN, END = "<!-- results -->", "<!-- /results -->"
HEAD = """# Results

Written by `python -m reproduce render` from the table files and the ledger; not edited by hand.

*Published* is what the paper printed, *ours* what was computed (static cells) or measured on the named data set. *Drop*
is float top-1 minus top-1, in points. `not run` cells are open, `stale` ones were measured with other code or settings
than the present. Rehearsals fill no cell.
"""


def results() -> str:
    """The text of RESULTS.md."""
    return "\n".join([HEAD, *(_table(load_table(name)) for name in list_tables())])


def block() -> str:
    """The results table of the README: every measured row with a packed model, and the command that makes it."""
    header = [
        *("method", "network", "data", "bits (weights)", "WCR", "ACR", "float top-1", "published", "measured", "drop"),
        *("seeds", "epochs", "command"),
    ]
    lines = [_line(header), _line(["---"] * len(header))]
    for name in list_tables():
        table = load_table(name)
        all_cells = cells(table, rehearsed=False)
        for row in table.rows:
            own = {cell.column.name: cell for cell in all_cells if cell.row is row}
            top1 = own.get("top1")
            if top1 is None or top1.state != "measured":
                continue
            records = [record for _, record in ledger.records_of(table, row, rehearsed=False)]
            drop = accuracy_drop(list(own.values()))
            lines.append(
                _line(
                    [
                        row.method,
                        row.model,
                        table.dataset,
                        _weight_bits(records[0]),
                        _mean(records, "wcr"),
                        _mean(records, "acr"),
                        _mean(records, "float_top1"),
                        format_published(top1.published),
                        format_value(top1),
                        "-" if drop is None else f"{drop:.2f}",
                        str(top1.seeds),
                        top1.epochs or _epochs(records[0]),
                        f"`{command(table, row)}`",
                    ]
                )
            )
    return "\n".join(lines) + "\n" if len(lines) > 2 else "No row has been measured yet.\n"


def command(table: Table, row: Row) -> str:
    """What produces a row."""
    return f"python -m reproduce run {table.path} --rows {row.name}"


def replaced(text: str, content: str) -> str:
    """A text with `content` between its markers.

    Raises:
        UserError: the markers are not there.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise UserError(f"README.md has no block between {BEGIN} and {END}")
    return f"{head}{BEGIN}\n{content}{END}{tail}"


def main(arguments: Sequence[str]) -> int:
    parser = Parser(prog="python -m reproduce render", description="Writes RESULTS.md and README.md's results block.")
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if a file is not up to date")
    options = parser.parse_args(list(arguments))
    wanted = {ROOT / "RESULTS.md": results()}
    readme = ROOT / "README.md"
    if readme.is_file():
        wanted[readme] = replaced(readme.read_text(), block())
    old = [path for path, text in wanted.items() if not path.is_file() or path.read_text() != text]
    for path in old:
        if options.check:
            print(f"{path.name} is not up to date: run python -m reproduce render", file=sys.stderr)
        else:
            path.write_text(wanted[path])
            print(f"wrote {path.name}")
    return 1 if options.check and old else 0


def _table(table: Table) -> str:
    all_cells = cells(table, rehearsed=False)
    columns = list(table.columns)
    compared = [name for name in columns if table.columns[name].kind != "given"]
    given = [name for name in columns if table.columns[name].kind == "given"]
    header = ["row", "method", "network", *given]
    for name in compared:
        header += [f"{name} published", f"{name} ours"]
    header += ["drop", "epochs", "seeds", "verdicts and reasons", "command"]
    lines = [_line(header), _line(["---"] * len(header))]
    for row in table.rows:
        own = {cell.column.name: cell for cell in all_cells if cell.row is row}
        drop = accuracy_drop(list(own.values()))
        entries = [row.name, row.method, row.model, *(format_value(own[name]) for name in given)]
        for name in compared:
            entries += [format_published(own[name].published), format_value(own[name])]
        measured = [cell for cell in own.values() if cell.state == "measured"]
        epochs = next((cell.epochs for cell in measured if cell.epochs), "")
        shown = command(table, row) if measured else f"python -m reproduce tables {table.path}"
        entries += [
            "" if drop is None else f"{drop:.2f}",
            epochs,
            str(max((cell.seeds for cell in measured), default="")),
            "; ".join(filter(None, (_verdict(cell) for cell in own.values()))),
            f"`{shown}`",
        ]
        lines.append(_line(entries))
    source = table.source
    cited = f"arXiv:{source['arxiv']}, table {source.get('table')}. " if source.get("arxiv") else ""
    counted = ", ".join(f"{name.replace('_', ' ')} {'yes' if yes else 'no'}" for name, yes in table.counted.items())
    what = f" WCR counts: {counted}." if counted else ""
    return f"## {table.path}\n\n{cited}{table.caption} Data: {table.dataset}.{what}\n\n" + "\n".join(lines) + "\n"


def _verdict(cell: Cell) -> str:
    if cell.verdict in ("", "input", "equal") and not (cell.state == "measured" and cell.reason):
        return ""
    return f"{cell.column.name} {cell.verdict}".strip() + (f" ({cell.reason})" if cell.reason else "")


def _line(entries: Sequence[str]) -> str:
    return "| " + " | ".join(entry.replace("|", "\\|") for entry in entries) + " |"


def _mean(records: Sequence[dict[str, Any]], name: str) -> str:
    values = [record["cells"][name] for record in records if name in record["cells"]]
    return f"{sum(values) / len(values):.2f}" if values else "-"


def _epochs(record: dict[str, Any]) -> str:
    return f"{record.get('epochs_done', 0):g}" if record.get("steps") else "none"


def _weight_bits(record: dict[str, Any]) -> str:
    widths = {bits for site, bits in (record.get("policy") or {}).items() if site.endswith(".weight")}
    numbers = sorted(bits for bits in widths if isinstance(bits, int))
    if not numbers:
        return "32"
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"
