"""The core of a batch size: the requests whose flip loses little, and the base they flip."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from solvers._exact.jit import inner, part
from solvers._exact.problem import largest_size
from solvers._exact.selection import kth_largest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from solvers._exact.problem import Dual, Knapsack

#: How many requests a search looks at before it needs them all.
_FIRST_SIGHT = 160

#: Requests that lose nothing when flipped, up to which a search copes with them as they come.
_FEW_TIES = 8


class Core(NamedTuple):
    """A base and the items (requests that may be flipped), by rising loss."""

    indices: NDArray[np.int64]  # (items,): the request
    keys: NDArray[np.int64]  # (items,): +-(stride + weight) of what the flip adds
    losses: NDArray[np.float64]  # (items,): |reduced gain|
    costs: NDArray[np.float64]  # (items,): gain lost by the flip, plus the slot price if it adds
    by_weight: NDArray[np.int64]  # (items,): the items by rising weight
    base: NDArray[np.bool_]  # (m,)
    free_weight: int  # what the base leaves free; negative if it uses too much
    free_slots: int
    stride: int  # key of a slot; 0 if slots don't matter
    fits_keys: bool  # False if slots and weight don't fit into one integer
    hidden: float  # losses that count as 0 but may be this much in total
    dual: Dual


@inner
def core_of(knapsack: Knapsack, dual: Dual, sight: float) -> Core:
    """
    The base of a batch size, and the requests whose flip alone loses at most ``sight``.

    Losses as small as the rounding of the prices count as 0, as ties; what that may hide is
    stated, and added to the search's loss budget.
    """
    g, weights, free_weight, free_slots, _ = knapsack
    tiny = 1e-11 * max(abs(dual.slot_price), largest_size(g))
    base = np.empty(g.size, np.bool_)
    count = 0
    ties = 0
    for i in range(g.size):
        reduced = g[i] - dual.memory_price * weights[i] - dual.slot_price
        base[i] = reduced > 0.0
        free_weight -= weights[i] if reduced > 0.0 else 0.0
        free_slots -= reduced > 0.0
        count += abs(reduced) <= sight
        ties += abs(reduced) <= tiny
    items = np.empty(count, np.int64)
    item_losses = np.empty(count)
    hidden = 0.0
    k = 0
    for i in range(g.size):
        loss = abs(g[i] - dual.memory_price * weights[i] - dual.slot_price)
        if loss <= sight:
            items[k] = i
            item_losses[k] = loss if loss > tiny else 0.0
            hidden += loss if loss <= tiny else 0.0
            k += 1
    if ties > _FEW_TIES:
        free_weight, free_slots = _arrange_ties(
            weights, base, free_weight, free_slots, items, item_losses
        )

    order = np.argsort(item_losses)
    indices = np.empty(count, np.int64)
    losses = np.empty(count)
    item_weights = np.empty(count)
    for k in range(count):
        indices[k] = items[order[k]]
        losses[k] = max(item_losses[order[k]], 0.0)
        item_weights[k] = weights[indices[k]]
    keys, costs, stride, fits_keys = _keys_and_costs(
        knapsack, dual, base, free_weight, free_slots, indices
    )
    return Core(
        indices,
        keys,
        losses,
        costs,
        np.argsort(item_weights),
        base,
        int(free_weight),
        free_slots,
        stride,
        fits_keys,
        hidden,
        dual,
    )


@inner
def first_sight(knapsack: Knapsack, dual: Dual) -> float:
    """A loss that about _FIRST_SIGHT requests do not exceed, by a sample; inf if few do."""
    g, weights = knapsack.gains, knapsack.weights
    n = g.size
    if n <= 2 * _FIRST_SIGHT:
        return np.inf
    stride = n // 128
    size = (n + stride - 1) // stride
    sample = np.empty(size)
    for k in range(size):
        i = k * stride
        sample[k] = abs(g[i] - dual.memory_price * weights[i] - dual.slot_price)
    return kth_largest(sample, size, size - _FIRST_SIGHT * size // n, np.empty(size))


@part
def _keys_and_costs(
    knapsack: Knapsack,
    dual: Dual,
    base: NDArray[np.bool_],
    free_weight: float,
    free_slots: int,
    indices: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.float64], int, bool]:
    """
    Keys and costs of the items, a slot's share of a key, and whether the keys fit.

    A key is one integer for slots and weight. If there are slots for all, only weight counts.
    """
    g, weights = knapsack.gains, knapsack.weights
    count = indices.size
    adds = 0
    total = 0.0
    for k in range(count):
        adds += not base[indices[k]]
        total += weights[indices[k]]
    counted = knapsack.exactly or dual.slot_price != 0.0 or free_slots < adds
    span = 4.0 * (abs(free_weight) + 1.0 + total)
    fits_keys = span * (2 * count + 2 * abs(free_slots) + 4) < 2.0**61
    stride = int(span) if counted and fits_keys else 0
    keys = np.empty(count, np.int64)
    costs = np.empty(count)
    for k in range(count):
        i = indices[k]
        if base[i]:
            keys[k] = -stride - int(weights[i])
            costs[k] = g[i] - dual.slot_price
        else:
            keys[k] = stride + int(weights[i])
            costs[k] = dual.slot_price - g[i]
    return keys, costs, stride, fits_keys


@part
def _arrange_ties(
    weights: NDArray[np.float64],
    base: NDArray[np.bool_],
    free_weight: float,
    free_slots: int,
    items: NDArray[np.int64],
    item_losses: NDArray[np.float64],
) -> tuple[float, int]:
    """
    Choose which of the requests that lose nothing when flipped belong to the base.

    Rounding noise would choose at random, far from feasible. Instead the base takes as many
    as there are slots, neighbours in weight, as heavy as fit; and those next to the ends of
    this window come first in the search. (item_losses becomes slightly negative for that.)
    """
    where = np.empty(items.size, np.int64)
    size = np.empty(items.size)
    ties = 0
    for k in range(items.size):
        if item_losses[k] != 0.0:
            continue
        i = items[k]
        where[ties] = k
        size[ties] = weights[i]
        ties += 1
        if base[i]:
            base[i] = False
            free_weight += weights[i]
            free_slots += 1
    order = np.argsort(size[:ties])
    want = min(max(free_slots, 0), ties)
    start = 0
    used = 0.0
    for k in range(want):
        used += size[order[k]]
    while start + want < ties:
        more = size[order[start + want]] - size[order[start]]
        if want == 0 or used + more > free_weight:
            break
        used += more
        start += 1
    for k in range(ties):
        item = where[order[k]]
        if start <= k < start + want:
            base[items[item]] = True
        away = min(abs(k - start + 0.5), abs(k - start - want + 0.5))
        item_losses[item] = -1.0 / (1.0 + away)
    return free_weight - used, free_slots - want
