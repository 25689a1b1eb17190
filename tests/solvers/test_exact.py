"""The certified solver: right on everything small, certified on everything, and on time."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from andes_opt import families
from andes_opt.gains import CONSTANT, FormulaGains
from andes_opt.instance import GainTable, Instance
from andes_opt.plan import Status, verify
from solvers._exact.worth import common_unit
from solvers.exact import Exact, warm_up


@pytest.fixture(scope="module", autouse=True)
def compiled_code():
    """Compile once, so that no time limit is spent on it."""
    warm_up()


def enumerated(instance: Instance) -> float:
    """Optimum by enumeration of all selections, -inf if none is feasible."""
    n = instance.num_requests
    plans = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    weights, counts = plans @ instance.weights, plans.sum(axis=1)
    best = -np.inf
    for batch in range(instance.min_batch, instance.max_batch + 1):
        fits = (weights <= instance.capacity) & (
            counts == batch if instance.exactly else counts <= batch
        )
        if fits.any():
            best = max(best, float((plans[fits] @ instance.gains_at(batch)).max()))
    return best


def assert_certified(instance: Instance, optimum: float, solver: Exact | None = None) -> None:
    """The plan verifies, is proved optimal, and has the given value."""
    plan = (solver or Exact()).solve(instance)
    verify(instance, plan)
    if optimum == -np.inf:
        assert plan.status is Status.NO_SOLUTION
        assert plan.bound == -np.inf
        return
    assert plan.status is Status.OPTIMAL
    assert plan.gap <= 1e-9
    assert plan.value == pytest.approx(optimum, rel=1e-9, abs=1e-9)


def highs(instance: Instance, batch: int) -> float:
    """Optimum at one batch size by HiGHS, -inf if infeasible."""
    n = instance.num_requests
    result = milp(
        -instance.gains_at(batch),
        constraints=[
            LinearConstraint(instance.weights[None, :], -np.inf, instance.capacity),
            LinearConstraint(np.ones((1, n)), batch if instance.exactly else 0, batch),
        ],
        integrality=np.ones(n),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    return -np.inf if result.x is None else -result.fun


@settings(max_examples=250, deadline=None)
@given(
    family=st.sampled_from(sorted(families.FAMILIES)),
    n=st.integers(0, 11),
    seed=st.integers(0, 10**6),
)
def test_families_against_enumeration(family: str, n: int, seed: int) -> None:
    """On small instances of every family the plan is the enumerated optimum."""
    instance = families.make(family, n, seed)
    assert_certified(instance, enumerated(instance))


@st.composite
def odd_instances(draw: st.DrawFn) -> Instance:
    """Anything an Instance accepts: zero and huge weights of few values, flat or wild gains."""
    n = draw(st.integers(0, 8))
    first = draw(st.integers(0, 4))
    last = first + draw(st.integers(0, 6))
    scale = draw(st.sampled_from([1, 1, 7, 10**6, 10**12]))
    weights = [scale * draw(st.integers(1, 6)) for _ in range(n)]
    value = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 1e-3, 1.0 / 3.0, 1e3])
    row = st.lists(value, min_size=n, max_size=n)
    table = draw(st.lists(row, min_size=last - first + 1, max_size=last - first + 1))
    if draw(st.booleans()):
        table = -np.sort(-np.array(table).reshape(len(table), n), axis=0)
    return Instance(
        np.array(weights, dtype=np.int64),
        scale * draw(st.integers(0, 20)) + draw(st.integers(0, 1)),
        first,
        last,
        GainTable(np.array(table, dtype=float).reshape(last - first + 1, n), first),
        draw(st.booleans()),
    )


@settings(max_examples=300, deadline=None)
@given(instance=odd_instances())
def test_odd_instances_against_enumeration(instance: Instance) -> None:
    """Ties, negative and equal gains, huge weights, more slots than requests, exactly."""
    assert_certified(instance, enumerated(instance))


def test_memory_that_is_filled_exactly_by_huge_weights() -> None:
    """Any price from a least one on is best; the proof must not take one of 1e9 gains a request."""
    weights = 10**12 * np.array([2, 2, 2, 2, 2, 2, 2, 3])
    table = np.array(
        [
            [1.0, 1000.0, 0.0, 1 / 3, 0.001, -1.0, 0.5, 1000.0],
            [1.0, -1.0, 1 / 3, 1 / 3, 1 / 3, 0.0, -1.0, 1000.0],
        ]
    )
    instance = Instance(weights, 4 * 10**12, 2, 3, GainTable(table, 2), exactly=True)
    assert_certified(instance, 1001.0)


@pytest.mark.parametrize("family", ["hard", "tight", "exactly", "negative", "circle"])
@pytest.mark.parametrize("n", [50, 150])
def test_larger_instances_against_highs(family: str, n: int) -> None:
    """At the optimal batch size and its neighbours HiGHS finds nothing better."""
    instance = families.make(family, n, 1)
    plan = Exact().solve(instance)
    verify(instance, plan)
    assert plan.status is Status.OPTIMAL
    around = range(plan.batch_size - 1, plan.batch_size + 2)
    sizes = [b for b in around if instance.min_batch <= b <= instance.max_batch]
    best = max(highs(instance, batch) for batch in sizes)
    assert plan.value == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("family", ["hard", "memory_only", "preemption_cost", "exactly"])
def test_no_batch_size_is_lost_by_a_jump(family: str) -> None:
    """Asked about each batch size alone, none has a better plan than the sweep found."""
    instance = families.make(family, 60, 3)
    best = -np.inf
    solver = Exact()
    for batch in range(instance.min_batch, instance.max_batch + 1):
        table = GainTable(instance.gains_at(batch)[None, :], batch)
        one = Instance(instance.weights, instance.capacity, batch, batch, table, instance.exactly)
        best = max(best, solver.solve(one).value)
    assert_certified(instance, best)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", ["hard", "batch_only", "equal_weights", "not_monotone"])
def test_a_thousand_requests_are_certified(family: str, seed: int) -> None:
    """At n = 1000 plans are proved optimal within a second, whatever binds."""
    instance = families.make(family, 1000, seed)
    plan = Exact().solve(instance, time_limit_s=5.0)
    verify(instance, plan)
    assert plan.status is Status.OPTIMAL


@pytest.mark.parametrize("family", families.ADVERSARIAL)
def test_adversarial_instances_are_certified(family: str) -> None:
    """Knapsacks made to be hard are proved too."""
    for seed in range(3):
        instance = families.make(family, 60, seed)
        plan = Exact().solve(instance)
        verify(instance, plan)
        assert plan.status is Status.OPTIMAL


@settings(max_examples=25, deadline=None)
@given(seeds=st.lists(st.integers(0, 10**6), min_size=2, max_size=4), n=st.integers(5, 80))
def test_a_warm_start_never_changes_the_value(seeds: list[int], n: int) -> None:
    """Prices of another instance cost time at worst."""
    warm = Exact(warm_start=True)
    for seed in seeds:
        instance = families.make("hard", n, seed)
        cold = Exact(warm_start=False).solve(instance)
        plan = warm.solve(instance)
        assert plan.status is cold.status is Status.OPTIMAL
        assert plan.value == pytest.approx(cold.value, rel=1e-9)


@pytest.mark.parametrize("limit_s", [0.0, 0.02, 0.1])
@pytest.mark.parametrize(
    ("family", "n"), [("hard", 2000), ("not_monotone", 1000), ("profit_ceiling", 200)]
)
def test_time_limits_are_kept(family: str, n: int, limit_s: float) -> None:
    """Out of time, the incumbent comes back with a valid bound, late by little."""
    instance = families.make(family, n, 1)
    solver = Exact(warm_start=False)
    optimum = solver.solve(instance).value
    lateness = []
    for _ in range(3):
        started = time.process_time()
        plan = solver.solve(instance, time_limit_s=limit_s)
        lateness.append(time.process_time() - started - limit_s)
        verify(instance, plan)
        assert plan.value <= optimum * (1 + 1e-9)
        assert plan.bound >= optimum * (1 - 1e-9)
        assert np.isfinite(plan.bound)
    # Processor time: other programs on the machine are not the solver's lateness.
    assert min(lateness) <= 0.2 * limit_s + 0.02


def test_no_time_means_feasible_not_optimal() -> None:
    """With a limit of 0 an instance that needs a search is not called optimal."""
    plan = Exact().solve(families.make("hard", 1000, 0), time_limit_s=0.0)
    assert plan.status is Status.FEASIBLE


def test_gains_without_batch_size_need_one_search() -> None:
    """Where gains don't depend on B, the largest batch size allows what all others allow."""
    rng = np.random.default_rng(0)
    n = 9
    gains = FormulaGains(
        CONSTANT, rng.random((1, n)), np.empty(0), monotone=True, concave_in_rate=True
    )
    instance = Instance(rng.integers(1, 20, n), 60, 1, n, gains)
    plan = Exact().solve(instance)
    assert plan.info["searched"] <= 1
    assert_certified(instance, enumerated(instance))


