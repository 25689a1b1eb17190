"""One batch size as a knapsack: what back-ends get, and how their answers are taken."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andes_opt.instance import GainTable, Instance
from andes_opt.plan import TOLERANCE, Status, verify
from andes_opt.testing import KINDS, enumerate_optimum, random_instance
from solvers.knapsack import Answer, Knapsack, at_batch_size, rounded, sweep_knapsacks


def knapsack(profits, weights, capacity, slots, *, exactly=False):
    """A knapsack over requests 0, 1, ..."""
    return Knapsack(
        np.arange(len(profits)),
        np.array(profits, dtype=np.float64),
        np.array(weights, dtype=np.int64),
        capacity,
        slots,
        exactly,
    )


def fits(problem, chosen):
    """Whether a selection respects memory and slots."""
    count = int(chosen.sum())
    slots = count == problem.slots if problem.exactly else count <= problem.slots
    return slots and int(problem.weights[chosen].sum()) <= problem.capacity


def test_useless_requests_are_left_out():
    """Requests that don't fit, and those without a gain unless forced, never reach a back-end."""
    table = GainTable([[1.0, 5.0, -2.0, 0.0]], 3)
    weights = np.array([2, 11, 1, 1])
    problem = at_batch_size(Instance(weights, 10, 3, 3, table), 3, table(3))
    assert problem.requests.tolist() == [0]
    assert problem.slots == 1
    forced = at_batch_size(Instance(weights, 10, 3, 3, table, exactly=True), 3, table(3))
    assert forced.requests.tolist() == [0, 2, 3]
    assert forced.slots == 3


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_rounding_is_always_feasible(seed, exactly):
    """Whatever a back-end answers, fractions, overfull, negative, the selection is feasible."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 12))
    weights = rng.integers(1, 30, n)
    slots = int(rng.integers(1, n + 1))
    lightest = int(np.sort(weights)[:slots].sum())
    capacity = int(rng.integers(lightest if exactly else weights.min(), weights.sum() + 1))
    profits = rng.normal(size=n) if exactly else rng.uniform(0.01, 1.0, n)
    problem = knapsack(profits, weights, capacity, slots, exactly=exactly)
    for values in (rng.uniform(-0.1, 1.1, n), np.ones(n), np.zeros(n)):
        assert fits(problem, rounded(problem, values))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_integer_answers_survive_their_tolerance(seed, exactly):
    """A feasible 0-1 answer that is off by 1e-6 everywhere comes back, at most with additions."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 12))
    weights = rng.integers(1, 30, n)
    slots = int(rng.integers(1, n + 1))
    chosen = np.zeros(n, dtype=bool)
    chosen[rng.permutation(n)[:slots]] = True
    profits = rng.normal(size=n) if exactly else rng.uniform(0.01, 1.0, n)
    problem = knapsack(profits, weights, int(weights[chosen].sum()), slots, exactly=exactly)
    answer = rounded(problem, chosen + rng.uniform(-1e-6, 1e-6, n))
    assert (answer >= chosen).all()
    assert not exactly or (answer == chosen).all()


def test_rounding_prefers_larger_values_then_density():
    """Whole requests stay, and the rest is filled by gain per token."""
    problem = knapsack([1.0, 9.0, 2.0, 4.0], [5, 6, 2, 8], 13, 4)
    assert rounded(problem, np.array([1.0, 0.0, 0.0, 0.0])).tolist() == [True, True, True, False]
    assert rounded(problem, np.array([0.0, 0.0, 0.0, 1.0])).tolist() == [False, False, True, True]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(KINDS), st.booleans())
def test_a_back_end_that_lies_does_no_harm(seed, kind, exactly):
    """Answers that take everybody are repaired; the plan stays valid and below the optimum."""
    instance = random_instance(seed, kind=kind, exactly=exactly)
    plan = sweep_knapsacks(
        instance,
        lambda problem, cutoff, time_left_s: Answer(np.ones(problem.size), math.inf),
        tolerance=TOLERANCE,
        time_limit_s=None,
    )
    verify(instance, plan)
    optimum = enumerate_optimum(instance)
    if optimum == -math.inf:
        assert plan.status is Status.NO_SOLUTION
    else:
        assert plan.value <= optimum + 1e-9 <= plan.bound + 2e-9
        assert plan.info.get("rejected", 0) == 0


def test_repairs_are_counted():
    """An overfull answer shows in ``repaired``."""
    instance = Instance(np.array([6, 6]), 10, 2, 2, GainTable([[1.0, 2.0]], 2))
    plan = sweep_knapsacks(
        instance, lambda *_: Answer(np.ones(2), 2.0), tolerance=TOLERANCE, time_limit_s=None
    )
    assert plan.value == 2.0
    assert plan.info["repaired"] == 1
    assert plan.info["unanswered"] == 0


def test_no_answer_still_yields_an_incumbent():
    """A back-end out of time is replaced by packing; the plan says so and claims nothing."""
    instance = Instance(np.array([6, 6, 3]), 10, 3, 3, GainTable([[1.0, 2.0, 0.5]], 3))
    plan = sweep_knapsacks(
        instance, lambda *_: Answer(None, math.inf), tolerance=TOLERANCE, time_limit_s=1.0
    )
    verify(instance, plan)
    assert plan.value == 2.5
    assert plan.info["unanswered"] == 1
    assert plan.bound >= 2.5


def test_a_refuted_batch_size_needs_no_answer():
    """A back-end that proves the cutoff is not asked for a selection, and nothing is made up."""
    gains = GainTable([[1.0, 1.0], [0.9, 0.8]], 1)
    instance = Instance(np.array([6, 6]), 11, 1, 2, gains)
    asked = []

    def pack(problem, cutoff, time_left_s):
        asked.append(cutoff)
        if cutoff < 0.99:
            return Answer(np.array([1.0, 0.0]), 1.0)
        return Answer(None, cutoff)

    plan = sweep_knapsacks(instance, pack, tolerance=TOLERANCE, time_limit_s=None)
    verify(instance, plan)
    assert plan.value == pytest.approx(1.0)
    assert plan.info["unanswered"] == 0


def test_times_are_summed():
    """Building and solving are told apart, and the numbers of a back-end are added up."""
    instance = Instance(np.array([6, 6]), 12, 2, 2, GainTable([[1.0, 2.0]], 2))
    plan = sweep_knapsacks(
        instance,
        lambda *_: Answer(np.ones(2), 3.0, 5.0, 7.0, {"nodes": 4}),
        tolerance=TOLERANCE,
        time_limit_s=None,
    )
    assert 5.0 <= plan.build_s < 6.0
    assert 7.0 <= plan.solve_s < 8.0
    assert plan.info["nodes"] == 4
