"""Which code a piece of work can run."""

from __future__ import annotations

import pytest

from experiments.runs import code_closure
from experiments.runs.code_closure import closure, code_of, leaves, modules_of, state_of, targets


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
    assert dict(leaves(options))["policy", "solver", "parts", "0", "_target_"] == "f.G"
    assert dict(leaves(options))["list", "1"] == "x"
    assert dict(leaves({"empty": [], "none": None})) == {("empty",): [], ("none",): None}
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
            "asks": "CELL = 'solvers.other:work'\n",
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
    assert closure(["solvers.asks"], root) == {"solvers.asks", "solvers.other"}
    state = state_of(["solvers.top"], root)
    assert state_of(["solvers.top"], project("second", other="x = 2\n")) == state
    assert state_of(["solvers.top"], project("third", deep="thing = 2\n")) != state


def test_the_machine_counts_where_times_do(project, monkeypatch):
    """Results with times are of one processor; a sweep of simulations may go on on another."""
    root = project("first")
    states = []
    for model in ("this", "that"):
        monkeypatch.setattr(code_closure, "cpu_model", lambda model=model: model)
        states.append((code_of(["solvers.top"], root), state_of(["solvers.top"], root)))
    assert states[0][0] == states[1][0]
    assert states[0][1] != states[1][1]


def test_all_modules_of_a_package_are_found(project):
    """A package itself is one of its modules."""
    found = modules_of("solvers", root=project("first"))
    names = {f"solvers.{name}" for name in ("deep", "top", "shop", "asks", "other")}
    assert found == {"solvers", *names}


def test_a_command_runs_what_it_imports_and_readers_of_results_are_not_among_it():
    """A study's own work counts though it is named by text; the report's modules never do."""
    study = closure(["experiments.commands.study"])
    assert "experiments.studies.hindsight_measurements" in study
    for command in ("simulate", "quality", "tune", "live"):
        needed = closure([f"experiments.commands.{command}"])
        assert not any(name.startswith("experiments.report") for name in needed)
        assert f"experiments.commands.{command}" in needed
