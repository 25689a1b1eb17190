"""
Imports point one way: andes_opt, then solvers and engine_adapter, then experiments.

Within experiments they point from commands down to configuration, and no circle exists anywhere.
"""

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

#: What each part of experiments may import beside itself. Parts on one floor don't see each other.
_RESULTS = {"analysis", "client", "runs", "configuration"}
EXPERIMENTS = {
    "configuration": set(),
    "runs": {"configuration"},
    "client": {"configuration"},
    "analysis": {"runs", "configuration"},
    "documents": {"runs", "configuration"},
    "report": _RESULTS,
    "studies": _RESULTS,
    "solver_comparison": _RESULTS,
    "live": _RESULTS,
    "scoring": _RESULTS,
    "commands": {"scoring", "report", "studies", "solver_comparison", "live", *_RESULTS},
    "cli": {"commands", "runs", "configuration"},
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


def module_name(path):
    """``andes_opt.plan`` for ``andes_opt/plan.py``; a package's name for its ``__init__.py``."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(source, known):
    """Modules of ours that a file imports, in functions too; not those for type checkers alone."""
    tree = ast.parse(source)
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for child in block.body
        for node in ast.walk(child)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif is_import_call(node):
            found.add(node.args[0].value)
    return found & known


def import_graph():
    """Module -> modules of ours that it imports."""
    paths = {module_name(path): path for package in ALLOWED for path in modules(package)}
    return {
        name: imported_modules(path.read_text(encoding="utf-8"), set(paths)) - {name}
        for name, path in paths.items()
    }


def circles(graph):
    """Groups of modules that import each other in a loop."""

    def reached(start):
        seen, waiting = set(), [start]
        while waiting:
            for name in graph[waiting.pop()] - seen:
                seen.add(name)
                waiting.append(name)
        return seen

    reach = {name: reached(name) for name in graph}
    loops = {
        tuple(sorted(other for other in reach[name] if name in reach[other]))
        for name in graph
        if name in reach[name]
    }
    return sorted(loops)


def part_of(name):
    """The part of experiments that a module belongs to; None for the package's own face."""
    words = name.split(".")
    return words[1] if words[0] == "experiments" and len(words) > 1 else None


def wrong_arrows(graph):
    """A line for each import between parts of experiments that the house has no arrow for."""
    return [
        f"{name} imports {other}"
        for name, others in sorted(graph.items())
        if (part := part_of(name))
        for other in sorted(others)
        if (to := part_of(other)) and to not in EXPERIMENTS[part] | {part}
    ]


def test_parts_of_experiments_know_only_what_lies_below():
    """Commands know studies, studies know runs, runs know configuration; never the other way."""
    assert not wrong_arrows(import_graph())


def test_experiments_has_no_module_beside_its_parts():
    """Each module lies in a part with arrows of its own, ``cli`` alone beside them."""
    top = {path.stem for path in (ROOT / "experiments").glob("*.py")} - {"__init__"}
    folders = {path.parent.name for path in (ROOT / "experiments").glob("*/__init__.py")}
    assert top == {"cli"}
    assert folders | top == set(EXPERIMENTS)


def test_no_modules_import_each_other_in_a_circle():
    """No import circle exists in any package, those within functions included."""
    assert circles(import_graph()) == []


def test_wrong_parts_and_circles_are_seen():
    """The checks themselves: an arrow that runs back up, and a loop of two and of three."""
    up = {"experiments.runs.cells": {"experiments.studies.study"}, "experiments.cli": set()}
    assert wrong_arrows(up) == ["experiments.runs.cells imports experiments.studies.study"]
    assert circles({"a": {"b"}, "b": {"a"}, "c": {"a"}}) == [("a", "b")]
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == [("a", "b", "c")]
    assert circles({"a": {"b"}, "b": set()}) == []


def test_every_shipped_package_has_a_layer():
    """A package that the wheel ships is one that this file knows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    shipped = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert set(shipped) == set(ALLOWED)
