"""The greedy solvers: what each takes, and that the compiled sweep takes just that."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andes_opt.instance import GainTable, Instance
from andes_opt.plan import Status, verify
from andes_opt.testing import KINDS, enumerate_optimum, large_instance, random_instance
from solvers.greedy import Greedy, GreedySkip
from solvers.packing import repair_order
from solvers.released_code import ReleasedCode


def step(weights, capacity, gains, max_batch=None, **options):
    """An instance whose gains don't depend on the batch size."""
    largest = max_batch or len(weights)
    table = GainTable(np.tile(np.array(gains, dtype=float), (largest, 1)), 1)
    return Instance(np.array(weights), capacity, 1, largest, table, **options)


def algorithm_1(instance, *, skip):
    """The paper's greedy written down plainly: best value over all batch sizes."""
    best = 0.0
    largest = instance.max_batch
    if instance.gains.monotone:  # the paper's B_max: most requests that fit by weight
        most = int((np.cumsum(np.sort(instance.weights)) <= instance.capacity).sum())
        largest = min(largest, max(most, instance.min_batch))
    for batch_size in range(instance.min_batch, largest + 1):
        gains = instance.gains_at(batch_size)
        free, count, value = instance.capacity, 0, 0.0
        for i in sorted(range(gains.size), key=lambda i: (-gains[i] / instance.weights[i], i)):
            if count == batch_size or gains[i] <= 0:
                break
            if instance.weights[i] > free:
                if skip:
                    continue
                break
            free, count, value = free - instance.weights[i], count + 1, value + gains[i]
        best = max(best, value)
    return best


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(KINDS))
def test_greedy_is_algorithm_1(seed, kind):
    """The compiled sweep equals the algorithm written down in ten lines of Python."""
    instance = random_instance(seed, kind=kind)
    for solver, skip in ((Greedy(), False), (GreedySkip(), True)):
        plan = solver.solve(instance)
        verify(instance, plan)
        assert plan.value == pytest.approx(algorithm_1(instance, skip=skip), rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(KINDS), st.booleans())
def test_greedy_plans_are_feasible_and_bounded(seed, kind, exactly):
    """Every greedy solver finds a plan where there is one; with `bound` it is bracketed."""
    instance = random_instance(seed, kind=kind, exactly=exactly)
    optimum = enumerate_optimum(instance)
    for make in (Greedy, GreedySkip, ReleasedCode):
        plan = make(bound=True).solve(instance)
        verify(instance, plan)
        assert (plan.status is Status.NO_SOLUTION) == (optimum == -np.inf)
        assert plan.value <= optimum + 1e-12
        assert plan.bound >= optimum - 1e-12
        assert make().solve(instance).value == plan.value


def test_first_misfit_stops_greedy_only():
    """Behind a misfit Algorithm 1 takes nobody; its repair takes who fits."""
    instance = step([2, 9, 3], 6, [4, 9, 1])
    assert Greedy().solve(instance).serve.tolist() == [True, False, False]
    assert GreedySkip().solve(instance).serve.tolist() == [True, False, True]


def test_losses_are_never_chosen():
    """Requests without a positive gain are left out although there is room."""
    instance = step([1, 1, 1], 9, [-1, 0, 2])
    for make in (Greedy, GreedySkip, ReleasedCode):
        assert make().solve(instance).serve.tolist() == [False, False, True]


def test_ties_go_to_the_older_request():
    """Of equally dense requests the first in arrival order is taken."""
    instance = step([2, 2, 2, 2], 5, [1, 1, 1, 1])
    assert Greedy().solve(instance).serve.tolist() == [True, True, False, False]


def test_greedy_ignores_the_price_of_a_slot():
    """With one slot the dense small request wins over the valuable large one."""
    instance = step([1, 10], 10, [1, 5], max_batch=1)
    assert Greedy().solve(instance).value == 1
    assert Greedy(bound=True).solve(instance).bound == pytest.approx(5)


def test_released_code_divides_by_the_weight_twice():
    """Gain/weight prefers the large request, gain/weight**2 the small one."""
    instance = step([2, 4, 9], 5, [3, 7, 1])
    assert Greedy().solve(instance).serve.tolist() == [False, True, False]
    assert ReleasedCode().solve(instance).serve.tolist() == [True, False, False]


