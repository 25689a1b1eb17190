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
import re
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
#: How a cell names its work; see :class:`experiments.runs.cells.Cell`.
_WORK = re.compile(r"(\w+(?:\.\w+)+):\w+")


def state_of(modules: Iterable[str], root: Path = ROOT) -> str:
    """
    Return a hash of what results with times in them depend on: :func:`code_of`, and the machine.

    Parameters
    ----------
    modules, root
        As for :func:`code_of`.
    """
    machine = f"{cpu_model()}, {usable_cores()} cores, {platform.system()}"
    return hashlib.sha256(f"{code_of(modules, root)} {machine}".encode()).hexdigest()


def code_of(modules: Iterable[str], root: Path = ROOT) -> str:
    """
    Return a hash of the code that some modules can run, and of the versions below it.

    Of other people's code the given modules themselves count by their text, and what lies
    below them by the versions of the packages alone.

    Parameters
    ----------
    modules
        Dotted names.
    root
        Folder with the project's packages.
    """
    digest = hashlib.sha256(json.dumps(versions(), sort_keys=True).encode())
    for name in sorted(closure(modules, root)):
        path = _file_of(name, root) or _foreign_file_of(name)
        if path is not None:
            digest.update(f"\0{name}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def modules_of(*packages: str, root: Path = ROOT) -> set[str]:
    """Return every module of some packages: what a run loads by name may be any of them."""
    paths = (path for package in packages for path in (root / package).rglob("*.py"))
    names = (".".join(path.relative_to(root).with_suffix("").parts) for path in paths)
    return {name.removesuffix(".__init__") for name in names}


def closure(modules: Iterable[str], root: Path = ROOT) -> set[str]:
    """
    Return the given modules and every one of the project that they import, directly or not.

    A package counts only where something is taken from its own ``__init__``: importing one
    policy does not mean running the others that its package lists. Imports for type checking
    never run and don't count. What cells name as ``"package.module:function"`` does.

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


def leaves(options: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """
    Yield every value in plain options with the keys that lead to it; empty nodes are values.

    Parameters
    ----------
    options
        Nested dicts and lists.
    path
        Where they stand themselves.
    """
    if isinstance(options, dict) and options:
        for name, child in options.items():
            yield from leaves(child, (*path, str(name)))
    elif isinstance(options, list | tuple) and options:
        for place, child in enumerate(options):
            yield from leaves(child, (*path, str(place)))
    else:
        yield path, options


def targets(options: Any) -> set[str]:
    """Return the modules of the classes that plain options name as ``_target_``."""
    named = (value for path, value in leaves(options) if path[-1:] == ("_target_",))
    return {str(value).rpartition(".")[0] for value in named}


@cache
def _imports(name: str, root: Path) -> tuple[str, ...]:
    path = _file_of(name, root)
    if path is None:
        return ()
    named = _named(ast.parse(path.read_text(encoding="utf-8")), root)
    return tuple(module for module in named if _file_of(module, root) is not None)


def _named(node: ast.AST, root: Path) -> Iterator[str]:
    """Yield modules that the statements below a node import, or name as the work of cells."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module is not None:
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            yield inner if _file_of(inner, root) is not None else node.module
    elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        for statement in node.orelse:
            yield from _named(statement, root)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        if work := _WORK.fullmatch(node.value):
            yield work[1]
    else:
        for child in ast.iter_child_nodes(node):
            yield from _named(child, root)


@cache
def _file_of(name: str, root: Path) -> Path | None:
    """Return the file of a module of the project; None for others."""
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
