"""Isolation: whatever happens to the worker, a valid plan comes back in time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from andes_opt.instance import GainTable, Instance
from andes_opt.plan import Status, verify
from andes_opt.solver import Solver
from andes_opt.testing import CHECKS, large_instance
from solvers.greedy import GreedySkip
from solvers.isolated import Isolated

ROOT = Path(__file__).parents[2]
SANE = Instance(np.array([4, 5, 6]), 14, 1, 2, GainTable([[3.0, 2.0, 1.0], [2.0, 1.5, 1.0]], 1))
FATAL = Instance(np.array([4, 5, 6]), 13, 1, 2, GainTable([[3.0, 2.0, 1.0], [2.0, 1.5, 1.0]], 1))
BEST = 3.5  # of the fallback on both


@pytest.fixture(autouse=True)
def third_party(monkeypatch):
    """Workers find the module ``misbehaving`` where this process does."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.fixture
def isolated():
    """Makes isolated solvers that misbehave, and ends their workers afterwards."""
    made = []

    def make(how="nothing", **options):
        described = {"_target_": "misbehaving.Misbehaving", "how": how}
        made.append(Isolated(described, GreedySkip(), **options))
        return made[-1]

    yield make
    for solver in made:
        solver.close()


def alive(pid):
    """Whether a process exists and is more than a zombie."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def wait_until(condition, seconds=10.0):
    """Wait for something that happens in another process."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def solve_again(solver, instance=SANE):
    """Solve until the restarted worker answers."""
    plans = []

    def answered():
        plans.append(solver.solve(instance, time_limit_s=1.0))
        return not plans[-1].info["fallback"]

    wait_until(answered)
    return plans[-1]


def test_plans_pass_through(isolated):
    """A well-behaved worker's plan is the plan, and nothing is counted."""
    solver = isolated()
    assert isinstance(solver, Solver)
    assert solver.exact is False
    for limit_s in (None, 5.0):
        plan = solver.solve(FATAL, time_limit_s=limit_s)
        verify(FATAL, plan)
        assert plan.bound == 99.0
        assert plan.info["fallback"] == 0.0
    assert solver.fallbacks == solver.restarts == 0
    assert solver.last_failure is None


def test_a_real_solver_conforms():
    """An isolated exact solver passes the checks that the solver itself passes."""
    solver = Isolated("solvers.cp_sat.CpSat")
    assert solver.exact
    for check in ("contract", "cases", "lazy gains", "leaves the instance alone"):
        CHECKS[check](lambda: solver)
    assert solver.fallbacks == 0
    solver.close()


def test_highs_and_or_tools_side_by_side():
    """The worker loads HiGHS while this process has OR-Tools loaded, and they agree."""
    from solvers.cp_sat import CpSat

    instance = large_instance(20)
    here = CpSat().solve(instance)
    solver = Isolated({"_target_": "solvers.highs.Highs", "presolve": True})
    there = solver.solve(instance)
    solver.close()
    assert there.info["fallback"] == 0.0
    assert there.status is here.status is Status.OPTIMAL
    assert there.value == pytest.approx(here.value, rel=1e-6)


@pytest.mark.parametrize(
    ("how", "kind", "sentence"),
    [
        ("throw", "error", "ZeroDivisionError: a back-end fell over"),
        ("lie", "invalid", "needs 15 KV tokens of 13"),
        ("babble", "invalid", "AttributeError"),
        ("allocate", "out_of_memory", "MemoryError"),
    ],
)
def test_failures_that_the_worker_survives(isolated, how, kind, sentence):
    """An exception, an invalid plan, too much memory: the fallback answers, the worker stays."""
    solver = isolated(how, memory_limit_mb=500)
    before = solver.worker_pid
    plan = solver.solve(FATAL)
    verify(FATAL, plan)
    assert plan.value == BEST
    assert plan.info["fallback"] == 1.0
    assert solver.failures == {kind: 1}
    assert sentence in solver.last_failure
    assert solver.solve(SANE).info["fallback"] == 0.0
    assert solver.worker_pid == before
    assert solver.fallbacks == 1
    assert solver.restarts == 0


def test_a_crash_costs_one_call(isolated):
    """A worker that dies is replaced: one call gets the fallback's plan, later ones its own."""
    solver = isolated("die")
    before = solver.worker_pid
    plan = solver.solve(FATAL)
    verify(FATAL, plan)
    assert plan.value == BEST
    assert solver.failures == {"crash": 1}
    assert f"exit status {-signal.SIGSEGV}" in solver.last_failure
    assert not alive(before)
    assert solve_again(solver).bound == 99.0
    assert solver.restarts == 1
    assert solver.worker_pid != before


