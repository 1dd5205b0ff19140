"""Table files: what a paper printed, and the runs of ours that fill the same cells.

methods/<paper>/tables/<table>.yaml holds

    paper: {arxiv: "3101.00001", table: 3, page: 7}      # null values where a table is our own
    caption: one line
    dataset: imagenet                                    # what the trained cells are measured on
    test_images: 50000                                   # a run on fewer, or on another set, is no measurement
    inputs: {network: mobilenet_v1}                      # of all static formulas of the table
    columns:
      bits: given                                        # of the setting, not compared: numbers or texts ("4/8 mixed")
      top1: {kind: trained, unit: "%"}
      latency: {kind: static, formula: latency, unit: ms, inputs: {target: bismo-edge}, residual: 0.035, fitted: true}
      wcr: {kind: static, rounding: cut}                 # formula: the column's name where none is given
    counted: {first_layer: true, last_layer: true, biases: false}
    notes: {latency: text}                               # what holds for the cells of a column
    rows:
      - name: resnet50_wcr8
        method: HMQ                                      # as the paper names it
        model: ResNet-50
        published: {bits: 4/8 mixed, top1: 75.10}        # digits as printed; null: "-"; `published: null`: our own row
        tolerance: {top1: 0.3}
        notes: {wcr: reason of a difference}             # per column; a cell that differs needs one of its own
        inputs: {size_mb: 6.3, layers: [conv1, fc]}      # of this row's static formulas
        columns: {wcr: trained}                          # kinds that differ from the table's
        run: {config: imagenet.yaml, model: resnet50, target_wcr: 8.0}

A static cell is `formula(inputs)`, a function of methods/<paper>/static.py; `inputs` are the table's, then the
column's, then the arguments of the row's run, then the row's. A row makes a static column `trained` where the cell
needs the policy of a run, and `given` where the cell is an input (a constraint, a cited figure). How a column is
computed and compared is declared once, in `columns`: a row cannot change it.

`rounding`: "nearest" (half of the last printed digit, both ways at ties) or "cut" (digits after the printed ones
dropped). `residual`: relative difference up to which a cell is `within residual` (0.035: 3.5 %). `fitted`: constants of
the formula were fitted to these very cells, so that agreement is no test.

`run`: `config` (a file of the method's folder, or its content), `method` (another folder than the table's), `seeds`,
`epochs`, the mappings `data` and `trainer`, `weights_from` (a row of the same table that trains the start weights),
`weights_env` (environment variable with their file), `evaluate` (measure the start weights, no training), `cause`
(known cause of a gap); every other key is an argument of the method. Rows of compared methods, and rows that no code
produces yet, have no run.
"""

from __future__ import annotations

import difflib
import importlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
METHODS = ROOT / "methods"
KINDS = ("given", "static", "trained")
ROUNDINGS = ("nearest", "cut")
SECTIONS = ("model", "data", "trainer")  # of a configuration file
RUN_KEYS = (
    "config",
    "method",
    "seeds",
    "epochs",
    "data",
    "trainer",
    "weights_from",
    "weights_env",
    "evaluate",
    "cause",
)

_TABLE_KEYS = {"paper", "caption", "dataset", "test_images", "inputs", "columns", "counted", "rows", "notes"}
_COLUMN_KEYS = {"kind", "formula", "unit", "inputs", "rounding", "residual", "fitted"}
_ROW_KEYS = {"name", "method", "model", "published", "tolerance", "notes", "inputs", "columns", "run"}
_NAME = re.compile(r"[A-Za-z0-9_.\-]+")


