"""
From prices to a plan: take what is worth its prices, fill up, and make the one best swap.

Among the requests whose choice the prices leave open (small |reduced gain|) at most two are
fractional in the linear relaxation, so what rounding loses shrinks like 1/n.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from andes_opt.compilation import jit
from solvers._exact.jit import inner
from solvers._exact.lists import copy_plan

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from solvers._exact.lists import Core


@inner
def round_and_swap(
    g: NDArray[np.float64],
    weights: NDArray[np.float64],
    capacity: float,
    slots: int,
    exactly: bool,
    core: Core,
    chosen: NDArray[np.bool_],
) -> float:
    """
    Round the prices' preferences to a feasible plan.

    Parameters
    ----------
    g, weights, capacity, slots, exactly
        The knapsack at one batch size.
    core
        The requests near the margin; what is outside stays as the base has it.
    chosen
        Receives the plan, (n,).

    Returns
    -------
    float
        The plan's value; -inf if rounding found none that is feasible.
    """
    copy_plan(core.base, chosen)
    count = core.indices.size
    free = float(core.free_weight)
    left = core.free_slots
    reduced = np.empty(count)
    for k in range(count):
        i = core.indices[k]
        reduced[k] = g[i] - core.memory_price * weights[i] - core.slot_price
        if chosen[i]:
            chosen[i] = False
            free += weights[i]
            left += 1
    if free < 0.0 or left < 0:
        return -np.inf

    inside = np.zeros(count, np.bool_)
    for k in np.argsort(-reduced):
        i = core.indices[k]
        if left > 0 and weights[i] <= free and (exactly or g[i] > 0.0):
            inside[k] = True
            free -= weights[i]
            left -= 1
    if exactly and left > 0:
        # The lightest of the others, whatever they cost.
        for k in core.by_weight:
            i = core.indices[k]
            if left > 0 and not inside[k] and weights[i] <= free:
                inside[k] = True
                free -= weights[i]
                left -= 1
        if left > 0:
            return -np.inf
    leaves, enters = best_swap(g[core.indices], weights[core.indices], inside, free)
    if enters >= 0:
        inside[leaves] = False
        inside[enters] = True
    for k in range(count):
        chosen[core.indices[k]] = inside[k]
    value = 0.0
    for i in range(g.size):
        value += g[i] if chosen[i] else 0.0
    return value


@jit(error_model="numpy")
def best_swap(
    profits: NDArray[np.float64],
    weights: NDArray[np.float64],
    chosen: NDArray[np.bool_],
    free: float,
) -> tuple[int, int]:
    """
    The exchange of one chosen request for another that gains most.

    Parameters
    ----------
    profits, weights
        Gains and KV tokens, (n,).
    chosen
        The selection, (n,).
    free
        KV tokens that the selection leaves free.

    Returns
    -------
    leaves, enters
        Positions of the two requests; (-1, -1) if no swap gains anything.
    """
    order = np.argsort(weights)
    gain, leaves, enters = 0.0, -1, -1
    # Best outsider among those light enough, as the limit grows with the one that leaves.
    best = -1
    reach = 0
    for position in range(order.size):
        i = order[position]
        if not chosen[i]:
            continue
        while reach < order.size and weights[order[reach]] <= weights[i] + free:
            j = order[reach]
            if not chosen[j] and (best < 0 or profits[j] > profits[best]):
                best = j
            reach += 1
        if best >= 0 and profits[best] - profits[i] > gain:
            gain, leaves, enters = profits[best] - profits[i], i, best
    return leaves, enters
