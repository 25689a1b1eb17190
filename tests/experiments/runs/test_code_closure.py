"""Which code a piece of work can run."""

from __future__ import annotations

import pytest

from experiments.runs.code_closure import closure, state_of, targets


def test_targets_are_found_at_any_depth():
    """Policies name their solver and objective, which name classes of their own."""
    options = {
        "policy": {
            "_target_": "a.b.C",
            "solver": {"_target_": "d.E", "parts": [{"_target_": "f.G"}]},
        },
        "rate": 3,
        "list": [1, "x", None],
    }
    assert targets(options) == {"a.b", "d", "f"}
    assert targets({}) == targets([]) == targets(None) == set()


def test_imports_are_followed_but_not_to_the_neighbours():
    """FCFS needs no solver and no other policy; Andes with greedy needs its own packing."""
    fcfs = closure(["andes_opt.policy.fcfs", "experiments.studies.measurements"])
    assert {"andes_opt.engine_loop", "andes_opt.qoe", "andes_opt.simulator"} <= fcfs
    assert not any(name.startswith("solvers") for name in fcfs)
    assert "andes_opt.policy.andes" not in fcfs
    andes = closure(["andes_opt.policy.andes", "solvers.greedy"])
    assert {"solvers.packing", "andes_opt.forecast", "andes_opt.policy.packing"} <= andes
    assert "solvers.cp_sat" not in andes
    assert "experiments.studies.study" not in closure(
        ["experiments.studies.exact_vs_greedy"]
    )  # for types only


@pytest.fixture
def project(tmp_path):
    """Makes a project of some modules, with the text of two of them as given."""

    def make(name, *, deep="thing = 1\n", other="x = 1\n"):
        folder = tmp_path / name / "solvers"
        folder.mkdir(parents=True)
        for module, text in {
            "__init__": "from solvers.deep import thing\n",
            "deep": deep,
            "top": "def work():\n    from solvers import deep\n    import numpy\n",
            "shop": "from solvers import thing\n",
            "other": other,
        }.items():
            (folder / f"{module}.py").write_text(text)
        return folder.parent

    return make


def test_what_is_imported_changes_the_state(project):
    """An import inside a function counts; a module that nobody imports does not."""
    root = project("first")
    assert closure(["solvers.top"], root) == {"solvers.top", "solvers.deep"}
    assert closure(["solvers.shop"], root) == {"solvers.shop", "solvers", "solvers.deep"}
    state = state_of(["solvers.top"], root)
    assert state_of(["solvers.top"], project("second", other="x = 2\n")) == state
    assert state_of(["solvers.top"], project("third", deep="thing = 2\n")) != state
