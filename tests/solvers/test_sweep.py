"""The sweep over batch sizes: bounds over all of them, few visits, honest at every limit."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andes_opt.formulation import most_that_fit
from andes_opt.instance import GainTable, Instance
from andes_opt.plan import Status, verify
from andes_opt.testing import KINDS, enumerate_optimum, large_instance, random_instance
from solvers.dp import DP
from solvers.sweep import (
    Outcome,
    batch_range,
    best_size,
    sweep,
    sweep_together,
    upper_bound,
)

random_cases = given(st.integers(0, 2**32), st.sampled_from(KINDS), st.booleans())


class Enumeration:
    """A solver for one batch size that tries everything and remembers its calls."""

    def __init__(self, instance):
        self.instance = instance
        self.calls = []

    def __call__(self, batch_size, gains, cutoff, time_left_s):
        self.calls.append((batch_size, cutoff, time_left_s))
        n = self.instance.num_requests
        selections = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        counts = selections.sum(axis=1)
        fits = selections @ self.instance.weights <= self.instance.capacity
        fits &= counts == batch_size if self.instance.exactly else counts <= batch_size
        assert fits.any(), "an infeasible batch size was asked"
        values = np.where(fits, selections @ gains, -np.inf)
        best = int(values.argmax())
        return Outcome(selections[best].astype(bool), float(values[best]), info={"calls": 1})


def one_size(batch_size, rows, weights=(1, 1), capacity=2, **options):
    """An instance with one batch size, or a range from 1 on."""
    return Instance(np.array(weights), capacity, 1, batch_size, GainTable(rows, 1), **options)


@settings(max_examples=60, deadline=None)
@random_cases
def test_sweep_finds_the_optimum(seed, kind, exactly):
    """With an exact solver for one batch size the sweep is exact, whatever the gains."""
    instance = random_instance(seed, kind=kind, exactly=exactly)
    plan = sweep(instance, Enumeration(instance))
    verify(instance, plan)
    optimum = enumerate_optimum(instance)
    if optimum == -math.inf:
        assert plan.status is Status.NO_SOLUTION
        assert plan.bound == -math.inf
    else:
        assert plan.status is Status.OPTIMAL
        assert plan.value == pytest.approx(optimum, rel=1e-12, abs=1e-12)


@settings(max_examples=60, deadline=None)
@random_cases
def test_bound_covers_sizes_that_nobody_solved(seed, kind, exactly):
    """A solver that finds and proves nothing still gets a valid bound over all sizes."""
    instance = random_instance(seed, kind=kind, exactly=exactly)
    optimum = enumerate_optimum(instance)
    for limit_s in (None, 0.0):
        plan = sweep(instance, lambda *_: Outcome(None, math.inf), time_limit_s=limit_s)
        verify(instance, plan)
        assert plan.bound >= optimum - 1e-12
    if optimum > -math.inf:
        bound = upper_bound(instance)
        assert bound >= optimum - 1e-12
        assert upper_bound(instance, above=optimum) >= optimum - 1e-12
        assert plan.bound >= bound - 1e-12


@settings(max_examples=30, deadline=None)
@random_cases
def test_together_finds_the_same(seed, kind, exactly):
    """Asking for three batch sizes at once changes neither value nor bound."""
    instance = random_instance(seed, kind=kind, exactly=exactly)
    solve_one = Enumeration(instance)
    widths = []

    def solve_many(batch_sizes, gains, cutoff, time_left_s):
        widths.append(len(batch_sizes))
        assert gains.shape == (len(batch_sizes), instance.num_requests)
        return [
            solve_one(size, row, cutoff, time_left_s)
            for size, row in zip(batch_sizes, gains, strict=True)
        ]

    plan = sweep_together(instance, solve_many, width=3)
    verify(instance, plan)
    assert max(widths, default=0) <= 3
    assert plan.value == pytest.approx(enumerate_optimum(instance), rel=1e-12, abs=1e-12)


def test_few_sizes_are_visited():
    """On a large monotone instance nearly all batch sizes are pruned by their bounds."""
    instance = large_instance(60)
    plan = DP().solve(instance)
    verify(instance, plan)
    assert plan.status is Status.OPTIMAL
    assert plan.info["batch_sizes_examined"] <= 6 < instance.max_batch
    assert plan.info["ranges_bounded"] < instance.max_batch


def test_sizes_come_by_decreasing_bound():
    """The most promising batch size is visited first, and the incumbent is the next cutoff."""
    instance = one_size(3, [[1, 1], [5, 5], [3, 3]])
    solve_one = Enumeration(instance)
    plan = sweep(instance, solve_one)
    assert (plan.batch_size, plan.value) == (2, 10.0)
    assert solve_one.calls == [(2, 0.0, None)]
    assert plan.info["calls"] == plan.info["batch_sizes_examined"] == 1


def test_smaller_batch_is_credited():
    """A selection that leaves slots empty counts at the smallest batch that holds it."""
    instance = one_size(2, [[4, 1], [3, -1]])
    serve = np.array([True, False])
    assert best_size(instance, serve, 2, instance.gains_at(2)) == (1, 4.0)
    plan = sweep(instance, lambda *_: Outcome(serve, math.inf))
    assert (plan.batch_size, plan.value) == (1, 4.0)


@pytest.mark.parametrize(
    "serve", [np.array([True, True]), np.array([True]), np.array([False, False])]
)
def test_wrong_selections_are_dropped(serve):
    """A selection that breaks a constraint is counted and never becomes the plan."""
    instance = Instance(np.array([3, 4]), 4, 1, 1, GainTable([[1.0, 2.0]], 1), exactly=True)
    plan = sweep(instance, lambda *_: Outcome(serve, 2.0))
    verify(instance, plan)
    assert plan.value == 1.0  # the lightest request: the incumbent to begin with
    assert plan.info["rejected"] == 1


def test_bound_below_a_found_value_is_not_believed():
    """A back-end whose bound contradicts its own selection doesn't make a wrong plan."""
    instance = one_size(1, [[1, 2]])
    plan = sweep(instance, lambda *_: Outcome(np.array([False, True]), 0.5))
    verify(instance, plan)
    assert plan.bound == plan.value == 2.0