class ThirdParty:
    """A gain model that compiled code doesn't know."""

    monotone = True
    concave_in_rate = True

    def __init__(self, n: int, nan_at: int = -1) -> None:
        self.base = np.random.default_rng(n).random(n)
        self.nan_at = nan_at

    def __call__(self, batch_size: int) -> np.ndarray:
        gains = self.base / (1.0 + 0.3 * batch_size)
        if batch_size == self.nan_at:
            gains[0] = np.nan
        return gains

    def table(self, first: int, last: int) -> np.ndarray:
        return np.array([self(batch) for batch in range(first, last + 1)])


def test_gain_models_of_others() -> None:
    """A model without a compiled form is asked for its table; NaN in it is refused."""
    instance = Instance(np.arange(1, 10), 17, 0, 9, ThirdParty(9))
    assert_certified(instance, enumerated(instance))
    with pytest.raises(ValueError, match="NaN"):
        Exact().solve(Instance(np.arange(1, 10), 17, 0, 9, ThirdParty(9, nan_at=3)))


def test_weights_too_large_for_one_integer_stay_honest() -> None:
    """If count and weight don't fit into one integer the plan is feasible, its bound valid."""
    weights = np.array([2**59, 2**59 + 1, 2**58 + 7, 2**58 + 3, 2**57 + 1], dtype=np.int64)
    gains = GainTable(np.broadcast_to([5.0, 5.1, 2.4, 2.5, 1.2], (5, 5)), 1)
    instance = Instance(weights, 2**60 + 5, 1, 5, gains)
    plan = Exact().solve(instance)
    verify(instance, plan)
    assert plan.bound >= enumerated(instance) - 1e-9