def test_a_worker_killed_in_the_middle(isolated):
    """SIGKILL while it solves, without any time limit: the fallback's plan comes at once."""
    solver = isolated("hang")
    killed = []

    def kill():
        killed.append(solver.worker_pid)
        os.kill(solver.worker_pid, signal.SIGKILL)

    killer = threading.Timer(0.3, kill)
    killer.start()
    plan = solver.solve(FATAL)
    killer.join()
    verify(FATAL, plan)
    assert plan.value == BEST
    assert solver.failures == {"crash": 1}
    assert not alive(killed[0])
    assert solve_again(solver).bound == 99.0


@pytest.mark.parametrize("how", ["hang", "hang in native code"])
def test_a_hang_meets_the_deadline(isolated, how):
    """A solver that ignores its limit is killed; the plan comes within 20 % + 5 ms, and change."""
    solver = isolated(how, deadline_s=0.2)
    solver.solve(SANE)  # the fallback is compiled, the worker warm
    before = solver.worker_pid
    for limit_s in (None, 5.0):  # the shorter of the two limits counts
        started = time.perf_counter()
        plan = solver.solve(FATAL, time_limit_s=limit_s)
        assert 0.2 <= time.perf_counter() - started < 1.0
        verify(FATAL, plan)
        assert plan.value == BEST
        assert solver.failures["deadline"] >= 1
        assert not alive(before)
        before = solver.worker_pid
        solve_again(solver)
    assert plan.info["fallback"] == 1.0


def test_while_the_worker_starts_the_fallback_serves(isolated):
    """Right after a crash there is no waiting for the new worker under a short limit."""
    solver = isolated("die")
    solver.solve(FATAL)
    started = time.perf_counter()
    plan = solver.solve(SANE, time_limit_s=0.02)
    assert time.perf_counter() - started < 0.5
    verify(SANE, plan)
    assert plan.info["fallback"] == 1.0
    assert solver.failures == {"crash": 1, "starting": 1}


def test_a_solver_that_keeps_dying_is_given_pauses(isolated):
    """Crash after crash does not turn into worker after worker."""
    solver = isolated("die")
    solver.solve(FATAL)
    wait_until(lambda: solver.solve(FATAL) and solver.failures["crash"] == 2)
    restarts = solver.restarts
    plan = solver.solve(FATAL)
    verify(FATAL, plan)
    assert solver.failures["starting"] >= 1
    assert "left alone" in solver.last_failure
    assert solver.restarts == restarts
    assert solver.worker_pid is None


class Unpicklable:
    """A gain model that holds a function."""

    monotone = True
    concave_in_rate = True

    def __init__(self):
        self.rows = lambda batch_size: np.array([3.0, 2.0, 1.0]) / batch_size

    def __call__(self, batch_size):
        return self.rows(batch_size)

    def table(self, first, last):
        return np.array([self(size) for size in range(first, last + 1)])


def test_gains_that_cannot_be_pickled_go_as_numbers(isolated):
    """The worker gets the table of a gain model that holds a lambda."""
    instance = Instance(np.array([4, 5, 6]), 14, 1, 2, Unpicklable())
    plan = isolated().solve(instance)
    verify(instance, plan)
    assert plan.info["fallback"] == 0.0


def test_gains_that_the_worker_cannot_read_go_as_numbers(isolated, monkeypatch):
    """
    A gain model of the main program, whose class the worker has not got, goes as its table.

    A regression test: the worker died of it, at every call.
    """
    module = types.ModuleType("only_in_this_process")
    kind = type("Gains", (Ones,), {"__module__": module.__name__})
    module.Gains = kind
    monkeypatch.setitem(sys.modules, module.__name__, module)
    instance = Instance(np.array([4, 5, 6]), 14, 1, 2, kind())
    solver = isolated()
    for _ in range(2):
        plan = solver.solve(instance)
        verify(instance, plan)
        assert plan.info["fallback"] == 0.0
    assert solver.failures == {}
    assert solver.restarts == 0


class Ones:
    """Everybody gains 1."""

    monotone = True
    concave_in_rate = True

    def __call__(self, batch_size):
        return np.ones(3)

    def table(self, first, last):
        return np.ones((last - first + 1, 3))


def test_pauses_have_an_end_however_often_it_fails(isolated):
    """A regression test: after a thousand failures the pause itself raised OverflowError."""
    solver = isolated()
    solver._failed_in_a_row = 5000  # noqa: SLF001
    solver._replace_worker()  # noqa: SLF001
    plan = solver.solve(SANE)
    verify(SANE, plan)
    assert "left alone" in solver.last_failure


def test_large_instances_go_through(isolated):
    """Megabytes of gains, far beyond a socket's buffer, arrive whole and read-only."""
    instance = large_instance(1000)
    plan = isolated().solve(instance)
    verify(instance, plan)
    assert plan.serve.size == 1000
    assert plan.info["fallback"] == 0.0


def test_a_stopped_worker_cannot_block_the_sender(isolated):
    """A worker that no longer reads meets the deadline too, however much there is to send."""
    solver = isolated()
    instance = large_instance(1000)
    GreedySkip().solve(instance)
    os.kill(solver.worker_pid, signal.SIGSTOP)
    started = time.perf_counter()
    plan = solver.solve(instance, time_limit_s=0.2)
    assert time.perf_counter() - started < 1.5
    verify(instance, plan)
    assert solver.failures == {"deadline": 1}