def test_infeasible_exactly_is_proven_without_a_visit():
    """Whether any batch size is feasible is known from the lightest requests alone."""
    for batches in ((3, 3), (2, 2)):
        instance = Instance(
            np.array([5, 6]), 10, *batches, GainTable(np.ones((1, 2)), batches[0]), exactly=True
        )
        solve_one = Enumeration(instance)
        plan = sweep(instance, solve_one, time_limit_s=0.0)
        verify(instance, plan)
        assert plan.status is Status.NO_SOLUTION
        assert plan.bound == -math.inf
        assert solve_one.calls == []


def test_feasible_exactly_always_has_a_plan():
    """Out of time before the first visit, the lightest requests are served."""
    instance = Instance(
        np.array([9, 2, 3]), 6, 2, 2, GainTable([[9.0, -1.0, -2.0]], 2), exactly=True
    )
    plan = sweep(instance, Enumeration(instance), time_limit_s=0.0)
    verify(instance, plan)
    assert plan.serve.tolist() == [False, True, True]
    assert plan.status is Status.FEASIBLE
    assert plan.value == -3.0 <= plan.bound


def test_time_limit_is_shared_and_kept():
    """Back-ends are told the time left, never 0, and no visit starts after the limit."""
    # Bounds that never settle anything: without a limit all 40 sizes would be visited.
    instance = one_size(40, np.add.outer(np.arange(40) % 7, [1.0, 2.0]))
    left = []

    def slow(batch_size, gains, cutoff, time_left_s):
        left.append(time_left_s)
        time.sleep(0.02)
        return Outcome(None, math.inf)

    started = time.perf_counter()
    plan = sweep(instance, slow, time_limit_s=0.1)
    assert time.perf_counter() - started < 0.5
    assert 1 <= len(left) < 40
    assert all(0 < after < before <= 0.1 for before, after in itertools.pairwise(left))
    assert plan.bound >= 15.0
    assert plan.status is Status.FEASIBLE


def test_larger_batches_than_requests():
    """With monotone gains no size beyond n is visited; without, each may be the best."""
    falling = one_size(9, [[2.0, 2.0]] * 9)
    assert batch_range(falling, most_that_fit(falling.weights, falling.capacity)) == (1, 2)
    rising = one_size(9, [[1.0, 1.0]] * 8 + [[7.0, 7.0]])
    solve_one = Enumeration(rising)
    plan = sweep(rising, solve_one)
    verify(rising, plan)
    assert (plan.batch_size, plan.value) == (9, 14.0)


def test_times_and_numbers_add_up():
    """Building, solving and the back-end's numbers are summed over the visits."""
    instance = one_size(3, [[1, 1], [2, 2], [3, 3]])

    def solve_one(*_):
        return Outcome(None, math.inf, build_s=1.0, solve_s=10.0, info={"nodes": 100})

    plan = sweep(instance, solve_one)
    assert plan.info["batch_sizes_examined"] == 3
    assert plan.info["nodes"] == 300
    assert plan.build_s == 3.0
    assert plan.solve_s == pytest.approx(30.0 + plan.info["pricing_s"])