def test_weights_beyond_floats_never_overfill() -> None:
    """
    Weights whose sums floats round down make no plan that does not fit.

    A regression test: it was a token too heavy, and called optimal.
    """
    big = 2**53 + 1
    gains = GainTable(np.array([[1.0, 1.1, 0.1]]), 2)
    instance = Instance(np.array([big, big, 1]), 2 * big - 1, 2, 2, gains)
    plan = Exact().solve(instance)
    verify(instance, plan)
    assert plan.value >= 1.1
    assert plan.bound >= 1.2 - 1e-9
    assert plan.status is Status.FEASIBLE


def test_a_table_that_begins_in_the_middle() -> None:
    """
    The first look for the peak asks for no batch size before the first.

    A regression test: with 400 requests and more it did, and the table had no such row.
    """
    n, first, last = 400, 201, 300
    fall = np.exp(-0.02 * np.arange(last - first + 1))
    gains = GainTable(np.outer(fall, np.arange(1, n + 1) / n), first)
    instance = Instance(np.ones(n, dtype=np.int64), n, first, last, gains)
    best = max(np.sort(instance.gains_at(b))[-b:].sum() for b in range(first, last + 1))
    assert_certified(instance, best)


@pytest.mark.parametrize("exactly", [False, True])
def test_out_of_time_at_once_it_serves_somebody(exactly: bool) -> None:
    """
    Without any time the plan is that of one rounding, not empty.

    A regression test: the policy took the empty plan for "nobody gains anything".
    """
    instance = families.make("hard", 1000, 0)
    if exactly:
        instance = replace(instance, exactly=True, min_batch=20)
    plan = Exact().solve(instance, time_limit_s=0.0)
    verify(instance, plan)
    best = Exact().solve(instance).value
    assert 0.7 * best < plan.value <= best <= plan.bound + 1e-9


def test_another_hill_is_found() -> None:
    """Two peaks of the dual bound (a bug once: a thousand searches up the second one)."""
    n, last = 40, 30
    rng = np.random.default_rng(0)
    base = rng.random(n) + 0.5
    # Gains fall, pause, and fall again: one hill per fall.
    fall = np.concatenate([np.linspace(1, 0.4, 12), np.full(14, 0.4), np.linspace(0.4, 0, 4)])
    instance = Instance(rng.integers(1, 9, n), 500, 1, last, GainTable(np.outer(fall, base), 1))
    best = max(np.sort(instance.gains_at(b))[-b:].sum() for b in range(1, last + 1))
    assert_certified(instance, best)


def test_units_of_gains() -> None:
    """Whole multiples are recognised, real numbers are not (values are then rounded down)."""
    unit, noise = common_unit(0.003 * np.array([5.0, 0.0, 12.0, -7.0]))
    assert unit == pytest.approx(0.003)
    assert noise < 1e-12
    assert common_unit(np.random.default_rng(0).random(50)) == (0.0, 0.0)
    assert common_unit(np.zeros(3)) == (0.0, 0.0)


