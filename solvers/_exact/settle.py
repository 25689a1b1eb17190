"""How one batch size is settled, and what that means for the best plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from solvers._exact.jit import inner, part
from solvers._exact.problem import Knapsack, copy_plan
from solvers._exact.rounding import round_and_swap
from solvers._exact.search import Found, search_batch

if TYPE_CHECKING:
    from solvers._exact.lists import Lists
    from solvers._exact.problem import Dual, Sweep


@part
def settle(sweep: Sweep, knapsack: Knapsack, batch: int, dual: Dual, lists: Lists) -> Lists:
    """
    Search one batch size, or only round; the best plan and the proved bound follow.

    Returns the lists, which may have grown.
    """
    found, lists = look_into(sweep, knapsack, batch, dual, lists)
    sweep.best.settled = max(sweep.best.settled, found.bound)
    if found.loss < np.inf:
        sweep.best.depth = found.loss
    return lists


@inner
def look_into(
    sweep: Sweep, knapsack: Knapsack, batch: int, dual: Dual, lists: Lists
) -> tuple[Found, Lists]:
    """As :func:`settle`, but the proved bound stays as it is; what was found comes back too."""
    best = sweep.best
    sweep.effort.counts.searched += 1
    if not sweep.search:
        round_at(sweep, knapsack, batch, dual)
        return Found(best.value, dual.bound, np.inf), lists
    found, lists = search_batch(sweep, knapsack, dual, lists)
    take_better(sweep, found.value, batch, dual.memory_price)
    return found, lists


@part
def round_at(sweep: Sweep, knapsack: Knapsack, batch: int, dual: Dual) -> None:
    """Round the prices at one batch size; a better plan becomes the best."""
    g, weights, capacity, slots, _ = knapsack
    # Rounding fills all slots only if it must.
    knapsack = Knapsack(g, weights, capacity, slots, sweep.step.exactly)
    value = round_and_swap(knapsack, dual, sweep.scratch.chosen)
    take_better(sweep, value, batch, dual.memory_price)


@part
def take_better(sweep: Sweep, value: float, batch: int, memory_price: float) -> None:
    """Take over the plan in ``scratch.chosen`` if it is worth more than the best one."""
    best = sweep.best
    if value > best.value:
        best.value, best.batch_size, best.memory_price = value, batch, memory_price
        copy_plan(sweep.scratch.chosen, sweep.serve)
