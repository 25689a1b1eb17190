"""Imports point one way: andes_opt, then solvers and engine_adapter, then experiments."""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = {"andes_opt", "solvers", "engine_adapter", "experiments", "conf", "tests", "benchmarks"}

#: What each package may import besides itself and the standard library: our own packages,
#: and third parties at module level. None: any third party that pyproject.toml lists.
ALLOWED = {
    "andes_opt": (set(), {"numpy", "scipy", "numba", "llvmlite"}),
    "solvers": ({"andes_opt"}, {"numpy", "scipy", "numba", "llvmlite"}),
    "engine_adapter": ({"andes_opt"}, {"numpy", "scipy", "numba", "vllm", "prometheus_client"}),
    "conf": (set(), set()),
    "experiments": ({"andes_opt", "solvers", "engine_adapter", "conf"}, None),
}

#: Packages whose functions may import what their modules may not: solver back-ends are
#: imported when a solver is constructed, so that none is needed to use the others.
LAZY_THIRD_PARTIES = {"solvers", "engine_adapter"}


def modules(package):
    """The package's files."""
    return sorted((ROOT / package).rglob("*.py"))


def imported(tree, path):
    """(top-level name, line, whether at module level) of every import of a file."""
    package = path.relative_to(ROOT).parts[0]
    lazy = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [package if node.level else node.module]
        elif is_import_call(node):
            names = [node.args[0].value]
        else:
            continue
        for name in names:
            yield name.split(".")[0], node.lineno, id(node) not in lazy


def is_import_call(node):
    """Whether a node is ``importlib.import_module("...")`` or ``__import__("...")``."""
    if not (isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)):
        return False
    called = (
        node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    )
    return called in ("import_module", "__import__", "load_back_end") and isinstance(
        node.args[0].value, str
    )


def violations(package, source, path):
    """One line for each import of a file that its package may not make."""
    ours, third_parties = ALLOWED[package]
    found = []
    for name, line, at_module_level in imported(ast.parse(source), path):
        if name == package or name in sys.stdlib_module_names or name == "__future__":
            continue
        if name in OURS:
            allowed = name in ours
        elif third_parties is None:
            allowed = True
        else:
            allowed = name in third_parties or (
                package in LAZY_THIRD_PARTIES and not at_module_level
            )
        if not allowed:
            found.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    return found


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_one_way(package):
    """No file of a package imports what its layer may not, not even for typing."""
    assert modules(package), f"{package} has no files"
    found = [
        line
        for path in modules(package)
        for line in violations(package, path.read_text(encoding="utf-8"), path)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("package", "source", "wrong"),
    [
        ("andes_opt", "import solvers.greedy", True),
        ("andes_opt", "from experiments import cli", True),
        ("andes_opt", "def f():\n    import hydra", True),
        ("andes_opt", "from numba import njit", False),
        ("andes_opt", "from . import plan", False),
        ("solvers", "import ortools", True),
        ("solvers", "def f():\n    from ortools.sat.python import cp_model", False),
        ("solvers", "def f():\n    import engine_adapter", True),
        (
            "solvers",
            "def f():\n    load('x')\n    importlib.import_module('experiments.cli')",
            True,
        ),
        ("engine_adapter", "from solvers.greedy import Greedy", True),
        ("engine_adapter", "import vllm", False),
        ("experiments", "import hydra, solvers, engine_adapter", False),
        ("experiments", "from tests import helpers", True),
        ("conf", "import hydra", True),
    ],
)
def test_wrong_arrows_are_seen(package, source, wrong):
    """The check itself: it sees each kind of wrong import, and lets the right ones pass."""
    assert bool(violations(package, source, ROOT / package / "example.py")) == wrong


def test_every_shipped_package_has_a_layer():
    """A package that the wheel ships is one that this file knows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    shipped = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert set(shipped) == set(ALLOWED)
