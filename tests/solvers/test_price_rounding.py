"""Price rounding: feasible, close, and with a gap that it proves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andes_opt import families
from andes_opt.plan import Status, verify
from solvers.exact import Exact
from solvers.price_rounding import PriceRounding, best_swap


@pytest.mark.parametrize("family", ["hard", "memory_only", "batch_only", "tight", "exactly"])
@pytest.mark.parametrize("n", [30, 200])
def test_value_and_bound_enclose_the_optimum(family: str, n: int) -> None:
    """Its value is never above the certified optimum, its bound never below it."""
    for seed in range(3):
        instance = families.make(family, n, seed)
        plan = PriceRounding().solve(instance)
        verify(instance, plan)
        optimum = Exact().solve(instance).value
        assert plan.value <= optimum + 1e-9
        assert plan.bound >= optimum - 1e-9


def test_gap_at_a_thousand_requests() -> None:
    """On the hard family at n = 1000 the mean proven gap is at most 1e-4."""
    gaps = [PriceRounding().solve(families.make("hard", 1000, seed)).gap for seed in range(5)]
    assert np.mean(gaps) <= 1e-4


def test_a_small_gap_is_not_called_optimal() -> None:
    """The gap at which the sweep stops does not make a plan optimal."""
    plans = [PriceRounding().solve(families.make("hard", 60, seed)) for seed in range(10)]
    assert any(plan.status is Status.FEASIBLE for plan in plans)
    for plan in plans:
        assert (plan.status is Status.OPTIMAL) == (plan.gap <= 1e-9)


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 100_000), n=st.integers(1, 10), free=st.integers(0, 8))
def test_best_swap_is_the_best(seed: int, n: int, free: int) -> None:
    """No exchange of two requests that fits gains more than the one found."""
    rng = np.random.default_rng(seed)
    profits = rng.integers(0, 8, n).astype(float)
    weights = rng.integers(1, 10, n)
    chosen = rng.random(n) < 0.5
    gains = [
        profits[j] - profits[i]
        for i in np.flatnonzero(chosen)
        for j in np.flatnonzero(~chosen)
        if weights[j] <= weights[i] + free
    ]
    leaves, enters = best_swap(profits, weights, chosen, free)
    if max(gains, default=0.0) <= 0:
        assert (leaves, enters) == (-1, -1)
        return
    assert chosen[leaves] and not chosen[enters]
    assert weights[enters] <= weights[leaves] + free
    assert profits[enters] - profits[leaves] == max(gains)


def test_negative_gap_is_refused() -> None:
    """A negative gap gets one sentence with its value."""
    with pytest.raises(ValueError, match="target_gap = -1"):
        PriceRounding(target_gap=-1)