def test_an_incumbent_of_another_unit() -> None:
    """
    Each batch size has gains in multiples of its own unit (a bug once: the incumbent was taken
    for a multiple of the unit at hand, and better plans were lost with a false certificate).
    """
    solver = Exact()
    for seed in (1084, 1180, 1382, *range(300)):
        rng = np.random.default_rng(seed)
        n, k = int(rng.integers(4, 11)), int(rng.integers(2, 7))
        weights, base = rng.integers(1, 40, n), rng.integers(1, 30, n).astype(float)
        own_unit = np.cumprod(np.r_[1.0, rng.uniform(0.9, 1.0, k - 1)])
        if rng.random() < 0.5:
            rng.shuffle(own_unit)
        capacity = int(weights.sum() * rng.uniform(0.2, 0.7))
        table = GainTable(own_unit[:, None] * base, 1)
        instance = Instance(weights, capacity, 1, k, table, bool(rng.random() < 0.3))
        assert_certified(instance, enumerated(instance), solver)


def test_a_plan_that_loses_nothing_is_found() -> None:
    """
    A bound of exactly 0 and a plan worth exactly 0 (a bug once: the plan had to lose less than
    nothing, and the lightest request was certified instead).
    """
    table = GainTable([[-0.002, 0.0, -0.001, 0.003]], 1)
    instance = Instance(np.array([541, 312, 278, 928]), 876, 1, 1, table, exactly=True)
    assert_certified(instance, 0.0)
    # Also for the checks: a value this small is within their absolute tolerance.
    assert Exact().solve(instance).value == 0.0


@pytest.mark.parametrize("sizes", [(1, 1), (1, 3)])
def test_a_price_from_another_world_misleads_nobody(sizes: tuple[int, int]) -> None:
    """
    A warm start with a price that dwarfs the gains (a bug once: equal weights kept the price,
    reduced gains were rounding noise, and a worse plan was certified).
    """
    gains = 1e-3 * np.array([0.5829, 0.5157, 0.4404, 0.2277, 0.8536, 0.5971, 0.8854, 0.7663])
    first, last = sizes
    table = GainTable(gains * np.linspace(1.0, 0.99, last)[first - 1 :, None], first)
    weights = np.full(8, 1_078_571_057_913)
    instance = Instance(weights, 1_684_137_930_318, first, last, table, exactly=True)
    solver = Exact(warm_start=True)
    # Few tokens of great worth: the price that this leaves behind is 1e6 a token.
    solver.solve(Instance(np.array([1, 1]), 1, 1, 2, GainTable([[1e6, 2e6]] * 2, 1)))
    plan = solver.solve(instance)
    verify(instance, plan)
    assert plan.status is Status.OPTIMAL
    assert plan.value == pytest.approx(enumerated(instance), rel=1e-12)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([1e-12, 1e-6, 1.0, 1e6, 1e12]),
    exactly=st.booleans(),
)
def test_gains_of_any_magnitude(seed: int, scale: float, exactly: bool) -> None:
    """Bounds are valid and plans optimal up to rounding, whatever the unit of the gains."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 9))
    base = rng.normal(0.1, 1.0, n) if seed % 2 else rng.integers(-2, 4, n).astype(float)
    table = scale * (base - np.cumsum(rng.random((5, n)) * rng.choice([0.0, 0.01, 1.0]), axis=0))
    weights = rng.integers(1, 2 ** int(rng.integers(2, 41)), n)
    capacity = int(weights.sum() * rng.uniform(0.0, 1.1))
    first = int(rng.integers(0, 3))
    instance = Instance(weights, capacity, first, 4, GainTable(table, 0), exactly)
    optimum = enumerated(instance)
    for solver in (Exact(warm_start=False), Exact(warm_start=True)):
        plan = solver.solve(instance)
        verify(instance, plan)
        if optimum == -np.inf:
            assert plan.status is Status.NO_SOLUTION
            continue
        rounding = 1e-14 * n * max(np.abs(table).max(), abs(optimum))
        assert plan.bound >= optimum - rounding
        assert plan.value >= optimum - 1e-9 * max(1.0, abs(optimum)) - rounding
        out_of_time = solver.solve(instance, time_limit_s=1e-6)
        verify(instance, out_of_time)
        assert out_of_time.value <= optimum + rounding <= out_of_time.bound + 2 * rounding


def test_perfect_requests_close_by_their_unit() -> None:
    """Gains of 0 and 1 make whole values, so the bound is rounded down to the optimum."""
    rng = np.random.default_rng(1)
    n = 300
    table = (rng.random((40, n)) < np.linspace(0.9, 0.1, 40)[:, None]).astype(float)
    table = np.minimum.accumulate(table, axis=0)
    instance = Instance(rng.integers(100, 900, n), 9000, 1, 40, GainTable(table, 1))
    plan = Exact().solve(instance)
    verify(instance, plan)
    assert plan.status is Status.OPTIMAL
    assert plan.info["states"] < 10_000