class _Loader(yaml.SafeLoader):
    """Safe, and reads 1e-5 as a number (YAML 1.1 wants 1.0e-5)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$"),
    list("-+0123456789."),
)
# Integers are matched by their own resolver, which has to come first.
for _first, _resolvers in _Loader.yaml_implicit_resolvers.items():
    _Loader.yaml_implicit_resolvers[_first] = sorted(_resolvers, key=lambda pair: pair[0].endswith(":float"))


class Printed(float):
    """A number with its digits as printed: 26.80 is the number 26.8 with `text` "26.80"."""

    text: str

    def __new__(cls, text: str) -> Printed:
        number = super().__new__(cls, text)
        number.text = text
        return number


class _TableLoader(_Loader):
    """Keeps the digits of numbers with a decimal point."""


def _printed(loader: _TableLoader, node: yaml.ScalarNode) -> float:
    value = loader.construct_yaml_float(node)
    return Printed(node.value) if math.isfinite(value) else value


_TableLoader.add_constructor("tag:yaml.org,2002:float", _printed)


def parse_yaml(text: str, source: str, loader: type[yaml.SafeLoader] = _Loader) -> Any:
    """A YAML document as plain objects.

    Raises:
        UserError: not YAML.
    """
    try:
        return yaml.load(text, Loader=loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{source}{place}: not valid YAML ({getattr(error, 'problem', None) or error})") from None


@dataclass(frozen=True)
class Column:
    """One column: "given" (an input), "static" (computable without training) or "trained".

    Attributes:
        formula: function in methods/<paper>/static.py that computes static cells.
        unit: of the printed numbers; "" for none.
        inputs: of the formula, the same in all rows.
        rounding: how the paper got from the value to the printed digits, one of ROUNDINGS.
        residual: relative difference that is stated for static cells.
        fitted: the formula's constants were fitted to this column.
    """

    name: str
    kind: str
    formula: str
    unit: str = ""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    rounding: str = "nearest"
    residual: float = 0.0
    fitted: bool = False


@dataclass(frozen=True)
class Row:
    """One row as published, and the run that produces it."""

    name: str
    method: str
    model: str
    published: Mapping[str, float | str | None]
    columns: Mapping[str, Column]
    own: bool = False  # of ours: no paper printed it
    tolerance: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    run: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Table:
    """One table file."""

    paper: str
    name: str
    caption: str
    dataset: str
    test_images: int | None
    source: Mapping[str, Any]
    columns: Mapping[str, Column]
    counted: Mapping[str, Any]
    rows: tuple[Row, ...]
    notes: Mapping[str, str]
    inputs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """The name that commands take."""
        return f"{self.paper}/{self.name}"

    def row(self, name: str) -> Row:
        """
        Raises:
            UserError: no such row.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise UserError(f"table {self.path} has no row {name!r}; {_suggest(name, [row.name for row in self.rows])}")


@dataclass(frozen=True)
class StaticCell:
    """A computed cell and how it compares with the print.

    Attributes:
        residual: (value - printed) / printed; None where nothing, or zero, is printed.
    """

    value: float
    verdict: str
    reason: str
    residual: float | None


def list_tables() -> list[str]:
    """Names of all papers' tables, `<paper>/<table>`; the template's are left out."""
    return sorted(f"{path.parents[1].name}/{path.stem}" for path in METHODS.glob("[!_]*/tables/*.yaml"))


def expand_names(names: Iterable[str]) -> list[str]:
    """Table names, where a paper's folder stands for all of its tables; each once, unknown ones as they are."""
    known = list_tables()
    expanded = [[t for t in known if t.startswith(f"{name}/")] or [name] for name in names]
    return list(dict.fromkeys(table for tables in expanded for table in tables))


def load_table(name: str) -> Table:
    """A table by name.

    Raises:
        UserError: unknown table; a file that does not follow the schema.
    """
    paper, _, table = name.partition("/")
    path = METHODS / paper / "tables" / f"{table}.yaml"
    if not (_NAME.fullmatch(paper) and _NAME.fullmatch(table) and path.is_file()):
        raise UserError(f"unknown table {name!r}; {_suggest(name, list_tables())}")
    return parse_table(parse_yaml(path.read_text(), str(path.relative_to(ROOT)), _TableLoader), paper, table)


