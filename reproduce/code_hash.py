"""Which of our definitions a run rests on, and the hash of their code.

Reachability is by name: from a method's class to the functions, classes and constants that its code names, in their own
module or imported, and on from those. What a module holds besides is passed over, so that a new quantizer beside the
one that a method uses, or a new network in the registry, leaves the method's records standing. A name too many (a local
variable called like a function) only makes a record stale that need not be.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from reproduce.tables import ROOT

PACKAGES = ("common", "data", "hardware", "methods")
ALL = "*"  # all definitions of a module

Definition = tuple[str, str]  # (module, name)


def code_hash(
    *roots: Definition,
    without: Collection[str] = (),
    passed_over: Collection[Definition] = (),
    entries: Mapping[Definition, Collection[str]] | None = None,
) -> str:
    """First 16 hex digits of the sha256 over the code of these definitions and of all of ours that they rest on.

    Comments, docstrings and layout do not count.

    Args:
        roots: (module, name); name "*" is all of the module.
        without: packages that no result depends on, although something names them.
        passed_over: definitions that no result depends on.
        entries: of a table written as a dict, the keys whose entries count.
    """
    entries = entries or {}
    digest = hashlib.sha256()
    for module, name in sorted(definitions(*roots, without=without, passed_over=passed_over, entries=entries)):
        unit = _module(module).unit(name, entries.get((module, name)))
        digest.update(f"{module}\0{name}\0{_dump(unit.nodes)}\0".encode())
    return digest.hexdigest()[:16]


def definitions(
    *roots: Definition,
    without: Collection[str] = (),
    passed_over: Collection[Definition] = (),
    entries: Mapping[Definition, Collection[str]] | None = None,
) -> set[Definition]:
    """These definitions and those that they rest on, by their sources (nothing is executed).

    Statements of a module that define nothing (a loop that fills a table) come with any of its definitions, as name "".
    """
    entries, found = entries or {}, set()
    pending = list(roots)
    while pending:
        module, name = pending.pop()
        if module.partition(".")[0] in without or _file(module) is None or (module, name) in passed_over:
            continue
        source = _module(module)
        if name == ALL:
            pending += [(module, own) for own in source.units]
            continue
        if name in source.imports and name not in source.units:
            pending.append(_resolved(*source.imports[name]))
            continue
        if name not in source.units or (module, name) in found:
            continue
        found.add((module, name))
        if "" in source.units:
            pending.append((module, ""))
        unit = source.unit(name, entries.get((module, name)))
        for used in unit.names:
            if used in source.units:
                pending.append((module, used))
            elif used in source.imports:
                pending.append(_resolved(*source.imports[used]))
        pending += [_resolved(*target) for target in unit.targets(source)]
    return found


@dataclass
class _Unit:
    """The statements that give one name its value.

    Attributes:
        names: every identifier in them.
        imports: what they import themselves: identifier -> (module, name); name None is the module.
        attributes: (identifier, attribute) of every `identifier.attribute`.
    """

    nodes: list[ast.stmt] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    imports: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    attributes: set[tuple[str, str]] = field(default_factory=set)

    def add(self, node: ast.stmt) -> None:
        self.nodes.append(node)
        for part in ast.walk(node):
            if isinstance(part, ast.Name):
                self.names.add(part.id)
            elif isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):
                self.attributes.add((part.value.id, part.attr))
            elif isinstance(part, ast.Import | ast.ImportFrom):
                self.imports |= _bindings(part)

    def targets(self, source: _Source) -> Iterable[tuple[str, str | None]]:
        """What the unit imports itself, and attributes of modules that its module imports."""
        yield from self.imports.values()
        for base, attribute in self.attributes:
            module = _as_module(self.imports.get(base) or source.imports.get(base))
            if module is not None:
                yield module, attribute


class _Source:
    """One module: its units by name ("" holds the statements that define nothing) and what it imports."""

    def __init__(self, path: Path) -> None:
        self.units: dict[str, _Unit] = {}
        self.imports: dict[str, tuple[str, str | None]] = {}
        for node in ast.parse(path.read_text()).body:
            for part in ast.walk(node) if isinstance(node, ast.If | ast.Try) else [node]:
                if isinstance(part, ast.Import | ast.ImportFrom):
                    self.imports |= _bindings(part)
            for name in _defined(node):
                self.units.setdefault(name, _Unit()).add(node)

    def unit(self, name: str, keys: Collection[str] | None = None) -> _Unit:
        """A unit; of a dict, the entries of `keys` alone."""
        unit = self.units[name]
        if keys is None:
            return unit
        (statement,) = unit.nodes
        table = getattr(statement, "value", None)
        if not isinstance(table, ast.Dict):
            raise TypeError(f"{name} is not written as a dict")
        chosen = _Unit()
        for key, value in zip(table.keys, table.values, strict=True):
            if isinstance(key, ast.Constant) and key.value in keys:
                chosen.add(ast.Expr(value))
        return chosen


def _defined(node: ast.stmt) -> list[str]:
    """Names that a statement defines; [""] where it defines none but does something."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom) or _is_docstring([node]):
        return []
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    names = [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]
    plain = all(isinstance(target, ast.Name | ast.Tuple) for target in targets)
    return names if names and plain else [""]


def _bindings(node: ast.Import | ast.ImportFrom) -> dict[str, tuple[str, str | None]]:
    if isinstance(node, ast.Import):
        return {(a.asname or a.name.partition(".")[0]): (a.name, None) for a in node.names}
    if node.level or not node.module:
        return {}
    return {a.asname or a.name: (node.module, a.name) for a in node.names}


def _resolved(module: str, name: str | None) -> Definition:
    """A definition; of a module as a whole, all of it."""
    whole = _as_module((module, name))
    return (whole, ALL) if whole is not None and name is None else (module, name or ALL)


def _as_module(binding: tuple[str, str | None] | None) -> str | None:
    """The module that a name is bound to; None where it is bound to something in a module."""
    if binding is None:
        return None
    module, name = binding
    if name is None:
        return module
    return f"{module}.{name}" if _file(f"{module}.{name}") is not None else None


def _file(module: str) -> Path | None:
    if module.partition(".")[0] not in PACKAGES:
        return None
    path = ROOT.joinpath(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@cache
def _source(path: Path, changed: int) -> _Source:
    return _Source(path)


def _module(module: str) -> _Source:
    path = _file(module)
    assert path is not None
    return _source(path, path.stat().st_mtime_ns)


def _dump(node: Any) -> str:
    """The syntax tree as text: without docstrings and empty fields, which differ between Python versions."""
    if isinstance(node, list):
        return "[" + ",".join(_dump(item) for item in node) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = []
    for name, value in sorted(ast.iter_fields(node)):
        if name == "body" and isinstance(value, list) and _is_docstring(value):
            value = value[1:]
        if value is not None and value != [] and name not in ("kind", "ctx"):
            fields.append(f"{name}={_dump(value)}")
    return f"{type(node).__name__}({','.join(fields)})"


def _is_docstring(body: list[Any]) -> bool:
    return bool(
        body
        and isinstance(body[0], ast.Expr)
        and isinstance(body[0].value, ast.Constant)
        and isinstance(body[0].value.value, str)
    )
