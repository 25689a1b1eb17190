"""Local search: never worse than greedy-skip, locally optimal, seeded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andes_opt.instance import GainTable, Instance
from andes_opt.plan import Status, verify
from andes_opt.testing import KINDS, enumerate_optimum, large_instance, random_instance
from solvers.greedy import GreedySkip
from solvers.local_search import LocalSearch


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(KINDS), st.booleans())
def test_between_greedy_and_the_optimum(seed, kind, exactly):
    """The value is at least greedy-skip's and at most the optimum; bounds hold."""
    instance = random_instance(seed, kind=kind, exactly=exactly)
    optimum = enumerate_optimum(instance)
    plan = LocalSearch(bound=True).solve(instance)
    verify(instance, plan)
    assert (plan.status is Status.NO_SOLUTION) == (optimum == -np.inf)
    assert GreedySkip().solve(instance).value <= plan.value + 1e-12
    assert plan.value <= optimum + 1e-12
    assert plan.bound >= optimum - 1e-12


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(KINDS), st.booleans())
def test_no_single_move_improves(seed, kind, exactly):
    """With one batch size, no insertion, removal or swap improves the plan."""
    wide = random_instance(seed, kind=kind, exactly=exactly)
    size = wide.min_batch
    instance = Instance(wide.weights, wide.capacity, size, size, wide.gains, exactly)
    plan = LocalSearch(kicks=0).solve(instance)
    if plan.status is Status.NO_SOLUTION:
        return
    gains = instance.gains_at(size)
    inside = np.flatnonzero(plan.serve)
    outside = np.flatnonzero(~plan.serve)
    free = instance.capacity - instance.weights[inside].sum()
    for new in outside:
        for out in inside:
            if instance.weights[new] <= free + instance.weights[out]:
                assert gains[new] <= gains[out] + 1e-9
        if not exactly and inside.size < size and instance.weights[new] <= free:
            assert gains[new] <= 1e-9
    if not exactly:
        assert (gains[inside] >= -1e-9).all()


def test_swaps_see_the_price_of_a_slot():
    """With one slot a dense small request gives way to a valuable large one."""
    instance = Instance(np.array([1, 10]), 10, 1, 1, GainTable([[1.0, 5.0]], 1))
    assert GreedySkip().solve(instance).value == 1
    assert LocalSearch(kicks=0).solve(instance).value == 5


def test_closes_most_of_greedys_gap():
    """Where slots and memory both bind, most of what greedy loses is regained."""
    instance = large_instance(150)
    greedy = GreedySkip(bound=True).solve(instance)
    plan = LocalSearch().solve(instance)
    assert greedy.bound - plan.value < 0.3 * (greedy.bound - greedy.value)


def test_seed_decides():
    """The same seed gives the same plan at every call; another one may find another."""
    instance = large_instance(300)  # smaller ones are solved by the first descent already
    solver = LocalSearch(kicks=60, seed=0)
    first = solver.solve(instance)
    assert np.array_equal(first.serve, solver.solve(instance).serve)
    others = [LocalSearch(kicks=60, seed=seed).solve(instance).serve for seed in range(1, 5)]
    assert any(not np.array_equal(first.serve, other) for other in others)


@pytest.mark.parametrize("option", [{"starts": 0}, {"kicks": -1}, {"seed": -1}])
def test_options_out_of_range(option):
    """A wrong option is named in one sentence."""
    with pytest.raises(ValueError, match=f"{next(iter(option))} = .* not understood"):
        LocalSearch(**option)
