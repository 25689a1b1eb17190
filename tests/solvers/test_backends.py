"""Third-party back-ends on instances with known optimum, under limits, and when things go wrong."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from andes_opt import families
from andes_opt.instance import GainTable, Instance
from andes_opt.plan import Status, verify
from andes_opt.testing import large_instance
from solvers import pulp_family
from solvers.cp_sat import CpSat
from solvers.highs import Highs
from solvers.knapsack_ortools import KnapsackOrtools
from solvers.lp_rounding import LpRounding
from solvers.mip_scip import MipScip
from solvers.prices import dual_bound
from solvers.pulp_family import PulpCbc, PulpHighs

BACK_ENDS = (CpSat, MipScip, LpRounding, KnapsackOrtools, PulpCbc, PulpHighs, Highs)
WITH_A_GAP = (CpSat, MipScip, PulpCbc, PulpHighs, Highs)
REFERENCE = json.loads((Path(__file__).parents[1] / "reference" / "instances.json").read_text())


def read(item):
    """An instance of the reference file."""
    return Instance(
        np.array(item["weights"]),
        item["capacity"],
        item["min_batch"],
        item["max_batch"],
        GainTable(item["values"], item["first_batch"]),
        item["exactly"],
    )


@pytest.fixture(scope="module")
def hard():
    """An instance on which both limits bind, and its optimum as CP-SAT proves it in integers."""
    instance = large_instance(60)
    plan = CpSat().solve(instance)
    assert plan.status is Status.OPTIMAL
    return instance, plan.value


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_reference_optima(back_end):
    """Every back-end agrees with the reference instances: optimum if exact, bracket if not."""
    solver = back_end()
    for item in REFERENCE:
        instance = read(item)
        plan = solver.solve(instance)
        verify(instance, plan)
        if item["optimum"] is None:
            assert plan.status is Status.NO_SOLUTION, item["name"]
            assert plan.bound == -math.inf
            continue
        assert plan.value <= item["optimum"] + 1e-6, item["name"]
        assert plan.bound >= item["optimum"] - 1e-6, item["name"]
        if solver.exact:
            assert plan.status is Status.OPTIMAL, item["name"]
            assert plan.value == pytest.approx(item["optimum"], abs=1e-6), item["name"]


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_agreement_beyond_enumeration(back_end, hard):
    """At 60 requests the exact ones meet the same optimum, and the others bracket it."""
    instance, optimum = hard
    solver = back_end()
    plan = solver.solve(instance, time_limit_s=20.0)
    verify(instance, plan)
    assert plan.value <= optimum + 1e-9
    assert plan.bound >= optimum - 1e-9
    if solver.exact and back_end is not KnapsackOrtools:
        assert plan.status is Status.OPTIMAL
        assert plan.value == pytest.approx(optimum, rel=1e-6)
    assert plan.value > 0.9 * optimum


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_short_limits_bring_incumbent_and_bound(back_end, hard):
    """Cut short, a back-end's plan is in time, better than nothing and honest about the optimum."""
    instance, optimum = hard
    solver = back_end()
    for limit_s in (0.005, 0.05):
        started = time.perf_counter()
        plan = solver.solve(instance, time_limit_s=limit_s)
        assert time.perf_counter() - started < limit_s + 1.0
        verify(instance, plan)
        assert plan.value <= optimum + 1e-9
        assert plan.bound >= optimum - 1e-9
    assert plan.value > 0.5 * optimum


@pytest.mark.parametrize("back_end", WITH_A_GAP)
def test_a_loose_gap_is_not_exact_and_not_hidden(back_end, hard):
    """With a relative gap of 20 % a solver no longer calls itself exact, and bounds still hold."""
    instance, optimum = hard
    assert back_end().exact
    solver = back_end(relative_gap=0.2)
    assert not solver.exact
    plan = solver.solve(instance, time_limit_s=20.0)
    verify(instance, plan)
    assert plan.value >= 0.75 * optimum
    assert plan.bound >= optimum - 1e-9


@pytest.mark.parametrize("back_end", [CpSat, MipScip, LpRounding, PulpCbc, PulpHighs, Highs])
def test_presolve_changes_nothing_but_time(back_end):
    """With and without presolve the value, or for the heuristic the bound, is the same."""
    instance = read(REFERENCE[1])
    plans = [back_end(presolve=presolve).solve(instance) for presolve in (False, True)]
    assert plans[0].bound == pytest.approx(plans[1].bound, rel=1e-6)


