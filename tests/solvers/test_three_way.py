"""Serve, hold or evict: HiGHS, CP-SAT and prices against trying everything."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andes_opt.instance import GainTable
from andes_opt.plan import Status
from andes_opt.snapshot import Action
from andes_opt.testing import enumerate_optimum, large_instance
from andes_opt.three_way import ThreeWayInstance, verify_three_way
from solvers.cp_sat import CpSat
from solvers.three_way import ThreeWayCpSat, ThreeWayHighs, ThreeWayPrices
from solvers.three_way_prices import ThreeWayStep, find_prices, repair, round_to_plan

SOLVERS = {"highs": ThreeWayHighs(), "cp_sat": ThreeWayCpSat(), "prices": ThreeWayPrices()}
KINDS = ("monotone", "negative", "non-monotone")


def enumerate_three_way(instance):
    """The optimum by trying all 3**n actions at every batch size."""
    n = instance.num_requests
    actions = np.array(list(itertools.product((0, 1, 2), repeat=n))).reshape(-1, n)
    served, held = actions == Action.SERVE, actions == Action.HOLD
    fits = served @ instance.serve_weights + held @ instance.hold_weights <= instance.capacity
    fits &= ~(held & ~instance.resident).any(axis=1)
    best = 0.0
    for batch_size in range(instance.min_batch, instance.max_batch + 1):
        possible = fits & (served.sum(axis=1) <= batch_size)
        possible &= (served | held).sum(axis=1) <= instance.max_batch
        values = served @ instance.serve_gains(batch_size) + held @ instance.hold_gains
        best = max(best, float(values[possible].max(initial=0.0)))
    return best


def random_three_way(seed, kind="monotone", most=7):
    """A small instance; memory and slots both tend to bind."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, most + 1))
    serve_weights = rng.integers(2, 40, n)
    hold_weights = np.maximum(1, serve_weights - rng.integers(0, 3, n))
    min_batch = int(rng.integers(0, 3))
    max_batch = min_batch + int(rng.integers(0, 4))
    table = rng.uniform(0, 1, (max_batch - min_batch + 1, n)) * (0.3 + serve_weights / 40)
    if kind == "negative":
        table -= 0.4
    if kind != "non-monotone":
        table = np.sort(table, axis=0)[::-1]
    return ThreeWayInstance(
        serve_weights=serve_weights,
        hold_weights=hold_weights,
        capacity=int(serve_weights.sum() * rng.uniform(0.2, 0.9)),
        min_batch=min_batch,
        max_batch=max_batch,
        serve_gains=GainTable(table, min_batch),
        hold_gains=rng.uniform(-0.2, 0.9, n),
        resident=rng.random(n) < 0.7,
    )


def large_three_way(n):
    """An instance of useful size: the two-way one, with half of the requests resident."""
    two_way = large_instance(n)
    rng = np.random.default_rng(n)
    return ThreeWayInstance(
        serve_weights=two_way.weights,
        hold_weights=np.maximum(1, two_way.weights - 16),
        capacity=two_way.capacity,
        min_batch=two_way.min_batch,
        max_batch=two_way.max_batch,
        serve_gains=two_way.gains,
        hold_gains=rng.uniform(0.0, 0.4, n) * (0.5 + two_way.weights / 900),
        resident=rng.random(n) < 0.5,
    )


@pytest.mark.parametrize("name", SOLVERS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(KINDS))
def test_against_enumeration(name, seed, kind):
    """Exact solvers meet the optimum of all 3**n actions, prices bracket it."""
    instance = random_three_way(seed, kind)
    optimum = enumerate_three_way(instance)
    solver = SOLVERS[name]
    plan = solver.solve(instance)
    verify_three_way(instance, plan)
    assert plan.value <= optimum + 1e-9
    assert plan.bound >= optimum - 1e-9
    if solver.exact:
        assert plan.status is Status.OPTIMAL
        assert plan.value == pytest.approx(optimum, rel=1e-6, abs=1e-6)


def test_holding_is_worth_it():
    """By hand: serve the first, hold the second, where serving both is too slow."""
    instance = ThreeWayInstance(
        serve_weights=np.array([5, 5]),
        hold_weights=np.array([4, 4]),
        capacity=9,
        min_batch=1,
        max_batch=2,
        serve_gains=GainTable([[3.0, 2.0], [0.5, 0.5]], 1),
        hold_gains=np.array([1.0, 0.5]),
        resident=np.array([True, True]),
    )
    for solver in SOLVERS.values():
        plan = solver.solve(instance)
        verify_three_way(instance, plan)
        assert plan.action.tolist() == [Action.SERVE, Action.HOLD]
        assert plan.value == 3.5


def test_a_held_request_takes_a_place():
    """By hand: with a place for one, the best choice is served and the other not even held."""
    instance = ThreeWayInstance(
        serve_weights=np.array([5, 5]),
        hold_weights=np.array([4, 4]),
        capacity=90,
        min_batch=1,
        max_batch=1,
        serve_gains=GainTable([[3.0, 2.0]], 1),
        hold_gains=np.array([1.0, 3.5]),
        resident=np.array([True, True]),
    )
    for solver in SOLVERS.values():
        plan = solver.solve(instance)
        verify_three_way(instance, plan)
        assert plan.action.tolist() == [Action.WAIT, Action.HOLD]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_without_holding_it_is_the_two_way_step(seed, nobody_resident):
    """With nobody resident, or holding never a gain, the optimum is the knapsack's."""
    instance = random_three_way(seed)
    n = instance.num_requests
    instance = ThreeWayInstance(
        instance.serve_weights,
        instance.hold_weights,
        instance.capacity,
        instance.min_batch,
        instance.max_batch,
        instance.serve_gains,
        np.ones(n) if nobody_resident else -np.ones(n),
        np.full(n, not nobody_resident),
    )
    optimum = enumerate_optimum(instance.two_way)
    plan = SOLVERS["cp_sat"].solve(instance)
    verify_three_way(instance, plan)
    assert plan.value == pytest.approx(optimum, abs=1e-9)


