"""Which of our modules a method rests on, and the hash of their code."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

from reproduce.tables import ROOT

PACKAGES = ("common", "data", "hardware", "methods")


def code_hash(*modules: str, without: Collection[str] = ()) -> str:
    """First 16 hex digits of the sha256 over the code of these modules and of all of ours that they import.

    Comments, docstrings and layout do not count. An `__init__` that only hands on a name is passed over, so that a
    change to a module nobody asked for changes nothing.

    Args:
        without: packages that no result depends on, although something imports them.
    """
    digest = hashlib.sha256()
    for name in sorted(imported_modules(*modules, without=without)):
        digest.update(f"{name}\0{_code(_file(name))}\0".encode())
    return digest.hexdigest()[:16]


def imported_modules(*modules: str, without: Collection[str] = ()) -> set[str]:
    """These modules and those of ours that they import, directly or not, by their sources (nothing is executed)."""
    found: set[str] = set()
    pending = list(modules)
    while pending:
        name = pending.pop()
        if name not in found and name.partition(".")[0] not in without and _file(name) is not None:
            found.add(name)
            pending += _imports(name)
    return found


def _file(module: str) -> Path | None:
    if module.partition(".")[0] not in PACKAGES:
        return None
    path = ROOT.joinpath(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@cache
def _tree(path: Path, changed: int) -> ast.Module:
    return ast.parse(path.read_text())


def _parse(path: Path) -> ast.Module:
    return _tree(path, path.stat().st_mtime_ns)


def _imports(module: str) -> list[str]:
    path = _file(module)
    assert path is not None
    names: list[str] = []
    for node in ast.walk(_parse(path)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [_home(node.module, alias.name) for alias in node.names]
    return names


def _home(module: str, name: str) -> str:
    """The module that defines what `from module import name` gives."""
    if _file(f"{module}.{name}") is not None:
        return f"{module}.{name}"
    path = _file(module)
    if path is not None and path.name == "__init__.py":
        for node in _parse(path).body:
            if isinstance(node, ast.ImportFrom) and any((a.asname or a.name) == name for a in node.names):
                return _home(node.module or "", name)
    return module


def _code(path: Path | None) -> str:
    assert path is not None
    return _dump(_parse(path))


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
