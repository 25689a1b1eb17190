"""
The lists of a search: sets of flips within a loss budget, and the best pair of them.

The items are split into two halves. Each half's sets of flips are listed, sorted by (slots,
weight) and freed of dominated ones; then one pass over both lists finds the best pair that
fits (Horowitz and Sahni 1974, with the loss budget of Balas and Zemel's core and the
dominance of Pisinger's minknap).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from andes_opt.compilation import jit
from solvers._exact.jit import as_int, inner, part
from solvers._exact.limits import class_limits
from solvers._exact.problem import out_of_time

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from solvers._exact.core import Core
    from solvers._exact.limits import Scope
    from solvers._exact.problem import Effort

#: What stands in the place of a list's size if there is none.
NEEDS_ROOM = -1
OUT_OF_TIME = -2

_LARGEST_KEY = 2**62
_CLOCK_PERIOD = 4096
_LONG = 512


class Lists(NamedTuple):
    """Room for the lists of both halves; rows are lists, three of them in turn."""

    keys: NDArray[np.int64]  # (3, room): slots * stride + weight of what the flips add
    losses: NDArray[np.float64]  # (3, room): sum of |reduced gain| over the flips
    costs: NDArray[np.float64]  # (3, room): gain lost by the flips, plus the price of slots
    nodes: NDArray[np.int32]  # (3, room): the set of flips, as a node of the tree below
    parents: NDArray[np.int32]  # (4 room,): a node flips one item more than its parent,
    flips: NDArray[np.int32]  # (4 room,): this one


class Half(NamedTuple):
    """The list of one half."""

    size: int  # NEEDS_ROOM or OUT_OF_TIME if it could not be finished
    row: int  # where it is
    spare: int  # the row that is free
    nodes: int  # nodes of the tree in use, by both halves


class Pair(NamedTuple):
    """A state of either list; -1 if there is none."""

    a: int
    b: int


@jit(error_model="numpy")
def new_lists(room: int) -> Lists:
    """Empty lists for ``room`` states each."""
    return Lists(
        np.empty((3, room), np.int64),
        np.empty((3, room), np.float64),
        np.empty((3, room), np.float64),
        np.empty((3, room), np.int32),
        np.empty(4 * room, np.int32),
        np.empty(4 * room, np.int32),
    )


@part
def list_halves(
    lists: Lists, core: Core, scope: Scope, limits: NDArray[np.float64], effort: Effort
) -> tuple[Half, Half]:
    """
    List every non-dominated set of flips of each half, within a loss budget.

    The halves are every second item, and the others. If a list could not be finished the
    second says so.

    Parameters
    ----------
    lists, core
        Where to work, and the items.
    scope
        How many items, and the budget.
    limits
        Scratch, (4, at least 2 * items + 3).
    effort
        When to give up.
    """
    a = b = Half(as_int(1), as_int(0), as_int(2), as_int(0))
    for first in range(2):
        empty = Half(as_int(1), first, b.spare, b.nodes)
        b = _list_half(lists, core, scope, first, empty, limits, effort)
        if first == 0:
            a = b
        if b.size < 0:
            break
    return a, b


@inner
def _list_half(
    lists: Lists,
    core: Core,
    scope: Scope,
    first: int,
    half: Half,
    limits: NDArray[np.float64],
    effort: Effort,
) -> Half:
    """The list of items first, first + 2, ...; ``half`` says where to work."""
    lists.keys[half.row, 0] = 0
    lists.losses[half.row, 0] = 0.0
    lists.costs[half.row, 0] = 0.0
    lists.nodes[half.row, 0] = -1
    work = 0
    limited = False
    # Items of large loss first: their states are few while the list is short.
    last = scope.items - 1 - (scope.items - 1 - first) % 2
    for item in range(last, first - 1, -2):
        if scope.budget - core.losses[item] < 0.0:
            continue
        size = half.size
        if 2 * size > lists.keys.shape[1] or half.nodes + size > lists.parents.size:
            return Half(as_int(NEEDS_ROOM), half.row, half.spare, half.nodes)
        work += size
        if work > _CLOCK_PERIOD:
            work = 0
            if out_of_time(effort):
                return Half(as_int(OUT_OF_TIME), half.row, half.spare, half.nodes)
        if size > max(_LONG, 4 * scope.items):
            # Worth a look at what the items that are still to come can mend.
            class_limits(core, scope, item, first, limits)
            limited = True
        half = _with_item(lists, core, scope, item, half, limits, limited)
    return half


@part
def _with_item(
    lists: Lists,
    core: Core,
    scope: Scope,
    item: int,
    half: Half,
    limits: NDArray[np.float64],
    limited: bool,
) -> Half:
    """
    Merge a list with its copy in which an item is flipped too, and drop what is dominated.

    Of two states with the same slots the heavier is dominated unless its cost is lower.
    (loss - cost is the memory price times the weight added, up to a constant, for states of
    the same slots.)
    """
    size, row, spare, pool = half
    step, loss_step, cost_step = core.keys[item], core.losses[item], core.costs[item]
    old_keys, new_keys = lists.keys[row], lists.keys[spare]
    old_losses, new_losses = lists.losses[row], lists.losses[spare]
    old_costs, new_costs = lists.costs[row], lists.costs[spare]
    old_nodes, new_nodes = lists.nodes[row], lists.nodes[spare]
    parents, flips = lists.parents, lists.flips
    limit = scope.budget - loss_step
    stride, half_stride = core.stride, core.stride // 2
    i = 0
    j = 0
    out = 0
    boundary = -_LARGEST_KEY if stride > 0 else _LARGEST_KEY
    cheapest = np.inf
    top_key = _LARGEST_KEY
    top_cost = np.inf
    if limited and stride == 0:
        top_key, top_cost = int(limits[0, 0]), limits[1, 0]
    while j < size and old_losses[j] > limit:
        j += 1
    while i < size or j < size:
        if j >= size or (i < size and old_keys[i] <= old_keys[j] + step):
            key, loss, cost, node = old_keys[i], old_losses[i], old_costs[i], old_nodes[i]
            i += 1
            fresh = False
        else:
            key = old_keys[j] + step
            loss = old_losses[j] + loss_step
            cost = old_costs[j] + cost_step
            node = old_nodes[j]
            fresh = True
            j += 1
            while j < size and old_losses[j] > limit:
                j += 1
        if key >= boundary:
            # The next class: states of the same slots.
            slots = (key + half_stride) // stride
            boundary = (slots + 1) * stride - half_stride
            cheapest = np.inf
            if limited:
                top_key = slots * stride + int(limits[0, slots + scope.items])
                top_cost = limits[1, slots + scope.items]
        if cost < cheapest and cost <= top_cost and key <= top_key:
            cheapest = cost
            if out > 0 and new_keys[out - 1] == key:
                out -= 1
            if fresh:
                parents[pool] = node
                flips[pool] = item
                node = pool
                pool += 1
            new_keys[out] = key
            new_losses[out] = loss
            new_costs[out] = cost
            new_nodes[out] = node
            out += 1
    return Half(out, spare, row, pool)


@part
def match_halves(
    lists: Lists, core: Core, half_a: Half, half_b: Half, most_idle: int, loss: float
) -> Pair:
    """
    The pair of states with the least total loss, below ``loss``, that respects both limits.

    A total loss is that of the flips, the free tokens and the free slots, of which there may
    be ``most_idle``. Among states of the same slots costs fall as the weight rises, so the
    best partner of a state is the heaviest that fits: one pass with two pointers per number
    of free slots.
    """
    stride, free_weight, free_slots = core.stride, core.free_weight, core.free_slots
    keys_a, keys_b = lists.keys[half_a.row], lists.keys[half_b.row]
    costs_a, costs_b = lists.costs[half_a.row], lists.costs[half_b.row]
    best_a, best_b = -1, -1
    for idle in range(most_idle + 1):
        target = (free_slots - idle) * stride + free_weight if stride > 0 else free_weight
        least = (free_slots - idle) * stride - stride // 2 if stride > 0 else -_LARGEST_KEY
        constant = core.dual.memory_price * free_weight + core.dual.slot_price * idle
        b = half_b.size - 1
        for a in range(half_a.size):
            need = target - keys_a[a]
            while b >= 0 and keys_b[b] > need:
                b -= 1
            if b < 0:
                break
            if keys_b[b] >= least - keys_a[a]:
                total = costs_a[a] + costs_b[b] + constant
                if total < loss:
                    loss, best_a, best_b = total, a, b
    return Pair(best_a, best_b)