def parse_table(content: Any, paper: str, name: str) -> Table:
    """A table from the content of its file.

    Raises:
        UserError: it does not follow the schema.
    """
    where = f"{paper}/{name}"
    content = _mapping(content, where, _TABLE_KEYS, required=("caption", "dataset", "columns", "rows"))
    content = {key: value if key == "rows" else _plain(value) for key, value in content.items()}
    columns = {
        key: _column(key, value, where) for key, value in _mapping(content["columns"], f"{where} columns").items()
    }
    if not isinstance(content["rows"], list) or not content["rows"]:
        raise UserError(f"{where}: rows must be a list with at least one row")
    rows = tuple(_row(row, columns, where) for row in content["rows"])
    names = [row.name for row in rows]
    if twice := [row for row in names if names.count(row) > 1]:
        raise UserError(f"{where}: row {twice[0]!r} is there twice")
    for row in rows:
        source = (row.run or {}).get("weights_from")
        if source is not None and source not in names:
            raise UserError(f"{where} row {row.name!r}: weights_from names {source!r}, which is no row of this table")
    test_images = content.get("test_images")
    if test_images is not None and not isinstance(test_images, int):
        raise UserError(f"{where}: test_images must be an integer, got {test_images!r}")
    return Table(
        paper=paper,
        name=name,
        caption=str(content["caption"]),
        dataset=str(content["dataset"]),
        test_images=test_images,
        source=_mapping(content.get("paper") or {}, f"{where} paper"),
        columns=columns,
        counted=_mapping(content.get("counted") or {}, f"{where} counted"),
        rows=rows,
        notes=_mapping(content.get("notes") or {}, f"{where} notes"),
        inputs=_mapping(content.get("inputs") or {}, f"{where} inputs"),
    )


