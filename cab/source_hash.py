"""A hash of the code that a result depends on: syntax trees of a module and of all modules of ours that it imports.

Comments, docstrings and formatting do not enter, so they make nothing stale; an edit to shared code makes stale
exactly what imports it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterable
from functools import cache
from pathlib import Path


@cache
def _location(module: str) -> Path | None:
    """The file of a module, or None for what is not Python source; imports parents only."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]
    return tree


@cache
def _parsed(path: Path, modified_ns: int) -> tuple[str, tuple[tuple[str, int, tuple[str, ...]], ...]]:
    """The dump of a file's tree and its imports as (module, relative level, names)."""
    tree = ast.parse(path.read_bytes())
    imports: list[tuple[str, int, tuple[str, ...]]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [(alias.name, 0, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imports.append((node.module or "", node.level, tuple(alias.name for alias in node.names)))
    return ast.dump(_without_docstrings(tree)), tuple(imports)


def _imported(module: str, path: Path, roots: frozenset[str]) -> set[str]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for name, level, members in _parsed(path, path.stat().st_mtime_ns)[1]:
        base = name
        if level:
            parent = package.split(".")[: len(package.split(".")) - (level - 1)]
            base = ".".join([*parent, name] if name else parent)
        if base.split(".")[0] in roots:
            found |= {base, *(f"{base}.{member}" for member in members if _location(f"{base}.{member}"))}
    return found


def dependencies(modules: Iterable[str]) -> dict[str, Path]:
    """The modules and all modules of the same top-level packages (or of ours) that they import, with their files."""
    start = list(modules)
    roots = frozenset({"attention_zoo", "cab", "tasks", *(name.split(".")[0] for name in start)})
    found: dict[str, Path] = {}
    queue = start
    while queue:
        module = queue.pop()
        path = _location(module)
        if module in found or path is None:
            continue
        found[module] = path
        queue += sorted(_imported(module, path, roots) - set(found))
    return found


def source_hash(modules: Iterable[str]) -> str:
    """Hex digest (16 digits) over the syntax trees of :func:`dependencies`."""
    digest = hashlib.sha256()
    for module, path in sorted(dependencies(modules).items()):
        digest.update(module.encode())
        digest.update(_parsed(path, path.stat().st_mtime_ns)[0].encode())
    return digest.hexdigest()[:16]
