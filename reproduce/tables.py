"""Table files: what a paper printed, and the runs of ours that fill the same cells.

methods/<paper>/tables/<table>.yaml holds

    paper: {arxiv: "3101.00001", table: 3, page: 7}      # null values where a table is our own
    caption: one line
    dataset: imagenet                                    # what the trained cells are measured on
    test_images: 50000                                   # a run on fewer, or on another set, is no measurement
    columns: {target_wcr: given, top1: trained, acr: {kind: static, formula: acr}}
    counted: {first_layer: true, last_layer: true, biases: false}
    rows:
      - name: resnet50_wcr8
        method: HMQ                                      # as the paper names it
        model: ResNet-50
        published: {target_wcr: 8, top1: 75.1, acr: 4}   # null: not reported; `published: null`: a row of our own
        tolerance: {top1: 0.3}
        notes: {acr: reason of a difference}             # per column
        inputs: {size_mb: 6.3}                           # numbers that a static formula needs, besides run's
        columns: {wcr: {kind: static, formula: ratio}}   # where this row differs from the table
        run: {config: imagenet.yaml, model: resnet50, target_wcr: 8.0}

`run`: `config` (a file of the method's folder), `method` (another folder than the table's), `seeds`, `epochs`, the
mappings `data` and `trainer`, `weights_from` (a row of the same table that trains the start weights), `weights_env`
(environment variable with their file), `evaluate` (measure the start weights, no training), `cause` (known cause of a
gap); every other key is an argument of the method.
"""

from __future__ import annotations

import difflib
import importlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
METHODS = ROOT / "methods"
KINDS = ("given", "static", "trained")
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

_TABLE_KEYS = {"paper", "caption", "dataset", "test_images", "columns", "counted", "rows", "notes"}
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


def parse_yaml(text: str, source: str) -> Any:
    """A YAML document as plain objects.

    Raises:
        UserError: not YAML.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{source}{place}: not valid YAML ({getattr(error, 'problem', None) or error})") from None


@dataclass(frozen=True)
class Column:
    """One column: "given" (an input), "static" (computable without training) or "trained".

    Attributes:
        formula: name of the function in methods/<paper>/static.py (static columns).
        residual: difference that a static cell may have, with its reason in the row's or the table's notes.
    """

    name: str
    kind: str
    formula: str | None = None
    residual: float = 0.0


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
    inputs: Mapping[str, float] = field(default_factory=dict)
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
    """A computed cell and how it compares with the print."""

    value: float
    verdict: str
    reason: str


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
    return parse_table(parse_yaml(path.read_text(), str(path.relative_to(ROOT))), paper, table)


def parse_table(content: Any, paper: str, name: str) -> Table:
    """A table from the content of its file.

    Raises:
        UserError: it does not follow the schema.
    """
    where = f"{paper}/{name}"
    content = _mapping(content, where, _TABLE_KEYS, required=("caption", "dataset", "columns", "rows"))
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
    )


def read_config(folder: str, name: str) -> dict[str, dict[str, Any]]:
    """The sections of methods/<folder>/configs/<name>.

    Raises:
        UserError: no such file, or not a configuration.
    """
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


def _column(name: str, value: Any, where: str) -> Column:
    place = f"{where} column {name!r}"
    settings = {"kind": value} if isinstance(value, str) else _mapping(value, place, {"kind", "formula", "residual"})
    if settings.get("kind") not in KINDS:
        raise UserError(f"{place}: kind must be one of {', '.join(KINDS)}, got {settings.get('kind')!r}")
    column = Column(name, **settings)
    return Column(name, "static", column.formula or name, column.residual) if column.kind == "static" else column


def _row(content: Any, columns: Mapping[str, Column], where: str) -> Row:
    content = _mapping(content, f"{where}: a row", _ROW_KEYS, required=("name", "method", "model", "published"))
    name = str(content["name"])
    place = f"{where} row {name!r}"
    if not _NAME.fullmatch(name):
        raise UserError(f"{place}: a name has letters, digits and _ . - only")
    own = content["published"] is None
    published = _mapping(content["published"] or {}, f"{place} published")
    changed = _mapping(content.get("columns") or {}, f"{place} columns")
    for part in (published, content.get("tolerance") or {}, content.get("notes") or {}, changed):
        if unknown := [column for column in part if column not in columns]:
            raise UserError(f"{place}: {unknown[0]!r} is no column of the table ({', '.join(columns)})")
    if wrong := [k for k, v in published.items() if isinstance(v, bool) or not isinstance(v, int | float | None)]:
        raise UserError(f"{place}: published {wrong[0]} must be a number or null, got {published[wrong[0]]!r}")
    return Row(
        name=name,
        method=str(content["method"]),
        model=str(content["model"]),
        published={column: published.get(column) for column in columns},
        columns={**columns, **{key: _column(key, value, place) for key, value in changed.items()}},
        own=own,
        tolerance=_numbers(content.get("tolerance"), f"{place} tolerance"),
        notes=_mapping(content.get("notes") or {}, f"{place} notes"),
        inputs=_numbers(content.get("inputs"), f"{place} inputs"),
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
    if wrong := [
        key for key, value in numbers.items() if isinstance(value, bool) or not isinstance(value, int | float)
    ]:
        raise UserError(f"{place}: {wrong[0]} must be a number, got {numbers[wrong[0]]!r}")
    return numbers


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


def static_cell(table: Table, row: Row, column: Column) -> StaticCell:
    """Compute a static cell and compare it with the print.

    Raises:
        UserError: the paper's folder has no such formula.
    """
    formula = None
    if (METHODS / table.paper / "static.py").is_file():
        formula = getattr(importlib.import_module(f"methods.{table.paper}.static"), column.formula or "", None)
    if formula is None:
        raise UserError(f"{table.path}: methods/{table.paper}/static.py has no function {column.formula!r}")
    value = float(formula(method_arguments(table, row) | row.inputs))
    verdict, reason = compare(value, row.published[column.name], column.residual)
    note = row.notes.get(column.name, "")
    return StaticCell(value, verdict, "; ".join(text for text in (reason, note) if text))


def compare(value: float, printed: float | None, residual: float = 0.0) -> tuple[str, str]:
    """(verdict, reason) of a computed value beside a printed one.

    `equal` when rounding, or cutting off at the printed decimals (if any), gives the print; else `within residual` when
    the difference is at most the stated one, else `differs`; nothing where nothing is printed.
    """
    if printed is None:
        return "", ""
    decimals = len(repr(printed).partition(".")[2]) if isinstance(printed, float) else 0
    half = 0.5 * 10.0**-decimals
    if abs(value - printed) <= half * (1 + 1e-9):
        return "equal", ""
    if decimals and math.isclose(math.trunc(value * 10**decimals + 1e-9) / 10**decimals, printed, abs_tol=half / 100):
        return "equal", f"printed cut off, not rounded: {value:.4f}"
    if abs(value - printed) <= residual:
        return "within residual", f"computed {value:.4f}, residual {residual:g}"
    return "differs", ""
