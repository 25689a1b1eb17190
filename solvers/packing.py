"""
Compiled packing by density over all batch sizes: the core of the greedy solvers.

One pass packs a fixed batch size B: requests are taken in the order of a key (gain per
KV token, say), and what happens at a *misfit*, a request that can't be taken, is a rule.
Without ``exactly`` a misfit is a request that needs more memory than is free. With it a
misfit is a request after which the remaining slots could not be filled any more, not even
by the lightest requests left; these fill what the order leaves open. So the passes never
fail where a plan exists.

Between neighbouring batch sizes the order hardly changes. It is kept and repaired by
insertion sort, which is what makes a sweep over hundreds of batch sizes affordable.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from andes_opt.compilation import inner, jit
from andes_opt.formulation import most_that_fit
from andes_opt.gains import compiled, fill_gains
from andes_opt.plan import make_plan, no_solution
from solvers.sweep import batch_range, upper_bound

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from andes_opt.instance import Instance
    from andes_opt.plan import Plan

#: Rules at a misfit: stop there; skip it and go on; or skip it while less than 90 % of
#: the memory is used, and stop from then on.
STOP = 0
SKIP = 1
SKIP_UNTIL_FULL = 2
_FULL = 0.9

#: Batch sizes packed between two looks at the clock.
_CHUNK = 16


@dataclass(frozen=True, slots=True, eq=False)
class Packing:
    """
    The best of all packed batch sizes.

    Parameters
    ----------
    serve, batch_size, value
        The best selection, (n,), its batch size and value; value -inf if none was found.
    first, values
        Batch size ``first + r`` was packed with value ``values[r]``, (k,).
    build_s
        Wall-clock seconds spent preparing.
    """

    serve: NDArray[np.bool_]
    batch_size: int
    value: float
    first: int
    values: NDArray[np.float64]
    build_s: float


def greedy_plan(
    instance: Instance,
    *,
    rule: int,
    weight_power: float = 1.0,
    proven_bound: bool = False,
    time_limit_s: float | None = None,
) -> Plan:
    """
    Pack every batch size by density and return the best as a plan.

    Parameters
    ----------
    instance
        The instance.
    rule, weight_power
        As for :func:`pack_all_batches`.
    proven_bound
        If True the plan carries the dual bound over all batch sizes, else inf.
    time_limit_s
        Wall-clock limit, looked at every 16 batch sizes. The first 16 are always packed.

    Raises
    ------
    ValueError
        If the gain model returns the wrong number of gains, NaN or infinity.
    """
    started = time.perf_counter()
    deadline_s = math.inf if time_limit_s is None else started + time_limit_s
    packing = pack_all_batches(
        instance, rule=rule, weight_power=weight_power, deadline_s=deadline_s
    )
    if packing is None:
        return no_solution(instance, proven=True, solve_s=time.perf_counter() - started)
    bound = math.inf
    if proven_bound:
        bound = upper_bound(instance, above=packing.value, deadline_s=deadline_s)
    return make_plan(
        instance,
        packing.serve,
        packing.batch_size,
        bound=bound,
        build_s=packing.build_s,
        solve_s=time.perf_counter() - started - packing.build_s,
        info={"batch_sizes_examined": packing.values.size},
    )


def pack_all_batches(
    instance: Instance, *, rule: int, weight_power: float = 1.0, deadline_s: float = math.inf
) -> Packing | None:
    """
    Pack every batch size by density; None if no plan exists.

    Parameters
    ----------
    instance
        The instance.
    rule
        STOP, SKIP or SKIP_UNTIL_FULL: what to do at a misfit.
    weight_power
        Requests are taken by decreasing gain / weight ** weight_power, ties by index.
    deadline_s
        When to stop, on the clock of ``time.perf_counter``.
    """
    started = time.perf_counter()
    n = instance.num_requests
    most = most_that_fit(instance.weights, instance.capacity)
    if instance.exactly and most < instance.min_batch:
        return None

    # Batch size 0 is the incumbent to begin with where it is allowed.
    serve = np.zeros(n, dtype=np.bool_)
    batch_size = instance.min_batch
    value = -math.inf if instance.exactly and batch_size > 0 else 0.0
    first, last = batch_range(instance, most)
    if first > last:
        return Packing(serve, batch_size, value, first, np.empty(0), 0.0)

    kind, params, scalars = compiled(instance.gains, first, last)
    if params.shape[1] != n:
        raise ValueError(f"the gain model returned {params.shape[1]} gains for {n} requests.")
    by_weight = np.argsort(instance.weights, kind="stable")
    order = np.arange(n)
    values = np.empty(last - first + 1)
    build_s = time.perf_counter() - started

    begin = first
    while begin <= last:
        end = last if deadline_s == math.inf else min(begin + _CHUNK - 1, last)
        batch_size, value = _pack_range(
            kind,
            params,
            scalars,
            instance.weights,
            by_weight,
            instance.capacity,
            begin,
            instance.exactly,
            rule,
            weight_power,
            order,
            values[begin - first : end - first + 1],
            serve,
            batch_size,
            value,
        )
        begin = end + 1
        if time.perf_counter() >= deadline_s:
            break
    return Packing(serve, batch_size, value, first, values[: begin - first], build_s)


@jit(error_model="numpy")
def _pack_range(
    kind: int,
    params: NDArray[np.float64],
    scalars: NDArray[np.float64],
    weights: NDArray[np.int64],
    by_weight: NDArray[np.int64],
    capacity: int,
    first: int,
    exactly: bool,
    rule: int,
    weight_power: float,
    order: NDArray[np.int64],
    values: NDArray[np.float64],
    serve: NDArray[np.bool_],
    batch_size: int,
    value: float,
) -> tuple[int, float]:
    """
    Pack the batch sizes first, first + 1, ...; fill ``values`` and improve the incumbent.

    ``order`` is any permutation and holds the last order afterwards; ``serve`` is
    overwritten by a better selection, whose batch size and value are returned.
    """
    n = weights.size
    gains = np.empty(n)
    key = np.empty(n)
    inside = np.empty(n, dtype=np.bool_)
    weight_in_key = weights**weight_power

    for row in range(values.size):
        batch = first + row
        fill_gains(kind, params, scalars, batch, gains)
        for i in range(n):
            key[i] = gains[i] / weight_in_key[i]
        repair_order(order, key)
        packed = pack_in_order(
            order, gains, weights, by_weight, capacity, batch, exactly, rule, inside
        )
        values[row] = packed
        if packed > value:
            batch_size, value = batch, packed
            serve[:] = inside
    return batch_size, value


@jit
def repair_order(order: NDArray[np.int64], key: NDArray[np.float64]) -> None:
    """
    Sort a permutation by decreasing key, ties by increasing index.

    Parameters
    ----------
    order
        Permutation of the indices, (n,), sorted in place; cheap if it is almost sorted.
    key
        Sort key by index, (n,).
    """
    n = order.size
    keys = key[order]  # moves with the order, so that comparing needs no look-up
    if _insert(order, keys, 1, 8 * n):
        return
    # Far from sorted, where insertion alone takes quadratic time: Shell sort, with gaps
    # that shrink by Tokuda's 4/9.
    gap = n // 2
    while gap > 1:
        _insert(order, keys, gap, n * n)
        gap = max(1, gap * 4 // 9)
    _insert(order, keys, 1, n * n)


@jit
def _insert(order: NDArray[np.int64], keys: NDArray[np.float64], gap: int, moves: int) -> bool:
    """Insertion sort of every gap-th entry; False if it gave up after so many moves."""
    for position in range(gap, order.size):
        item_key = keys[position]
        if keys[position - gap] > item_key:
            continue
        item = order[position]
        hole = position
        while hole >= gap:
            other_key = keys[hole - gap]
            other = order[hole - gap]
            if other_key > item_key or (other_key == item_key and other < item):
                break
            keys[hole] = other_key
            order[hole] = other
            hole -= gap
            moves -= 1
        keys[hole] = item_key
        order[hole] = item
        if moves < 0:
            return False
    return True


@jit
def pack_in_order(
    order: NDArray[np.int64],
    gains: NDArray[np.float64],
    weights: NDArray[np.int64],
    by_weight: NDArray[np.int64],
    capacity: int,
    slots: int,
    exactly: bool,
    rule: int,
    inside: NDArray[np.bool_],
) -> float:
    """
    Take requests in the given order; return the value packed.

    Parameters
    ----------
    order
        Requests in the order they are tried, (n,), n > 0; unless ``exactly``, those without a
        positive gain last: they are left out.
    gains, weights
        (n,).
    by_weight
        The requests from lightest to heaviest, (n,).
    capacity, slots
        KV tokens and slots there are.
    exactly
        Whether to fill all slots; the ``slots`` lightest must fit then.
    rule
        STOP, SKIP or SKIP_UNTIL_FULL.
    inside
        Receives the selection, (n,).
    """
    inside[:] = False
    if exactly:
        return _pack_exactly(order, gains, weights, by_weight, capacity, slots, rule, inside)
    return _pack_at_most(order, gains, weights, by_weight, capacity, slots, rule, inside)


@inner
def _pack_at_most(
    order: NDArray[np.int64],
    gains: NDArray[np.float64],
    weights: NDArray[np.int64],
    by_weight: NDArray[np.int64],
    capacity: int,
    slots: int,
    rule: int,
    inside: NDArray[np.bool_],
) -> float:
    lightest = weights[by_weight[0]]  # with less memory than that free, nothing fits any more
    free = capacity
    left = slots
    value = 0.0
    for i in order:
        if left == 0 or free < lightest or gains[i] <= 0.0:
            break
        if weights[i] > free:
            if rule == STOP or (rule == SKIP_UNTIL_FULL and capacity - free >= _FULL * capacity):
                break
            continue
        inside[i] = True
        free -= weights[i]
        left -= 1
        value += gains[i]
    return value


@inner
def _pack_exactly(
    order: NDArray[np.int64],
    gains: NDArray[np.float64],
    weights: NDArray[np.int64],
    by_weight: NDArray[np.int64],
    capacity: int,
    slots: int,
    rule: int,
    inside: NDArray[np.bool_],
) -> float:
    # Reserved for the open slots: by_weight[:edge] as far as not inside already. `planned`
    # is the memory of taken and reserved requests together; it never exceeds capacity.
    rank = np.empty(by_weight.size, dtype=np.int64)  # position of each request in by_weight
    edge = slots
    planned = 0
    for position in range(by_weight.size):
        i = by_weight[position]
        rank[i] = position
        planned += weights[i] if position < edge else 0
    used = 0
    open_slots = slots
    for i in order:
        if open_slots == 0:
            break
        if rank[i] >= edge:
            # Not reserved: it takes the place of the heaviest reserved request.
            while inside[by_weight[edge - 1]]:
                edge -= 1
            swapped = planned + weights[i] - weights[by_weight[edge - 1]]
            if swapped > capacity:
                if rule == STOP or (rule == SKIP_UNTIL_FULL and used >= _FULL * capacity):
                    break
                continue
            planned = swapped
            edge -= 1
        inside[i] = True
        used += weights[i]
        open_slots -= 1

    for position in range(edge):
        inside[by_weight[position]] = True
    value = 0.0
    for i in range(inside.size):
        if inside[i]:
            value += gains[i]
    return value