def read_config(folder: str, name: str | Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The sections of methods/<folder>/configs/<name>; those of `name` where it is the content itself.

    Raises:
        UserError: no such file, or not a configuration.
    """
    if isinstance(name, Mapping):
        return {section: dict(name.get(section) or {}) for section in SECTIONS}
    path = METHODS / folder / "configs" / name
    shown = f"methods/{folder}/configs/{name}"
    if not path.is_file():
        raise UserError(f"no configuration {shown}")
    content = parse_yaml(path.read_text(), shown)
    if not isinstance(content, dict):
        raise UserError(f"{shown}: expected the sections {', '.join(SECTIONS)}")
    if unknown := set(content) - set(SECTIONS):
        raise UserError(f"{shown}: unknown section {min(unknown)!r}")
    return {section: dict(content.get(section) or {}) for section in SECTIONS}


def run_arguments(run: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of `run` that are arguments of the method."""
    return {key: value for key, value in run.items() if key not in RUN_KEYS}


def method_arguments(table: Table, row: Row) -> dict[str, Any]:
    """The method's arguments as configuration and row state them, without the method's own defaults."""
    if row.run is None:
        return {}
    config = read_config(row.run.get("method", table.paper), row.run["config"])
    return config["model"] | run_arguments(row.run)


def printed_text(value: float | str | None) -> str:
    """A published cell as it is printed; "-" for nothing."""
    if value is None:
        return "-"
    return value.text if isinstance(value, Printed) else str(value)


def decimals(value: float) -> int:
    """Printed digits after the point: 2 of 26.80, -2 of 1.2e3 (a step of the last digit is 100)."""
    return -int(Decimal(printed_text(value)).as_tuple().exponent)


def has_code(paper: str) -> bool:
    """Whether a paper's folder holds more than tables."""
    return (METHODS / paper / "__init__.py").is_file()


def why_no_run(table: Table, row: Row) -> str:
    """Why a row has no run.

    It is the paper's own if its method's name begins with the folder's. In a folder such as the lecture's, where no
    row's does, none is a compared method.
    """

    def is_own(method: str) -> bool:
        return _letters(method).startswith(_letters(table.paper))

    if not is_own(row.method) and any(is_own(other.method) for other in table.rows):
        return f"of {row.method}, which the paper compares with"
    return "no run is set up yet" if has_code(table.paper) else "the paper's code is not written yet"


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _column(name: str, value: Any, where: str) -> Column:
    place = f"{where} column {name!r}"
    settings = {"kind": value} if isinstance(value, str) else _mapping(value, place, _COLUMN_KEYS)
    column = Column(**{"name": name, "formula": name, **settings, "kind": _kind(settings.get("kind"), place)})
    if column.rounding not in ROUNDINGS:
        raise UserError(f"{place}: rounding must be one of {', '.join(ROUNDINGS)}, got {column.rounding!r}")
    if not _is_number(column.residual) or not 0 <= column.residual < 1:
        raise UserError(f"{place}: residual must be a share of the print such as 0.035, got {column.residual!r}")
    for key, kind in (("formula", str), ("unit", str), ("inputs", dict), ("fitted", bool)):
        if not isinstance(getattr(column, key), kind):
            raise UserError(f"{place}: {key} cannot be {getattr(column, key)!r}")
    return column


def _changed(column: Column, value: Any, where: str) -> Column:
    """A column with the kind that a row gives it."""
    place = f"{where} column {column.name!r}"
    settings = {"kind": value} if isinstance(value, str) else _mapping(value, place, required=("kind",))
    if fixed := [key for key in settings if key != "kind"]:
        raise UserError(f"{place}: {fixed[0]} is declared once, in the table's columns; a row changes the kind only")
    return replace(column, kind=_kind(settings["kind"], place))


def _kind(value: Any, place: str) -> str:
    if value not in KINDS:
        raise UserError(f"{place}: kind must be one of {', '.join(KINDS)}, got {value!r}")
    return value


def _row(content: Any, columns: Mapping[str, Column], where: str) -> Row:
    content = _mapping(content, f"{where}: a row", _ROW_KEYS, required=("name", "method", "model", "published"))
    name = str(content["name"])
    place = f"{where} row {name!r}"
    if not _NAME.fullmatch(name):
        raise UserError(f"{place}: a name has letters, digits and _ . - only")
    content = {key: value if key == "published" else _plain(value) for key, value in content.items()}
    own = content["published"] is None
    published = _mapping(content["published"] or {}, f"{place} published")
    changed = _mapping(content.get("columns") or {}, f"{place} columns")
    for part in (published, content.get("tolerance") or {}, content.get("notes") or {}, changed):
        if unknown := [column for column in part if column not in columns]:
            raise UserError(f"{place}: {unknown[0]!r} is no column of the table ({', '.join(columns)})")
    own_columns = {**columns, **{key: _changed(columns[key], value, place) for key, value in changed.items()}}
    for key, value in published.items():
        if value is None or _is_number(value) or (own_columns[key].kind == "given" and isinstance(value, str)):
            continue
        texts = ", a text" if own_columns[key].kind == "given" else ""
        raise UserError(f"{place}: published {key} must be a number{texts} or null, got {value!r}")
    return Row(
        name=name,
        method=str(content["method"]),
        model=str(content["model"]),
        published={column: published.get(column) for column in columns},
        columns=own_columns,
        own=own,
        tolerance=_numbers(content.get("tolerance"), f"{place} tolerance"),
        notes=_mapping(content.get("notes") or {}, f"{place} notes"),
        inputs=_mapping(content.get("inputs") or {}, f"{place} inputs"),
        run=_run(content.get("run"), place),
    )


def _run(content: Any, place: str) -> Mapping[str, Any] | None:
    if content is None:
        return None
    run = _mapping(content, f"{place} run", required=("config",))
    for section in ("data", "trainer"):
        _mapping(run.get(section) or {}, f"{place} run {section}")
    seeds = run.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(isinstance(seed, int) for seed in seeds):
        raise UserError(f"{place}: seeds must be a list of integers, got {seeds!r}")
    return run


def _numbers(content: Any, place: str) -> dict[str, float]:
    numbers = _mapping(content or {}, place)
    if wrong := [key for key, value in numbers.items() if not _is_number(value)]:
        raise UserError(f"{place}: {wrong[0]} must be a number, got {numbers[wrong[0]]!r}")
    return numbers


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _plain(value: Any) -> Any:
    """With numbers that are only numbers: what is computed with, stored or sent elsewhere."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return float(value) if isinstance(value, Printed) else value


def _mapping(content: Any, place: str, known: set[str] | None = None, required: tuple[str, ...] = ()) -> dict[str, Any]:
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{place}: expected a mapping of names, got {content!r}")
    if missing := [key for key in required if key not in content]:
        raise UserError(f"{place} lacks {missing[0]!r}")
    if known is not None and (unknown := [key for key in content if key not in known]):
        raise UserError(f"{place} has an unknown entry {unknown[0]!r}; {_suggest(unknown[0], sorted(known))}")
    return content


def _suggest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=4)
    return f"did you mean {', '.join(close)}?" if close else f"choose one of {', '.join(known)}"


# -- static cells -----------------------------------------------------------------------------------------------------


class _MissingInput(Exception):
    pass


class _Inputs(dict[str, Any]):
    def __missing__(self, name: str) -> Any:
        raise _MissingInput(name)


def static_cell(table: Table, row: Row, column: Column) -> StaticCell | None:
    """Compute a static cell and compare it with the print; None where nothing is printed and an input is missing.

    Raises:
        UserError: the paper's folder has no such formula; a printed cell lacks an input of it.
    """
    where = f"{table.path} row {row.name!r} column {column.name!r}"
    formula = None
    if (METHODS / table.paper / "static.py").is_file():
        formula = getattr(importlib.import_module(f"methods.{table.paper}.static"), column.formula, None)
    if formula is None:
        raise UserError(f"{where}: methods/{table.paper}/static.py has no function {column.formula!r}")
    printed = row.published[column.name]
    try:
        value = float(formula(_Inputs({**table.inputs, **column.inputs, **method_arguments(table, row), **row.inputs})))
    except _MissingInput as missing:
        if printed is None:
            return None
        raise UserError(f"{where}: {column.formula} needs the input {str(missing)!r}") from None
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    verdict, reason = compare(value, printed, column.rounding, column.residual, column.fitted)
    note = row.notes.get(column.name)
    if note is None and verdict in ("within residual", "fitted"):
        note = table.notes.get(column.name)
    reason = "; ".join(text for text in (reason, note) if text)
    return StaticCell(value, verdict, reason, value / printed - 1 if printed else None)


def compare(
    value: float, printed: float | None, rounding: str = "nearest", residual: float = 0.0, fitted: bool = False
) -> tuple[str, str]:
    """(verdict, reason) of a computed value beside a printed one.

    `equal` when the value, rounded or cut off at the printed digits, gives the print; else `within residual` when the
    relative difference is at most the stated one; `fitted` instead of both for fitted columns; else `differs`. Nothing
    where nothing is printed.
    """
    if printed is None:
        return "", ""
    if not math.isfinite(value):
        return "differs", ""
    per_step = 10.0 ** decimals(printed)  # a step: 1 in the last printed digit
    rounds = abs(value - printed) * per_step <= 0.5 * (1 + 1e-9)
    cuts = math.trunc(value * per_step + math.copysign(1e-9, value)) == round(printed * per_step)
    equal = cuts if rounding == "cut" else rounds
    if fitted and (equal or abs(value - printed) <= residual * abs(printed)):
        return "fitted", "constants fitted to this column"
    if equal:
        return "equal", ""
    other = "cut off, not rounded" if cuts else "rounded, not cut off" if rounds else ""
    if abs(value - printed) <= residual * abs(printed):
        return "within residual", f"stated residual {100 * residual:g} %" + (f"; {other}" if other else "")
    return "differs", other