@pytest.mark.parametrize("back_end", [CpSat, PulpCbc, PulpHighs])
def test_threads_and_seeds_are_taken(back_end):
    """Two threads and another seed reach the same optimum; nonsense is refused."""
    instance = read(REFERENCE[0])
    plan = back_end(threads=2, seed=7).solve(instance)
    verify(instance, plan)
    assert plan.value == pytest.approx(REFERENCE[0]["optimum"], abs=1e-6)
    with pytest.raises(ValueError, match="threads = 0 not understood"):
        back_end(threads=0)
    with pytest.raises(ValueError, match="seed = -1 not understood"):
        back_end(seed=-1)


@pytest.mark.parametrize(
    ("back_end", "module", "requirement"),
    [
        (CpSat, "ortools.sat.python.cp_model", "ortools>=9.12,<10"),
        (MipScip, "ortools.linear_solver.python.model_builder_helper", "ortools>=9.12,<10"),
        (LpRounding, "ortools.linear_solver.python.model_builder_helper", "ortools>=9.12,<10"),
        (KnapsackOrtools, "ortools.algorithms.python.knapsack_solver", "ortools>=9.12,<10"),
        (PulpCbc, "pulp", "pulp>=3.3,<4"),
        (PulpHighs, "highsbox", "highsbox>=1.8"),
    ],
)
def test_missing_back_end(back_end, module, requirement, monkeypatch):
    """A back-end that isn't installed is named by the constructor, with what to install."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"{module} .*pip install '{requirement}'"):
        back_end()


def test_gains_of_any_magnitude():
    """Scaling holds the optimum where gains are tiny, huge, or both."""
    weights = np.array([5, 4, 3, 2, 2])
    for factor in (1e-3, 1e9):
        table = GainTable(factor * np.array([[5.0, 4.1, 3.0, 1.9, 1.8]]), 3)
        instance = Instance(weights, 9, 3, 3, table)
        for back_end in (CpSat, MipScip, KnapsackOrtools, PulpCbc, Highs):
            plan = back_end().solve(instance)
            verify(instance, plan)
            assert plan.value == pytest.approx(factor * 9.1, rel=1e-9), back_end


def test_weights_beyond_a_feasibility_tolerance():
    """A token too many is seen even where it is a millionth of the capacity."""
    weights = np.array([10**9, 10**9 + 1, 10**9 + 3, 10**9 + 7])
    table = GainTable([[1.0, 1.1, 1.2, 1.3]], 3)
    for capacity, optimum in ((3 * 10**9 + 10, 3.5), (3 * 10**9 + 9, 3.4), (3 * 10**9 + 3, 2.5)):
        instance = Instance(weights, capacity, 3, 3, table)
        for back_end in (CpSat, MipScip, LpRounding, KnapsackOrtools, PulpCbc, PulpHighs, Highs):
            plan = back_end().solve(instance)
            verify(instance, plan)
            assert plan.value <= optimum + 1e-9, back_end
            assert plan.bound >= optimum - 1e-9, back_end
            if back_end in (CpSat, KnapsackOrtools):
                assert plan.value == pytest.approx(optimum), back_end


def test_lp_bound_is_the_price_bound(hard):
    """GLOP's prices prove what the prices of solvers.prices prove, to rounding."""
    instance, _ = hard
    one = Instance(instance.weights, instance.capacity, 20, 20, instance.gains)
    plan = LpRounding().solve(one)
    best, _, _ = dual_bound(instance.gains(20), instance.weights, instance.capacity, 20)
    assert plan.bound == pytest.approx(best, rel=1e-9)


def test_knapsack_solver_stops_at_its_own_limit():
    """Without a limit the default one applies, and the prices supply the bound."""
    solver = KnapsackOrtools(default_time_limit_s=0.1)
    instance = large_instance(200)
    started = time.perf_counter()
    plan = solver.solve(instance)
    assert time.perf_counter() - started < 1.1
    verify(instance, plan)
    assert math.isfinite(plan.bound)
    with pytest.raises(ValueError, match="default_time_limit_s = 0 <= 0 not understood"):
        KnapsackOrtools(default_time_limit_s=0)


def test_cbc_never_gets_the_seed_it_reads_as_the_time_of_day(monkeypatch):
    """Seed 0 reaches CBC as another number: its own 0 means a different run every second."""
    pulp = pulp_family._import_pulp()  # noqa: SLF001
    seen = []
    real = pulp.COIN_CMD

    def spy(**options):
        seen.extend(options["options"])
        return real(**options)

    monkeypatch.setattr(pulp, "COIN_CMD", spy)
    PulpCbc(seed=0).solve(read(REFERENCE[0]))
    assert "randomSeed 1" in seen
    assert "randomCbcSeed 1" in seen


