"""
Which of the project's code a piece of work can run: a hash of what it imports, near and far.

Results are kept by the code that made them. Hashing all the code would throw an hour of
first-come-first-served away because some solver changed; so imports are followed from the
module that does the work and from the classes its options name.
"""

from __future__ import annotations

import ast
import hashlib
import json
import platform
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from andes_opt.versions import versions
from experiments import ROOT
from experiments.runs.environment import cpu_model, usable_cores

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_PACKAGES = ("andes_opt", "solvers", "engine_adapter", "experiments")


def state_of(modules: Iterable[str], root: Path = ROOT) -> str:
    """
    A hash of the code that some modules can run, of the versions below it and the machine.

    Of other people's code the given modules themselves count by their text, and what lies
    below them by the versions of the packages alone.

    Parameters
    ----------
    modules
        Dotted names.
    root
        Folder with the project's packages.
    """
    given = set(modules)
    digest = hashlib.sha256(json.dumps(versions(), sort_keys=True).encode())
    digest.update(f"{cpu_model()}, {usable_cores()} cores, {platform.system()}".encode())
    for name in sorted(closure(given, root)):
        path = _file_of(name, root) or _foreign_file_of(name)
        if path is not None:
            digest.update(f"\0{name}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def closure(modules: Iterable[str], root: Path = ROOT) -> set[str]:
    """
    The given modules and every module of the project that they import, directly or not.

    A package counts only where something is taken from its own ``__init__``: importing one
    policy does not mean running the others that its package lists. Imports for type checking
    never run and don't count.

    Parameters
    ----------
    modules
        Dotted names.
    root
        Folder with the project's packages.
    """
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += _imports(name, root)
    return found


def targets(options: Any) -> set[str]:
    """
    Modules of the classes that plain options name as ``_target_``, however deep.

    Parameters
    ----------
    options
        Nested dicts and lists.
    """
    if isinstance(options, dict):
        own = {str(options["_target_"]).rpartition(".")[0]} if "_target_" in options else set()
        return own.union(*map(targets, options.values()))
    if isinstance(options, list | tuple):
        return set().union(*map(targets, options))
    return set()


@cache
def _imports(name: str, root: Path) -> tuple[str, ...]:
    path = _file_of(name, root)
    if path is None:
        return ()
    named = _named(ast.parse(path.read_text(encoding="utf-8")), root)
    return tuple(module for module in named if _file_of(module, root) is not None)


def _named(node: ast.AST, root: Path) -> Iterator[str]:
    """Modules that the import statements below a node name, at any depth."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module is not None:
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            yield inner if _file_of(inner, root) is not None else node.module
    elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        for statement in node.orelse:
            yield from _named(statement, root)
    else:
        for child in ast.iter_child_nodes(node):
            yield from _named(child, root)


@cache
def _file_of(name: str, root: Path) -> Path | None:
    """The file of a module of the project; None for others."""
    parts = name.split(".")
    if parts[0] not in _PACKAGES:
        return None
    path = root.joinpath(*parts)
    files = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def _foreign_file_of(name: str) -> Path | None:
    try:
        spec = find_spec(name)
    except ModuleNotFoundError:  # the package that it would be in
        return None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin)
