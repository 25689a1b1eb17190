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

from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from solvers.clock import now_s

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: What :func:`extend_half` returns instead of a size.
NEEDS_ROOM = -1
OUT_OF_TIME = -2

_LARGEST_KEY = 2**62
_CLOCK_PERIOD = 4096


@njit(cache=True)
def list_half(
    keys: NDArray[np.int64],
    losses: NDArray[np.float64],
    costs: NDArray[np.float64],
    nodes: NDArray[np.int32],
    parents: NDArray[np.int32],
    flips: NDArray[np.int32],
    pool: int,
    row: int,
    spare: int,
    first: int,
    count: int,
    item_keys: NDArray[np.int64],
    item_losses: NDArray[np.float64],
    item_costs: NDArray[np.float64],
    budget: float,
    stride: int,
    deadline_s: float,
    clock: NDArray[np.int64],
) -> tuple[int, int, int, int]:
    """
    List every non-dominated set of flips of every second item, within a loss budget.

    A state has a key (count * stride + weight of what the flips add), a loss (sum of |r|)
    and a cost (what the flips lose in gain, plus mu per slot); loss - cost is lambda times
    the weight added. Of two states with the same count the heavier is dominated unless
    its cost is lower.

    Parameters
    ----------
    keys, losses, costs, nodes
        The lists, (3, room) each; row ``row`` receives the result.
    parents, flips, pool
        Trees of flips: node k flips item flips[k] on top of node parents[k]; ``pool``
        nodes exist already.
    row, spare
        Rows to work in.
    first, count
        The half: items first, first + 2, ... below ``count``, by rising loss.
    item_keys, item_losses, item_costs
        The items, by rising loss.
    budget
        Largest loss of a state.
    stride
        Key per count; 0 if counts don't matter.
    deadline_s, clock
        When to give up, and scratch to read the clock.

    Returns
    -------
    size, row, spare, pool
        Size of the list or a negative code, the row it is in, the other row, nodes used.
    """
    room = keys.shape[1]
    keys[row, 0] = 0
    losses[row, 0] = 0.0
    costs[row, 0] = 0.0
    nodes[row, 0] = -1
    size = 1
    work = 0
    half_stride = stride // 2

    # Items of large loss first: their states are few while the list is short.
    last = count - 1 if (count - 1 - first) % 2 == 0 else count - 2
    for item in range(last, first - 1, -2):
        limit = budget - item_losses[item]
        if limit < 0.0:
            continue
        if 2 * size > room or pool + size > parents.size:
            return NEEDS_ROOM, row, spare, pool
        work += size
        if work > _CLOCK_PERIOD:
            work = 0
            if now_s(clock) > deadline_s:
                return OUT_OF_TIME, row, spare, pool

        step, loss_step, cost_step = item_keys[item], item_losses[item], item_costs[item]
        old_keys, new_keys = keys[row], keys[spare]
        old_losses, new_losses = losses[row], losses[spare]
        old_costs, new_costs = costs[row], costs[spare]
        old_nodes, new_nodes = nodes[row], nodes[spare]
        i = 0
        j = 0
        out = 0
        boundary = -_LARGEST_KEY if stride > 0 else _LARGEST_KEY
        cheapest = np.inf
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
                boundary = ((key + half_stride) // stride + 1) * stride - half_stride
                cheapest = np.inf
            if cost < cheapest:
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


@njit(cache=True)
def match_halves(
    keys: NDArray[np.int64],
    costs: NDArray[np.float64],
    row_a: int,
    size_a: int,
    row_b: int,
    size_b: int,
    free_weight: int,
    free_slots: int,
    stride: int,
    most_idle: int,
    memory_price: float,
    slot_price: float,
    best: float,
) -> tuple[float, int, int]:
    """
    The cheapest pair of states that respects both limits.

    Within a count the costs of a list fall as the weight rises, so the best partner of a
    state is the heaviest that fits: one pass with two pointers per number of idle slots.

    Parameters
    ----------
    keys, costs
        The lists, as :func:`list_half` left them.
    row_a, size_a, row_b, size_b
        The two lists.
    free_weight, free_slots
        What the base leaves free (negative if it uses too much).
    stride
        Key per count; 0 if counts don't matter.
    most_idle
        Largest number of slots that may stay free.
    memory_price, slot_price
        The prices.
    best
        Only pairs of a smaller total loss count.

    Returns
    -------
    loss, a, b
        The total loss (flips, free tokens and free slots) and the two states; a = -1 if
        no pair is better than ``best``.
    """
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
