"""How far from the limits a state may be that the items still to come can mend."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from solvers._exact.jit import inner, part

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from solvers._exact.core import Core


class Scope(NamedTuple):
    """What one round of deepening covers."""

    items: int  # the first items of the core only
    budget: float  # the largest loss of a set of flips
    most_idle: int  # the most slots that may stay free


class Moves(NamedTuple):
    """Items of one direction (all add a request, or all remove one): their weights, and sums."""

    weights: NDArray[np.float64]  # (k,), rising
    light: NDArray[np.float64]  # (k + 1,): the weight of the 0, 1, ..., k lightest
    heavy: NDArray[np.float64]  # (k + 1,): of the heaviest


@inner
def class_limits(
    core: Core, scope: Scope, item: int, parity: int, limits: NDArray[np.float64]
) -> None:
    """
    For each class of states the largest weight and the largest cost of one worth keeping.

    A class are the states that add the same number c of slots. What is still to come is
    every item of the other half and the own items below ``item``. limits[0, items + c] and
    limits[1, items + c] receive the largest weight and cost; limits[2:] is scratch. If slots
    don't matter all states are one class, and its limits are limits[:2, 0].
    """
    adds, removes = _moves_to_come(core, scope.items, item, parity)
    free_weight, memory_price = core.free_weight, core.dual.memory_price
    if core.stride == 0:
        limits[0, 0] = free_weight + removes.light[removes.weights.size]
        limits[1, 0] = scope.budget - memory_price * (free_weight - adds.light[adds.weights.size])
        return

    count = scope.items
    least, largest = limits[2], limits[3]
    _weight_changes(adds, removes, count, least, largest)
    if scope.most_idle > 0:
        # Slots may stay free: what is possible in a class is possible in larger ones.
        for c in range(1, 2 * count + 1):
            least[c] = min(least[c], least[c - 1])
            largest[c] = max(largest[c], largest[c - 1])
    for c in range(-count, count + 1):
        rest = core.free_slots - c
        if scope.most_idle > 0:
            rest = min(rest, count)
        reachable = -count <= rest <= count and least[rest + count] < np.inf
        limits[0, c + count] = -(2.0**60)
        limits[1, c + count] = -np.inf
        if reachable:
            limits[0, c + count] = free_weight - least[rest + count]
            limits[1, c + count] = scope.budget - memory_price * (
                free_weight - largest[rest + count]
            )


@part
def _moves_to_come(core: Core, count: int, item: int, parity: int) -> tuple[Moves, Moves]:
    """The items still to come, of the first ``count``: what they add, and what they remove."""
    adds = 0
    removes = 0
    add_weights = np.empty(count)
    remove_weights = np.empty(count)
    for position in range(core.by_weight.size):
        k = core.by_weight[position]
        if k >= count or (k % 2 == parity and k >= item):
            continue
        if core.keys[k] > 0:
            add_weights[adds] = core.keys[k] - core.stride
            adds += 1
        else:
            remove_weights[removes] = -core.keys[k] - core.stride
            removes += 1
    return _moves(add_weights[:adds]), _moves(remove_weights[:removes])


@part
def _moves(weights: NDArray[np.float64]) -> Moves:
    n = weights.size
    light = np.zeros(n + 1)
    heavy = np.zeros(n + 1)
    for k in range(n):
        light[k + 1] = light[k] + weights[k]
        heavy[k + 1] = heavy[k] + weights[n - 1 - k]
    return Moves(weights, light, heavy)


@part
def _weight_changes(
    adds: Moves,
    removes: Moves,
    count: int,
    least: NDArray[np.float64],
    largest: NDArray[np.float64],
) -> None:
    """
    The least and largest change of weight by moves that add c slots, at position count + c.

    For c slots |c| moves are forced; then swaps, an add and a remove, as long as they help.
    """
    for c in range(2 * count + 1):
        least[c] = np.inf
        largest[c] = -np.inf
    for c in range(-removes.weights.size, adds.weights.size + 1):
        up, down = max(c, 0), max(-c, 0)
        swaps = _swaps_that_help(removes, down, adds, up)
        least[count + c] = adds.light[up + swaps] - removes.heavy[down + swaps]
        swaps = _swaps_that_help(adds, up, removes, down)
        largest[count + c] = adds.heavy[up + swaps] - removes.light[down + swaps]


@inner
def _swaps_that_help(heavy: Moves, heavy_used: int, light: Moves, light_used: int) -> int:
    """How often the heaviest move left of one kind is heavier than the lightest of another."""
    low = 0
    high = min(light.weights.size - light_used, heavy.weights.size - heavy_used)
    while low < high:
        k = (low + high) // 2
        if heavy.weights[heavy.weights.size - 1 - heavy_used - k] > light.weights[light_used + k]:
            low = k + 1
        else:
            high = k
    return low
