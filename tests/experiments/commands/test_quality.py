"""The solver comparison: gaps, references, refusals, contradictions."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from numba import njit

from andes_opt.instance import GainTable, Instance
from andes_opt.plan import InvalidPlan, Plan, Status, make_plan
from experiments.runs.columns import QUALITY_COLUMNS
from experiments.solver_comparison import compare
from experiments.solver_comparison.instances import InstanceRecorder, NamedInstance, generated


class Fixed:
    """Serves the requests it was told to."""

    exact = False

    def __init__(self, serve, bound=math.inf):
        self.serve, self.bound = np.array(serve, dtype=bool), bound

    def solve(self, instance, *, time_limit_s=None):
        return make_plan(instance, self.serve, instance.max_batch, bound=self.bound)


class Refusing:
    """Takes no instance at all."""

    exact = True

    def solve(self, instance, *, time_limit_s=None):
        raise ValueError("n = 3 is too many.")


class Compiling(Fixed):
    """Compiles in its first two calls, or in all, and counts them."""

    def __init__(self, compiling_calls):
        super().__init__([0, 1, 1], bound=5.0)
        self.compiling_calls, self.calls = compiling_calls, 0

    def solve(self, instance, *, time_limit_s=None):
        self.calls += 1
        if self.calls <= self.compiling_calls:
            njit(lambda x: x + 1)(1)
        return super().solve(instance)


class Lying:
    """States a value that its gains do not have."""

    exact = True

    def solve(self, instance, *, time_limit_s=None):
        return Plan(np.zeros(3, dtype=bool), 1, 5.0, 5.0, Status.OPTIMAL, 0.0, 0.0)


@pytest.fixture
def problem():
    """Three requests, room for two; the optimum is 5."""
    gains = GainTable([[1.0, 2.0, 3.0]], first_batch=2)
    return NamedInstance("test", "three", Instance(np.array([1, 1, 1]), 2, 2, 2, gains))


def rows_by_solver(problem, **solvers):
    """Rows of one comparison on one instance."""
    rows = compare.compare([problem], solvers, time_limit_s=None)
    return {row["solver"]: row for row in rows}


def test_gaps_are_to_the_certified_optimum(problem):
    """A worse plan's gap is the share of the optimum that it misses."""
    rows = rows_by_solver(problem, best=Fixed([0, 1, 1], bound=5.0), worse=Fixed([1, 1, 0]))
    assert rows["best"]["certified"]
    assert not rows["worse"]["certified"]
    assert rows["best"]["gap_percent"] == 0
    assert rows["worse"]["gap_percent"] == pytest.approx(40)
    assert rows["worse"]["reference_certified"]


def test_the_exact_solver_is_asked_if_nobody_certifies(problem):
    """Heuristics alone are still compared with the optimum."""
    rows = rows_by_solver(problem, worse=Fixed([1, 1, 0]))
    assert rows["worse"]["reference"] == pytest.approx(5)
    assert rows["worse"]["reference_certified"]


def test_a_refusal_is_a_row(problem):
    """A solver whose limit the instance exceeds is counted, not fatal."""
    rows = rows_by_solver(problem, no=Refusing(), best=Fixed([0, 1, 1], bound=5.0))
    assert rows["no"]["status"] == "refused"
    assert "too many" in rows["no"]["note"]
    table = compare.table(compare.as_rows(list(rows.values())))
    assert table.filter(pl.col("solver") == "no")["refused"].item() == 1


def test_every_plan_is_verified(problem):
    """A plan with a false value stops the comparison."""
    with pytest.raises(InvalidPlan):
        rows_by_solver(problem, liar=Lying())


def test_contradictions_are_counted(problem):
    """A value above another solver's proven bound can't be: one of them is wrong."""
    rows = rows_by_solver(
        problem, wrong_bound=Fixed([1, 1, 0], bound=3.0), best=Fixed([0, 1, 1], bound=5.0)
    )
    assert compare.contradictions(list(rows.values())) == 1
    rows = rows_by_solver(problem, best=Fixed([0, 1, 1], bound=5.0))
    assert compare.contradictions(list(rows.values())) == 0


def test_rows_have_every_documented_column(problem):
    """Each column of the schema is filled by the comparison."""
    rows = rows_by_solver(problem, best=Fixed([0, 1, 1], bound=5.0))
    assert set(QUALITY_COLUMNS) | {"solver"} == set(rows["best"])


@pytest.mark.parametrize(("compiling_calls", "calls"), [(0, 1), (2, 3), (99, 4)])
def test_calls_that_compiled_are_not_timed(problem, compiling_calls, calls):
    """The time of a call is that of one without compilation, if there ever is one."""
    solver = Compiling(compiling_calls)
    compare.ask("x", solver, problem.instance, None, 1)
    assert solver.calls == calls


@pytest.mark.parametrize(
    ("value", "reference", "gap"),
    [
        (4.0, 5.0, 20.0),
        (5.0, 5.0, 0.0),
        (5.0 + 1e-9, 5.0, 0.0),
        (0.0, 0.0, 0.0),
        (-math.inf, -math.inf, 0.0),
        (-math.inf, 3.0, 100.0),
        (-6.0, -5.0, 20.0),
    ],
)
def test_gap_percent(value, reference, gap):
    """The gap is relative to the reference; no plan at all counts as 100 %."""
    assert compare.gap_percent(value, reference) == pytest.approx(gap)


@pytest.mark.parametrize("count", [1, 5, 6, 11, 12, 100])
def test_the_recorder_keeps_an_even_sample(problem, count):
    """Whatever the length of the run, the sample spreads over all of it."""
    recorder = InstanceRecorder(Fixed([0, 1, 1]), wanted=6)
    for _ in range(count):
        recorder.solve(problem.instance)
    numbers = [number for number, _ in recorder.sample()]
    assert len(numbers) == min(count, 6)
    assert numbers[0] == 0
    assert numbers[-1] >= count * 0.6 - 1
    gaps = np.diff(numbers)
    assert gaps.size == 0 or gaps.max() <= 2 * gaps.min() + 1


@pytest.mark.parametrize("names", [("greedy", "exact", "cp_sat"), ("cp_sat", "exact", "greedy")])
def test_equal_solvers_stand_as_they_were_named(names):
    """
    Solvers of the same gap do not change places from run to run.

    A regression test: they were ordered by their times.
    """
    rows = compare.as_rows(
        compare.compare(
            generated(["hard"], [8], 1, 0), compare.build_solvers(list(names)), time_limit_s=None
        ),
        command="quality",
    )
    equal = [name for name in names if name != "greedy"]
    assert [name for name in compare.table(rows)["solver"] if name != "greedy"] == equal
