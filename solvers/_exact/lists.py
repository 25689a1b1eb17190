"""
Meet in the middle over deviations: the search of the exact solver at one batch size.

Given prices, call the *base* set the requests of positive reduced gain
r_i = g_i - lambda w_i - mu. Every plan is the base with some requests flipped, and is worth

    L(lambda, mu) - sum of |r_i| over the flipped - lambda * (free tokens) - mu * (free slots).

So a plan that is worth more than the incumbent flips requests whose |r_i| (their *losses*)
add up to less than L - incumbent. These requests are few. They are split into two halves;
each half's sets of flips with a loss within the budget are listed, sorted by (count,
weight) and freed of dominated ones; then one pass over both lists finds the best pair
that fits (Horowitz and Sahni 1974, with the loss budget of Balas and Zemel's core and the
dominance of Pisinger's minknap).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from andes_opt.compilation import jit
from solvers._exact.jit import inner
from solvers.clock import now_s

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: What :func:`extend_half` returns instead of a size.
NEEDS_ROOM = -1
OUT_OF_TIME = -2

_LARGEST_KEY = 2**62
_CLOCK_PERIOD = 4096
_LONG = 512


class Lists(NamedTuple):
    """Room for the lists of both halves; rows are lists, three of them in turn."""

    keys: NDArray[np.int64]  # (3, room): count * stride + weight of what the flips add
    losses: NDArray[np.float64]  # (3, room): sum of |r| over the flips
    costs: NDArray[np.float64]  # (3, room): gain lost by the flips, plus mu per slot
    nodes: NDArray[np.int32]  # (3, room): the set of flips, as a node of the tree below
    parents: NDArray[np.int32]  # (4 room,): a node flips one item more than its parent,
    flips: NDArray[np.int32]  # (4 room,): this one


class Core(NamedTuple):
    """A base set and the items (requests that may be flipped), by rising loss."""

    indices: NDArray[np.int64]  # (items,): the request
    keys: NDArray[np.int64]  # (items,): +-(stride + weight)
    losses: NDArray[np.float64]  # (items,)
    costs: NDArray[np.float64]  # (items,)
    by_weight: NDArray[np.int64]  # (items,): the items by rising weight
    base: NDArray[np.bool_]  # (n,)
    free_weight: int  # what the base leaves free; negative if it uses too much
    free_slots: int
    stride: int  # key per count; 0 if counts don't matter
    fits_keys: bool  # False if count and weight don't fit into one integer
    hidden: float  # losses that count as 0 but may be this much in total
    memory_price: float
    slot_price: float


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


@inner
def copy_plan(source: NDArray[np.bool_], target: NDArray[np.bool_]) -> None:
    """``target[:] = source``, which takes Numba a second longer to compile."""
    for i in range(source.size):
        target[i] = source[i]


@inner
def list_half(
    lists: Lists,
    core: Core,
    first: int,
    count: int,
    budget: float,
    most_idle: int,
    pool: int,
    row: int,
    spare: int,
    limits: NDArray[np.float64],
    deadline_s: float,
    clock: NDArray[np.int64],
) -> tuple[int, int, int, int]:
    """
    List every non-dominated set of flips of every second item, within a loss budget.

    Of two states with the same count the heavier is dominated unless its cost is lower.
    (loss - cost is lambda times the weight added, for states of one count up to a constant.)

    Parameters
    ----------
    lists, core
        Where to work, and the items.
    first, count
        The half: items first, first + 2, ... below ``count``.
    budget
        Largest loss of a state.
    most_idle
        Largest number of slots that may stay free.
    pool
        Nodes of the tree that are in use.
    row, spare
        Rows of the lists to work in.
    limits
        Scratch, (4, at least 2 * count + 3).
    deadline_s, clock
        When to give up, and scratch to read the clock.

    Returns
    -------
    size, row, spare, pool
        Size of the list or a negative code, the row it is in, the other row, nodes used.
    """
    keys, losses, costs, nodes, parents, flips = lists
    stride = core.stride
    room = keys.shape[1]
    keys[row, 0] = 0
    losses[row, 0] = 0.0
    costs[row, 0] = 0.0
    nodes[row, 0] = -1
    size = 1
    work = 0
    half_stride = stride // 2
    limited = False

    # Items of large loss first: their states are few while the list is short.
    last = count - 1 if (count - 1 - first) % 2 == 0 else count - 2
    for item in range(last, first - 1, -2):
        limit = budget - core.losses[item]
        if limit < 0.0:
            continue
        if 2 * size > room or pool + size > parents.size:
            return NEEDS_ROOM, row, spare, pool
        work += size
        if work > _CLOCK_PERIOD:
            work = 0
            if now_s(clock) > deadline_s:
                return OUT_OF_TIME, row, spare, pool

        if size > max(_LONG, 4 * count):
            # Worth a look at what the items that are still to come can mend.
            _class_limits(core, item, count, first, budget, most_idle, limits)
            limited = True

        step, loss_step, cost_step = core.keys[item], core.losses[item], core.costs[item]
        old_keys, new_keys = keys[row], keys[spare]
        old_losses, new_losses = losses[row], losses[spare]
        old_costs, new_costs = costs[row], costs[spare]
        old_nodes, new_nodes = nodes[row], nodes[spare]
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
                # The next count begins.
                number = (key + half_stride) // stride
                boundary = (number + 1) * stride - half_stride
                cheapest = np.inf
                if limited:
                    top_key = number * stride + int(limits[0, number + count])
                    top_cost = limits[1, number + count]
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
        size = out
        row, spare = spare, row
    return size, row, spare, pool


@inner
def _class_limits(
    core: Core,
    item: int,
    count: int,
    parity: int,
    budget: float,
    most_idle: int,
    limits: NDArray[np.float64],
) -> None:
    """
    For each count the largest weight and the largest cost of a state worth keeping.

    What is still to come is every item of the other half and the own items below ``item``.
    limits[0, count + c] and limits[1, count + c] receive the largest weight and cost at a
    count c; limits[2:] is scratch.
    """
    item_keys, by_weight, stride = core.keys, core.by_weight, core.stride
    free_weight, free_slots, memory_price = core.free_weight, core.free_slots, core.memory_price
    adds = 0
    removes = 0
    add_weights = np.empty(count)
    remove_weights = np.empty(count)
    for position in range(by_weight.size):
        k = by_weight[position]
        if k >= count or (k % 2 == parity and k >= item):
            continue
        if item_keys[k] > 0:
            add_weights[adds] = item_keys[k] - stride
            adds += 1
        else:
            remove_weights[removes] = -item_keys[k] - stride
            removes += 1
    # light[k] and heavy[k]: the k lightest, and the k heaviest, together.
    light_adds, heavy_adds = _partial_sums(add_weights[:adds])
    light_removes, heavy_removes = _partial_sums(remove_weights[:removes])
    if stride == 0:
        limits[0, 0] = free_weight + light_removes[removes]
        limits[1, 0] = budget - memory_price * (free_weight - light_adds[adds])
        return

    # Net change c of the count: |c| forced moves, then swaps as long as they help.
    least = limits[2]
    largest = limits[3]
    for c in range(-count, count + 1):
        least[c + count] = np.inf
        largest[c + count] = -np.inf
    for c in range(-removes, adds + 1):
        up, down = max(c, 0), max(-c, 0)
        low, high = 0, min(adds - up, removes - down)
        while low < high:
            k = (low + high) // 2
            if remove_weights[removes - 1 - down - k] > add_weights[up + k]:
                low = k + 1
            else:
                high = k
        least[c + count] = light_adds[up + low] - heavy_removes[down + low]
        low, high = 0, min(adds - up, removes - down)
        while low < high:
            k = (low + high) // 2
            if add_weights[adds - 1 - up - k] > remove_weights[down + k]:
                low = k + 1
            else:
                high = k
        largest[c + count] = heavy_adds[up + low] - light_removes[down + low]

    if most_idle > 0:
        # Slots may stay free: what is possible at a count is possible at larger ones.
        for c in range(-count + 1, count + 1):
            least[c + count] = min(least[c + count], least[c + count - 1])
            largest[c + count] = max(largest[c + count], largest[c + count - 1])
    for c in range(-count, count + 1):
        rest = free_slots - c
        if most_idle > 0:
            rest = min(rest, count)
        reachable = -count <= rest <= count and least[rest + count] < np.inf
        limits[0, c + count] = -(2.0**60)
        limits[1, c + count] = -np.inf
        if reachable:
            limits[0, c + count] = free_weight - least[rest + count]
            limits[1, c + count] = budget - memory_price * (free_weight - largest[rest + count])


@inner
def _partial_sums(
    rising: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums of the k first and of the k last entries, k = 0 ... n."""
    n = rising.size
    first = np.zeros(n + 1)
    last = np.zeros(n + 1)
    for k in range(n):
        first[k + 1] = first[k] + rising[k]
        last[k + 1] = last[k] + rising[n - 1 - k]
    return first, last


