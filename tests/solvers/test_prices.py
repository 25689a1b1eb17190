"""Lagrangian prices: as good as the linear relaxation, and safe for any pair of prices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from andes_opt.compilation import jit
from solvers._exact.prices import update_prices
from solvers._exact.problem import Dual, Knapsack
from solvers._exact.selection import kth_largest
from solvers.prices import dual_bound, price_bound


@jit
def updated_bound(gains, weights, capacity, slots, exactly, memory_price, slot_price, margin):
    """The bound of prices updated from a guess that may be off by a share ``margin`` of it."""
    return update_prices(
        Knapsack(gains, weights, capacity, slots, exactly),
        Dual(np.inf, memory_price, slot_price),
        margin * memory_price,
        margin * abs(slot_price),
        np.empty((5, gains.size)),
    ).bound


def knapsack(seed: int, n: int):
    """A random knapsack with slots: gains, weights, capacity, slots."""
    rng = np.random.default_rng(seed)
    weights = rng.integers(1, rng.choice([3, 50, 3000]), n)
    gains = rng.normal(0.3, 0.3, n)
    if seed % 5 == 0:
        gains = np.round(gains, 1)
    return gains, weights, int(rng.integers(0, weights.sum() + 5)), int(rng.integers(0, n + 3))


def relaxation(gains, weights, capacity, slots, exactly):
    """Value of the linear relaxation by scipy's simplex; None if it is infeasible."""
    n = gains.size
    rows, limits = [weights], [capacity]
    equal = {}
    if exactly:
        equal = {"A_eq": [np.ones(n)], "b_eq": [slots]}
    else:
        rows, limits = [*rows, np.ones(n)], [*limits, slots]
    result = linprog(-gains, A_ub=rows, b_ub=limits, bounds=(0, 1), **equal)
    return None if result.status == 2 else -result.fun


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 60), exactly=st.booleans())
def test_the_dual_bound_is_the_linear_relaxation(seed: int, n: int, exactly: bool) -> None:
    """At the best prices the bound equals the optimum of the linear relaxation."""
    gains, weights, capacity, slots = knapsack(seed, n)
    bound, memory_price, slot_price = dual_bound(gains, weights, capacity, slots, exactly=exactly)
    expected = relaxation(gains, weights, capacity, slots, exactly)
    if expected is None:
        assert bound == -np.inf
        return
    assert bound == pytest.approx(expected, abs=1e-8)
    assert memory_price >= 0
    assert exactly or slot_price >= 0


@pytest.mark.parametrize("unit", [1, 10**6, 10**12])
def test_prices_are_no_larger_than_they_have_to_be(unit: int) -> None:
    """
    Two requests fill the memory exactly, at any price from a least one on: near that it stays.

    Further up the bound is the same but for rounding, which grows with the price.
    """
    gains = np.array([1.0, 1000.0, 0.0, 0.5, 1000.0])
    weights = unit * np.array([2, 2, 2, 2, 3])
    bound, memory_price, _ = dual_bound(gains, weights, 4 * unit, 2, exactly=True)
    assert bound == pytest.approx(1001.0, abs=1e-10)
    assert memory_price * unit <= 2e6


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 9),
    memory_price=st.floats(0, 3),
    slot_price=st.floats(-2, 2),
)
def test_any_prices_prove_a_bound(
    seed: int, n: int, memory_price: float, slot_price: float
) -> None:
    """No plan of exactly B requests is worth more than the bound of any prices."""
    gains, weights, capacity, slots = knapsack(seed, n)
    bound = price_bound(gains, weights, capacity, slots, memory_price, slot_price)
    plans = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    fits = (plans @ weights <= capacity) & (plans.sum(axis=1) == slots)
    if slot_price >= 0:
        fits = (plans @ weights <= capacity) & (plans.sum(axis=1) <= slots)
    if fits.any():
        assert (plans[fits] @ gains).max() <= bound


def test_price_bound_at_the_best_prices_is_the_dual_bound() -> None:
    """The three numbers of dual_bound belong together."""
    gains, weights, capacity, slots = knapsack(3, 40)
    bound, memory_price, slot_price = dual_bound(gains, weights, capacity, slots)
    again = price_bound(gains, weights, capacity, slots, memory_price, slot_price)
    assert again == pytest.approx(bound, rel=1e-13)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(2, 400),
    exactly=st.booleans(),
    off=st.floats(0.5, 2.0),
    margin=st.floats(0.0, 1.0),
)
def test_prices_from_close_by_are_the_best_prices(
    seed: int, n: int, exactly: bool, off: float, margin: float
) -> None:
    """Whatever the guess and its margins, the updated prices are as good as searched ones."""
    gains, weights, capacity, slots = knapsack(seed, n)
    slots = min(slots, n)
    if exactly and np.sort(weights)[:slots].sum() > capacity:
        return
    bound, memory_price, slot_price = dual_bound(gains, weights, capacity, slots, exactly=exactly)
    updated = updated_bound(
        gains,
        weights.astype(float),
        float(capacity),
        slots,
        exactly,
        memory_price * off,
        slot_price * off,
        margin / off,
    )
    assert updated == pytest.approx(bound, rel=1e-9, abs=1e-9)


def test_a_far_end_does_not_stall_the_search() -> None:
    """A heavy tail of gains per token: the crossing of lines alone would creep (a bug once)."""
    rng = np.random.default_rng(0)
    weights = np.concatenate([rng.integers(1, 3, 5), rng.integers(1000, 3000, 300)])
    gains = np.concatenate([np.full(5, 500.0), rng.random(300)])
    bound, _, _ = dual_bound(gains, weights, 200_000, 120, exactly=True)
    assert bound == pytest.approx(relaxation(gains, weights, 200_000, 120, True), rel=1e-9)


@pytest.mark.parametrize("exactly", [False, True])
def test_degenerate_shapes(exactly: bool) -> None:
    """No requests, no slots, no memory."""
    assert dual_bound([], np.empty(0, dtype=np.int64), 5, 0, exactly=exactly)[0] == 0
    assert dual_bound([1.0, 2.0], [1, 1], 5, 0, exactly=exactly)[0] == pytest.approx(0, abs=1e-12)
    assert dual_bound([1.0, 2.0], [1, 1], 0, 2)[0] == pytest.approx(0, abs=1e-12)
    assert dual_bound([-1.0, -2.0], [1, 1], 5, 2)[0] == pytest.approx(0, abs=1e-12)
    assert dual_bound([-1.0, -2.0], [1, 1], 5, 2, exactly=True)[0] == pytest.approx(-3)


@pytest.mark.parametrize("prices", [(-1e-9, 0.0), (np.inf, 0.0), (0.0, np.nan)])
def test_prices_that_prove_nothing_are_refused(prices: tuple[float, float]) -> None:
    """A negative memory price, or one that is no number, gets one sentence."""
    with pytest.raises(ValueError, match=r"prices .* not understood"):
        price_bound([1.0], [1], 1, 1, *prices)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 2000), data=st.data())
def test_kth_largest(seed: int, n: int, data: st.DataObject) -> None:
    """The k-th largest is what sorting says, ties included."""
    rng = np.random.default_rng(seed)
    values = rng.random(n) if seed % 2 else rng.integers(0, 5, n).astype(float)
    k = data.draw(st.integers(1, n))
    assert kth_largest(values.copy(), n, k, np.empty(n)) == np.sort(values)[-k]