@pytest.mark.parametrize(
    ("solver", "options", "error", "sentence"),
    [
        ("misbehaving", {}, ValueError, "solver = 'misbehaving' not understood"),
        ("no.such.Solver", {}, ImportError, "No module named 'no'"),
        ("misbehaving.Missing", {}, ImportError, "misbehaving has no Missing"),
        (
            {"_target_": "misbehaving.Misbehaving", "wrong": 1},
            {},
            ValueError,
            "unexpected keyword argument 'wrong'",
        ),
        (
            {"_target_": "misbehaving.Misbehaving", "how": "refuse"},
            {},
            ValueError,
            "how = 'refuse' not understood",
        ),
        (
            {"_target_": "misbehaving.Misbehaving", "how": "die on starting"},
            {},
            RuntimeError,
            r"died on starting \(exit status -9\)",
        ),
        ("misbehaving.Misbehaving", {"deadline_s": 0}, ValueError, "deadline_s = 0 <= 0"),
        ("misbehaving.Misbehaving", {"memory_limit_mb": -1}, ValueError, "memory_limit_mb = -1"),
        ("misbehaving.Misbehaving", {"startup_s": 0.01}, RuntimeError, "did not start within 0.01"),
    ],
)
def test_refused_at_construction(solver, options, error, sentence):
    """What can't work is said by the constructor, in the words of whoever refused."""
    with pytest.raises(error, match=sentence):
        Isolated(solver, **options)


def test_closing_and_collecting_end_the_worker(isolated):
    """No worker outlives its solver; a closed solver starts a new worker when it is used."""
    solver = isolated()
    first = solver.worker_pid
    solver.close()
    assert solver.worker_pid is None
    wait_until(lambda: not alive(first))
    assert solver.solve(SANE).info["fallback"] == 0.0

    other = Isolated("misbehaving.Misbehaving")
    pid = other.worker_pid
    del other
    wait_until(lambda: not alive(pid))


PARENT = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from andes_opt.instance import GainTable, Instance
from solvers.isolated import Isolated

fatal = Instance(np.array([4, 5, 6]), 13, 1, 1, GainTable([[3.0, 2.0, 1.0]], 1))
sane = Instance(np.array([4, 5, 6]), 14, 1, 1, GainTable([[3.0, 2.0, 1.0]], 1))
solver = Isolated({"_target_": "misbehaving.Misbehaving", "how": sys.argv[2]})
print(solver.worker_pid, flush=True)
if sys.argv[3] == "fork":
    parents = solver.worker_pid
    child = os.fork()
    if child == 0:  # uses a worker of its own, and leaves the parent's alone on its way out
        assert solver.solve(sane).info["fallback"] == 0.0
        assert solver.worker_pid != parents
        solver.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert solver.worker_pid == parents
    assert solver.solve(sane).info["fallback"] == 0.0
if sys.argv[3] == "killed":
    solver.solve(fatal)  # hangs; this process is killed meanwhile
"""


def run_parent(how, ending):
    """A process of its own that isolates a solver; the process and its worker's pid."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(Path(__file__).parent), how, ending],
        stdout=subprocess.PIPE,
        text=True,
    )
    return parent, int(parent.stdout.readline())


@pytest.mark.parametrize("ending", ["exit", "fork"])
def test_no_orphan_at_exit(ending):
    """A process that ends takes its worker along; a forked child neither uses nor ends it."""
    parent, worker = run_parent("nothing", ending)
    with parent:
        assert parent.wait(timeout=30) == 0
    wait_until(lambda: not alive(worker))


@pytest.mark.skipif(sys.platform != "linux", reason="relies on signals from closed pipes")
def test_no_orphan_when_the_parent_is_killed():
    """SIGKILL to the parent ends a worker too that is stuck in native code."""
    parent, worker = run_parent("hang in native code", "killed")
    with parent:
        time.sleep(0.5)
        assert alive(worker)
        parent.kill()
        parent.wait(timeout=10)
    wait_until(lambda: not alive(worker))


def test_isolation_of_the_chosen_solver():
    """``+isolation=process`` wraps whichever solver is chosen, with its options."""
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
        config = compose(
            "simulate",
            ["policy=andes", "solver=cp_sat", "solver.seed=5", "+isolation=process"],
        )
    solver = instantiate(config.policy.solver)
    assert isinstance(solver, Isolated)
    assert solver.solver == {
        "_target_": "solvers.cp_sat.CpSat",
        "threads": 1,
        "seed": 5,
        "presolve": False,
        "relative_gap": 0.0,
    }
    assert isinstance(solver.fallback, GreedySkip)
    assert solver.solve(SANE).info["fallback"] == 0.0
    solver.close()
