"""`python -m reproduce render`: RESULTS.md and the results block of README.md, drawn from tables and ledger."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from common.command_line import Parser
from common.errors import UserError
from reproduce import ledger, static_check
from reproduce.show import Cell, accuracy_drop, cells, format_value, heading, static_cells
from reproduce.tables import ROOT, Row, Table, has_code, list_tables, load_table, printed_text

BEGIN, END = "<!-- results -->", "<!-- /results -->"
HEAD = """# Results

Written by `python -m reproduce render` from the table files and the ledger; not edited by hand.

*Published* is what the paper printed, *ours* what was computed (static cells) or measured on the named data set. *Drop*
is float top-1 minus top-1, in points. `not run` cells are open, `stale` ones were measured with other code or settings
than the present. Rehearsals fill no cell.

Computed cells are `equal` (as printed), `within residual` (of the column, stated), `fitted` (the formula's constants
were fitted to this column, so that agreement tests nothing), `input` (given to the formulas, not computed) or
`differs`, with the reason.
"""


def results() -> str:
    """The text of RESULTS.md."""
    return "\n".join([HEAD, overview(), *(_table(load_table(name)) for name in list_tables())])


def overview() -> str:
    """A line per paper: tables, rows, rows that were measured, and the verdicts of its computed cells."""
    verdicts = list(static_check.RANK)
    header = ["paper", "tables", "rows", "measured rows", "computed cells", *verdicts]
    lines = [_line(header), _line(["---"] * len(header))]
    papers: dict[str, list[Table]] = {}
    for name in list_tables():
        papers.setdefault(name.partition("/")[0], []).append(load_table(name))
    for paper, tables in papers.items():
        counts = Counter(c.verdict for table in tables for c in static_cells(table) if c.verdict)
        rows = [(table, row) for table in tables for row in table.rows]
        measured = sum(bool(ledger.records_of(table, row, rehearsed=False)) for table, row in rows if row.run)
        numbers = (len(tables), len(rows), measured, counts.total(), *(counts[verdict] for verdict in verdicts))
        lines.append(_line([f"[{paper}](methods/{paper}/README.md)", *map(str, numbers)]))
    return "\n".join(lines) + "\n"


def block() -> str:
    """The results table of the README: every measured row with a packed model, and the command that makes it."""
    header = [
        *("method", "network", "data", "bits (weights)", "WCR", "ACR", "float top-1", "published", "measured", "drop"),
        *("seeds", "epochs", "command"),
    ]
    lines = [_line(header), _line(["---"] * len(header))]
    for name in list_tables():
        table = load_table(name)
        all_cells = cells(table, rehearsed=False, kinds=("trained",))
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
                        printed_text(top1.published),
                        format_value(top1),
                        "-" if drop is None else f"{drop:.2f}",
                        str(top1.seeds),
                        top1.epochs or _epochs(records[0]),
                        f"`{command(table, row)}`",
                    ]
                )
            )
    return "\n".join(lines) + "\n" if len(lines) > 2 else "No row has been measured yet.\n"


def computed() -> str:
    """One line: how the cells that need no training compare with the print."""
    return f"{static_check.summary([c for name in list_tables() for c in static_cells(load_table(name))])}.\n"


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
        wanted[readme] = replaced(readme.read_text(), f"{block()}\n{computed()}")
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
    given = [column for column in table.columns.values() if column.kind == "given"]
    compared = [column for column in table.columns.values() if column.kind != "given"]
    header = ["row", "method", "network", *map(heading, given)]
    for column in compared:
        header += [f"{heading(column)} published", f"{heading(column)} ours"]
    header += ["drop", "epochs", "seeds", "verdicts and reasons", "command"]
    lines = [_line(header), _line(["---"] * len(header))]
    for row in table.rows:
        own = {cell.column.name: cell for cell in all_cells if cell.row is row}
        drop = accuracy_drop(list(own.values()))
        entries = [row.name, row.method, row.model, *(format_value(own[column.name]) for column in given)]
        for column in compared:
            cell = own[column.name]
            entries += [printed_text(cell.published), "-" if cell.verdict == "input" else format_value(cell)]
        measured = [cell for cell in own.values() if cell.state == "measured"]
        epochs = next((cell.epochs for cell in measured if cell.epochs), "")
        shown = command(table, row) if measured else f"python -m reproduce tables {table.path}"
        entries += [
            "" if drop is None else f"{drop:.2f}",
            epochs,
            str(max((cell.seeds for cell in measured), default="")),
            _verdicts([own[column.name] for column in compared]),
            f"`{shown}`",
        ]
        lines.append(_line(entries))
    return f"## {table.path}\n\n{_about(table)}\n\n" + "\n".join(lines) + "\n"


def _about(table: Table) -> str:
    """Source, caption, data, what is counted, and what holds for whole columns."""
    source = table.source
    origin = f"arXiv:{source['arxiv']}" if source.get("arxiv") else source.get("venue")
    sentences = [f"{origin}, table {source.get('table')}."] if origin else []
    sentences += [table.caption, f"Data: {table.dataset}."]
    if table.counted:
        sentences.append(f"Counted: {', '.join(_counted(name, what) for name, what in table.counted.items())}.")
    if cut := [column.name for column in table.columns.values() if column.rounding == "cut"]:
        sentences.append(f"Printed cut off, not rounded: {', '.join(cut)}.")
    sentences += [f"{name}: {str(text).rstrip('.')}." for name, text in table.notes.items()]
    if not has_code(table.paper):
        sentences.append("Tables only so far: the paper's code is not written yet.")
    return " ".join(" ".join(str(sentence).split()) for sentence in sentences)


def _counted(name: str, what: Any) -> str:
    return f"{name.replace('_', ' ')} {('no', 'yes')[what] if isinstance(what, bool) else what}"


def _verdicts(own: Sequence[Cell]) -> str:
    """Cells of the same verdict and reason in one: "equal: latency, energy; differs: size (misprint)"."""
    groups: dict[tuple[str, str], list[str]] = {}
    for cell in own:
        if cell.verdict or (cell.state == "measured" and cell.reason):
            groups.setdefault((cell.verdict, cell.reason), []).append(cell.column.name)
    return "; ".join(
        (f"{verdict}: " if verdict else "") + ", ".join(names) + (f" ({reason})" if reason else "")
        for (verdict, reason), names in groups.items()
    )


def _line(entries: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(entry.split()).replace("|", "\\|") for entry in entries) + " |"


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