def test_released_code_divides_once_if_everybody_fits():
    """With memory for all, the slots go by gain/weight."""
    instance = step([2, 4], 6, [3, 7], max_batch=1)
    assert ReleasedCode().solve(instance).serve.tolist() == [False, True]
    tight = step([2, 4], 5, [3, 7], max_batch=1)
    assert ReleasedCode().solve(tight).serve.tolist() == [True, False]


def test_released_code_skips_misfits_until_the_memory_is_nearly_full():
    """Below 90 % use a misfit is passed over; from there on packing stops at one."""
    below = step([80, 100, 15], 100, [80 * 80, 8000, 10])
    assert ReleasedCode().solve(below).serve.tolist() == [True, False, True]
    above = step([90, 100, 5], 100, [90 * 90, 8000, 1])
    assert ReleasedCode().solve(above).serve.tolist() == [True, False, False]


def test_exactly_is_completed_by_the_lightest():
    """A request is a misfit if no one could fill the slots after it; the lightest fill them."""
    # Gain per token favours 0 (9 tokens); with it the other two slots need 2 + 3 tokens.
    enough = step([9, 2, 3, 4], 14, [90, 1, 1, 1], exactly=True, max_batch=3)
    plan = Greedy().solve(enough)
    assert plan.batch_size == 3
    assert plan.serve.tolist() == [True, True, True, False]
    short = Instance(enough.weights, 13, 3, 3, enough.gains, exactly=True)
    assert Greedy().solve(short).serve.tolist() == [False, True, True, True]


def test_exactly_takes_losses_if_it_must():
    """Exactly two of three losing requests are served, at their loss."""
    instance = Instance(
        np.array([1, 1, 1]), 2, 2, 2, GainTable([[-1.0, -2.0, -3.0]], 2), exactly=True
    )
    for make in (Greedy, GreedySkip, ReleasedCode):
        plan = make().solve(instance)
        verify(instance, plan)
        assert plan.value == -3.0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=60),
    st.randoms(use_true_random=False),
)
def test_repair_order_sorts(keys, random):
    """Whatever the permutation to begin with: by decreasing key, ties by index."""
    start = list(range(len(keys)))
    random.shuffle(start)
    order = np.array(start)
    repair_order(order, np.array(keys))
    assert order.tolist() == sorted(range(len(keys)), key=lambda i: (-keys[i], i))


@pytest.mark.parametrize("n", [100, 1000])
def test_repair_order_sorts_what_is_far_from_sorted(n):
    """Reversed and random orders, where insertion gives up, are sorted as well."""
    key = np.random.default_rng(n).integers(0, n // 2, n).astype(float)
    expected = sorted(range(n), key=lambda i: (-key[i], i))
    for start in (expected[::-1], list(range(n))):
        order = np.array(start)
        repair_order(order, key)
        assert order.tolist() == expected


def test_time_limit_ends_the_sweep():
    """At a limit of 0 the first sizes are packed and a valid plan comes back."""
    instance = large_instance(120)
    plan = Greedy(bound=True).solve(instance, time_limit_s=0.0)
    verify(instance, plan)
    assert plan.info["batch_sizes_examined"] == 16
    full = Greedy(bound=True).solve(instance)
    assert full.info["batch_sizes_examined"] > 16
    assert plan.bound >= full.value


def test_gain_model_of_the_wrong_length():
    """A third party's gain model with too few gains is refused in one sentence."""

    class Short:
        monotone = concave_in_rate = False

        def __call__(self, batch_size):
            return np.ones(1)

        def table(self, first, last):
            return np.ones((last - first + 1, 1))

    instance = Instance(np.array([1, 1]), 2, 1, 2, Short())
    with pytest.raises(ValueError, match="1 gains for 2 requests"):
        Greedy().solve(instance)


def test_greedy_is_fast():
    """All batch sizes of 300 requests: milliseconds even on a busy machine."""
    instance = large_instance(300)
    Greedy().solve(instance)
    spent = []
    for _ in range(20):
        started = time.process_time()
        Greedy().solve(instance)
        spent.append(time.process_time() - started)
    assert min(spent) < 5e-3