@inner
def match_halves(
    lists: Lists,
    core: Core,
    row_a: int,
    size_a: int,
    row_b: int,
    size_b: int,
    most_idle: int,
    best: float,
) -> tuple[float, int, int]:
    """
    The cheapest pair of states that respects both limits.

    Within a count the costs of a list fall as the weight rises, so the best partner of a
    state is the heaviest that fits: one pass with two pointers per number of idle slots.

    Parameters
    ----------
    lists, core
        The lists, as :func:`list_half` left them, and the items.
    row_a, size_a, row_b, size_b
        The two lists.
    most_idle
        Largest number of slots that may stay free.
    best
        Only pairs of a smaller total loss count.

    Returns
    -------
    loss, a, b
        The total loss (flips, free tokens and free slots) and the two states; a = -1 if
        no pair is better than ``best``.
    """
    keys, costs = lists.keys, lists.costs
    stride, free_weight, free_slots = core.stride, core.free_weight, core.free_slots
    memory_price, slot_price = core.memory_price, core.slot_price
    keys_a, keys_b = keys[row_a], keys[row_b]
    costs_a, costs_b = costs[row_a], costs[row_b]
    best_a, best_b = -1, -1
    for idle in range(most_idle + 1):
        target = (free_slots - idle) * stride + free_weight if stride > 0 else free_weight
        least = (free_slots - idle) * stride - stride // 2 if stride > 0 else -_LARGEST_KEY
        constant = memory_price * free_weight + slot_price * idle
        b = size_b - 1
        for a in range(size_a):
            need = target - keys_a[a]
            while b >= 0 and keys_b[b] > need:
                b -= 1
            if b < 0:
                break
            if keys_b[b] >= least - keys_a[a]:
                loss = costs_a[a] + costs_b[b] + constant
                if loss < best:
                    best, best_a, best_b = loss, a, b
    return best, best_a, best_b