def test_a_time_limit_is_not_taken_for_optimality(monkeypatch):
    """PuLP calls a stopped search optimal in ``status``; ``sol_status`` and the log count."""
    pulp = pulp_family._import_pulp()  # noqa: SLF001
    instance = Instance(np.array([6, 4, 4]), 8, 2, 2, GainTable([[1.5, 1.0, 1.0]], 2))

    class Stopped(pulp.LpSolver):
        """Finds the first request and says that it ran out of time."""

        path = "stopped"

        def __init__(self, *, logPath, **_):
            super().__init__()
            self.log = Path(logPath)

        def actualSolve(self, problem, **_):
            problem.assignVarsVals({v.name: float(v.name == "x0") for v in problem.variables()})
            problem.assignStatus(pulp.LpStatusOptimal, pulp.LpSolutionIntegerFeasible)
            self.log.write_text("Result - Stopped on time limit\nUpper bound:      14000.5\n")
            return pulp.LpStatusOptimal

    monkeypatch.setattr(pulp, "COIN_CMD", Stopped)
    plan = PulpCbc().solve(instance, time_limit_s=5.0)
    verify(instance, plan)
    assert plan.value == 1.5
    assert plan.status is Status.FEASIBLE
    assert plan.bound >= 2.0  # the true optimum: the price bound, not the incumbent


@pytest.mark.parametrize("back_end", [PulpCbc, PulpHighs])
def test_temporary_files_never_stay(back_end, tmp_path, monkeypatch):
    """PuLP's files live in a folder of their own, gone after a solve and after a failure."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = os.environ.get("LD_LIBRARY_PATH")
    instance = read(REFERENCE[0])
    solver = back_end()
    solver.solve(instance)
    assert not list(tmp_path.iterdir())
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(solver, "_executable", str(broken))
    with pytest.raises(RuntimeError, match="broken failed on a model"):
        solver.solve(instance)
    assert list(tmp_path.iterdir()) == [broken]
    assert os.environ.get("LD_LIBRARY_PATH") == before


def test_pulp_does_not_pull_in_highspy(tmp_path):
    """PuLP imports highspy where it can; it must not, lest OR-Tools crash in the same process."""
    (tmp_path / "highspy.py").write_text("raise SystemExit('highspy was imported')\n")
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from solvers.pulp_family import PulpCbc\n"
        "PulpCbc()\n"
        "assert 'pulp' in sys.modules and 'highspy' not in sys.modules\n"
        "try:\n"
        "    import highspy\n"
        "except SystemExit:\n"
        "    print('still there for others')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        check=True,
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "still there for others"


def test_ctrl_c_is_not_taken_for_a_time_limit():
    """
    SIGINT in the middle of a solve interrupts the caller (a bug once: CP-SAT took the signal,
    and the plan it had so far was used as if nothing had happened).
    """
    instance = families.make("subset_sum", 100, 0)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        CpSat().solve(instance, time_limit_s=3.0)
    timer.join()


def test_extreme_gains_are_no_crash():
    """
    A cutoff far larger than a step's gains is no number to scale by.

    A regression test: CP-SAT's objective floor was out of a float's range.
    """
    gains = GainTable(np.array([[-1e10, -1e10], [1e-300, 1e-300]]), 1)
    instance = Instance(np.ones(2, dtype=np.int64), 2, 1, 2, gains, exactly=True)
    for kind in (CpSat, Highs, MipScip):
        plan = kind().solve(instance)
        verify(instance, plan)
        assert plan.value >= 0.0


def test_pulp_needs_a_folder_without_blanks(tmp_path, monkeypatch):
    """PuLP splits CBC's command at blanks; a sentence says so."""
    folder = tmp_path / "a b"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with pytest.raises(RuntimeError, match="without a blank"):
        PulpCbc().solve(large_instance(12))
    assert not list(folder.iterdir())


def test_threads_put_the_library_path_back(monkeypatch):
    """Solves in several threads leave the environment as it was."""
    monkeypatch.setenv("LD_LIBRARY_PATH", "before")
    threads = [
        threading.Thread(target=lambda: PulpHighs().solve(large_instance(8))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert os.environ["LD_LIBRARY_PATH"] == "before"