@pytest.mark.parametrize("name", SOLVERS)
def test_odd_cases(name):
    """Nobody there, nothing fits, no slot, everything fits."""
    solver = SOLVERS[name]
    gains = GainTable(np.ones((3, 2)), 0)

    def instance(capacity, max_batch):
        weights, worth = np.array([5, 5]), np.array([0.5, 0.5])
        resident = np.array([True, True])
        return ThreeWayInstance(weights, weights, capacity, 0, max_batch, gains, worth, resident)

    for odd, optimum in (
        (instance(4, 2), 0.0),
        (instance(10, 0), 0.0),
        (instance(9, 2), 1.0),
        (instance(10, 1), 1.0),
        (instance(10, 2), 2.0),
    ):
        plan = solver.solve(odd)
        verify_three_way(odd, plan)
        assert plan.value == optimum
        assert not solver.exact or plan.status is Status.OPTIMAL
    none = np.zeros(0, dtype=np.int64)
    empty = ThreeWayInstance(
        none, none, 10, 0, 3, GainTable(np.zeros((4, 0)), 0), np.zeros(0), np.zeros(0, dtype=bool)
    )
    plan = solver.solve(empty)
    verify_three_way(empty, plan)
    assert plan.status is Status.OPTIMAL


def test_they_agree_beyond_enumeration():
    """At 40 requests HiGHS and CP-SAT meet the same optimum; prices come within two percent."""
    instance = large_three_way(40)
    plans = {name: solver.solve(instance) for name, solver in SOLVERS.items()}
    for plan in plans.values():
        verify_three_way(instance, plan)
    assert plans["highs"].status is plans["cp_sat"].status is Status.OPTIMAL
    assert plans["highs"].value == pytest.approx(plans["cp_sat"].value, rel=1e-6)
    assert (plans["cp_sat"].action == Action.HOLD).any()
    optimum = plans["cp_sat"].value
    assert 0.98 * optimum <= plans["prices"].value <= optimum + 1e-9
    assert optimum - 1e-9 <= plans["prices"].bound <= 1.02 * optimum
    # Holding pays here: evicting everybody who is not served is worth less.
    assert CpSat().solve(instance.two_way).value < optimum - 1e-3


def test_prices_get_better_with_size():
    """The heuristic's proven gap at 300 requests is below half a percent."""
    plan = ThreeWayPrices().solve(large_three_way(300))
    verify_three_way(large_three_way(300), plan)
    assert plan.gap < 5e-3


@pytest.mark.parametrize("name", SOLVERS)
def test_time_limits(name):
    """At a limit the incumbent comes back in time, with a bound over all batch sizes."""
    instance = large_three_way(40)
    optimum = SOLVERS["cp_sat"].solve(instance).value
    for limit_s in (0.0, 0.3):
        started = time.perf_counter()
        plan = SOLVERS[name].solve(instance, time_limit_s=limit_s)
        assert time.perf_counter() - started < limit_s + 1.0
        verify_three_way(instance, plan)
        assert plan.bound >= optimum - 1e-9
    assert plan.value > 0.5 * optimum


def test_options_are_checked():
    """Options that make no sense are refused, and a loose gap is not called exact."""
    with pytest.raises(ValueError, match="threads = 0 not understood"):
        ThreeWayCpSat(threads=0)
    with pytest.raises(ValueError, match=r"relative_gap = 2\.0"):
        ThreeWayHighs(relative_gap=2.0)
    assert not ThreeWayHighs(relative_gap=0.1).exact
    assert not ThreeWayCpSat(relative_gap=0.1).exact


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_prices_bound_and_repair(seed):
    """At one batch size the prices bound every feasible choice, and any choice is repaired."""
    rng = np.random.default_rng(seed)
    instance = random_three_way(seed, most=6)
    step = ThreeWayStep(
        instance.serve_gains(instance.min_batch),
        np.where(instance.resident, instance.hold_gains, -np.inf),
        instance.serve_weights,
        instance.hold_weights,
        instance.capacity,
        min(instance.min_batch, instance.num_requests),
        min(instance.max_batch, instance.num_requests),
    )
    prices = find_prices(step)
    choices = [
        np.array(choice, dtype=np.int8)
        for choice in itertools.product((0, 1, 2), repeat=instance.num_requests)
        if not (np.array(choice) == Action.HOLD)[~instance.resident].any()
    ]
    best = max(step.value(choice) for choice in choices if step.fits(choice))
    assert prices.bound >= best - 1e-12
    # The choice at the prices leaves the places to the rounding.
    assert replace(step, places=instance.num_requests).fits(prices.light)
    rounded = round_to_plan(step, prices)
    assert step.fits(rounded)
    any_choice = choices[rng.integers(len(choices))]
    repaired = repair(step, any_choice, prices.memory_price, prices.slot_price)
    assert step.fits(repaired)
    assert step.value(repaired) >= 0
    if step.fits(any_choice):
        assert step.value(repaired) >= step.value(any_choice) - 1e-12
