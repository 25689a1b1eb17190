"""The knapsack of a scheduling step."""

from __future__ import annotations

import dataclasses
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andes_opt.formulation import most_that_fit, step_instance
from andes_opt.latency import LatencyModel
from andes_opt.objective import (
    AverageQoE,
    AverageQoEWithPreemptionCost,
    MaxMinQoE,
    Objective,
    PerfectRequests,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from andes_opt.instance import Instance
    from andes_opt.snapshot import Snapshot

    MakeSnapshot = Callable[..., Snapshot]

seeds = st.integers(0, 2**16)


def best_value(instance: Instance, first: int, last: int) -> float:
    """The optimum over the batch sizes first to last, by enumeration; -inf if none fits."""
    n, best = instance.num_requests, -np.inf
    for batch in range(first, last + 1):
        gains = instance.gains(batch)
        for count in [batch] if instance.exactly else range(min(batch, n) + 1):
            for chosen in map(list, combinations(range(n), count)):
                if instance.weights[chosen].sum() <= instance.capacity:
                    best = max(best, gains[chosen].sum())
    return best


@settings(max_examples=60, deadline=None)
@given(seeds, st.sampled_from([AverageQoE(), MaxMinQoE(), PerfectRequests()]))
def test_pruned_range_loses_nothing(
    make_snapshot: MakeSnapshot, seed: int, objective: Objective
) -> None:
    """Serving at most B, the optimum over [B_min, B_max] is that over all of 0 to n."""
    base_s = 0.05 + (seed % 7) * 0.02
    snapshot = make_snapshot(7, seed, latency=LatencyModel(base_s, 0.02, 1e-5, 1e-4))
    instance = step_instance(snapshot, objective)
    pruned = best_value(instance, instance.min_batch, instance.max_batch)
    assert pruned == pytest.approx(best_value(instance, 0, 7), abs=1e-12)


def test_pruning_happens(make_snapshot: MakeSnapshot) -> None:
    """B_min is the largest batch that is faster than the strictest reader: checked by hand."""
    # 0.1 + 0.01 B < 1/5 holds up to B = 9; context is free.
    latency = LatencyModel(0.1, 0.01, 0, 0)
    tds = np.full(20, 4.0)
    tds[3] = 5.0
    snapshot = make_snapshot(20, tds=tds, latency=latency, capacity_tokens=10**6)
    instance = step_instance(snapshot, AverageQoE())
    assert (instance.min_batch, instance.max_batch) == (9, 20)
    assert step_instance(snapshot, AverageQoE(), prune_batch=False).min_batch == 1

    slow = dataclasses.replace(snapshot, latency=LatencyModel(0.3, 0.01, 0, 0))
    assert step_instance(slow, AverageQoE()).min_batch == 1
    fast = dataclasses.replace(snapshot, latency=LatencyModel(0.01, 0, 0, 0))
    assert step_instance(fast, AverageQoE()).min_batch == 20


def test_costs_of_admission_forbid_pruning(make_snapshot: MakeSnapshot) -> None:
    """Restoring stalls a larger batch for more, so that B_min would lose: it is not applied."""
    snapshot = make_snapshot(7, seed=4, latency=LatencyModel(0.01, 0.001, 0, 1e-4))
    costly = AverageQoEWithPreemptionCost(admit_stall=30.0)
    instance = step_instance(snapshot, costly)
    unpruned = best_value(instance, 0, 7)
    assert instance.min_batch == 1
    assert best_value(instance, 1, instance.max_batch) == pytest.approx(unpruned, abs=1e-12)

    cheap = step_instance(snapshot, AverageQoE())
    assert cheap.min_batch > 1
    assert best_value(instance, cheap.min_batch, instance.max_batch) < unpruned - 1e-6


def test_exactly_with_pruning_can_lose(make_snapshot: MakeSnapshot) -> None:
    """The paper's "exactly B" with its B_min falls short of "at most B" when memory binds."""
    need = np.array([960, 960, 16, 16, 16, 16])
    snapshot = make_snapshot(
        6,
        need_tokens=need,
        capacity_tokens=1920,
        arrival_s=np.full(6, 90.0),
        generated_tokens=np.array([0, 0, 200, 200, 200, 200]),
        digested=np.zeros(6),
        area=np.zeros(6),
        restore_s=np.zeros(6),
        latency=LatencyModel(0.01, 0.001, 0, 1e-4),
    )
    at_most = step_instance(snapshot, AverageQoE())
    exactly = step_instance(snapshot, AverageQoE(), exactly=True)
    assert exactly.exactly
    assert not at_most.exactly
    best = best_value(at_most, at_most.min_batch, at_most.max_batch)
    held = best_value(exactly, exactly.min_batch, exactly.max_batch)
    assert exactly.min_batch == 5
    assert 0 < held < 0.9 * best


def test_weights_are_whole_blocks_or_tokens(make_snapshot: MakeSnapshot) -> None:
    """By default weights are need_tokens; without blocks, the context and one token."""
    snapshot = make_snapshot(15)
    instance = step_instance(snapshot, AverageQoE())
    assert (instance.weights == snapshot.need_tokens).all()
    assert instance.capacity == snapshot.capacity_tokens
    tokens = step_instance(snapshot, AverageQoE(), blocks=False)
    context = snapshot.prompt_tokens + snapshot.generated_tokens
    assert (tokens.weights == context + 1).all()


def test_gains_are_the_objectives(make_snapshot: MakeSnapshot) -> None:
    """The instance asks the objective for gains of its requests, in their order."""
    snapshot = make_snapshot(15)
    for objective in (AverageQoE(7.0), MaxMinQoE()):
        instance = step_instance(snapshot, objective)
        assert (instance.gains_at(3) == objective.gains(snapshot)(3)).all()


def test_max_batch_is_limited_by_engine_memory_and_requests(make_snapshot: MakeSnapshot) -> None:
    """The engine's limit, the most requests that fit, or all there are: the least of them."""
    need = np.array([64, 16, 32, 16, 160])
    snapshot = make_snapshot(5, need_tokens=need, capacity_tokens=64)
    assert step_instance(snapshot, AverageQoE()).max_batch == 3
    roomy = dataclasses.replace(snapshot, capacity_tokens=10**6)
    assert step_instance(roomy, AverageQoE()).max_batch == 5
    small = dataclasses.replace(roomy, max_batch=2)
    assert step_instance(small, AverageQoE()).max_batch == 2


@pytest.mark.parametrize("exactly", [False, True])
@pytest.mark.parametrize("n", [0, 3])
def test_nobody_or_nothing_that_fits(make_snapshot: MakeSnapshot, n: int, exactly: bool) -> None:
    """Without requests, or with too little memory for any, the instance is valid and empty."""
    snapshot = make_snapshot(3, capacity_tokens=1)
    fields = {
        field.name: getattr(snapshot, field.name)[:n]
        for field in dataclasses.fields(snapshot)
        if isinstance(getattr(snapshot, field.name), np.ndarray)
    }
    snapshot = dataclasses.replace(snapshot, **fields)
    instance = step_instance(snapshot, AverageQoE(), exactly=exactly)
    assert (instance.num_requests, instance.min_batch, instance.max_batch) == (n, 0, 0)
    assert instance.gains_at(0).shape == (n,)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 60), max_size=40), st.integers(0, 1200))
def test_most_that_fit_counts_the_lightest(weights: list[int], capacity: int) -> None:
    """The count equals adding up the weights in ascending order; the input stays as it was."""
    array = np.array(weights, dtype=np.int64)
    expected = int((np.cumsum(np.sort(array)) <= capacity).sum())
    assert most_that_fit(array, capacity) == expected
    assert (array == weights).all()
