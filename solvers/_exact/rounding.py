"""
From prices to a plan: take what is worth its prices, fill up, and make the one best swap.

Among the requests whose choice the prices leave open (small |reduced gain|) at most two are
fractional in the linear relaxation, so what rounding loses shrinks like 1/n.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from andes_opt.compilation import jit
from solvers._exact.core import core_of, first_sight
from solvers._exact.jit import inner
from solvers._exact.problem import copy_plan, plan_value

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from solvers._exact.problem import Dual, Knapsack


@inner
def round_and_swap(knapsack: Knapsack, dual: Dual, chosen: NDArray[np.bool_]) -> float:
    """
    Round the prices' preferences to a feasible plan.

    Parameters
    ----------
    knapsack, dual
        The batch size and its prices.
    chosen
        Receives the plan, (m,).

    Returns
    -------
    float
        The plan's value; -inf if rounding found none that is feasible.
    """
    g, weights, _, _, exactly = knapsack
    # What is outside the core stays as the base has it.
    core = core_of(knapsack, dual, first_sight(knapsack, dual))
    copy_plan(core.base, chosen)
    count = core.indices.size
    free = float(core.free_weight)
    left = core.free_slots
    lost = np.empty(count)
    profits = np.empty(count)
    item_weights = np.empty(count)
    for k in range(count):
        i = core.indices[k]
        profits[k], item_weights[k] = g[i], weights[i]
        lost[k] = -(g[i] - dual.memory_price * weights[i] - dual.slot_price)
        if chosen[i]:
            free += weights[i]
            left += 1
    if free < 0.0 or left < 0:
        return -np.inf

    inside = np.zeros(count, np.bool_)
    for k in np.argsort(lost):
        if left > 0 and item_weights[k] <= free and (exactly or profits[k] > 0.0):
            inside[k] = True
            free -= item_weights[k]
            left -= 1
    if exactly and left > 0:
        # The lightest of the others, whatever they cost.
        for k in core.by_weight:
            if left > 0 and not inside[k] and item_weights[k] <= free:
                inside[k] = True
                free -= item_weights[k]
                left -= 1
        if left > 0:
            return -np.inf
    leaves, enters = best_swap(profits, item_weights, inside, free)
    if enters >= 0:
        inside[leaves] = False
        inside[enters] = True
    for k in range(count):
        chosen[core.indices[k]] = inside[k]
    return plan_value(g, chosen)


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
