"""
One batch size settled in full: a search for the sets of flips that lose little.

The lists of the search (:mod:`solvers._exact.lists`) hold every set of flips within a loss
budget. The budget is deepened until the lists provably hold every plan that is wanted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from solvers._exact.core import core_of, first_sight
from solvers._exact.jit import as_bool, inner, part
from solvers._exact.limits import Scope
from solvers._exact.lists import (
    NEEDS_ROOM,
    OUT_OF_TIME,
    list_halves,
    match_halves,
    new_lists,
)
from solvers._exact.problem import UNIT_ROUNDOFF, copy_plan, plan_value
from solvers._exact.worth import Worth, bound_in_units, common_unit, cutoff_of, widest_loss

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from solvers._exact.core import Core
    from solvers._exact.lists import Half, Lists, Pair
    from solvers._exact.problem import Dual, Effort, Knapsack, Sweep

#: Items with which a search begins.
_FIRST_ITEMS = 24

#: Lists longer than this deepen with care.
_LONG_LISTS = 4096
_MOST_STATES = 2**22


class Found(NamedTuple):
    """What a search found out about one batch size."""

    value: float  # of the plan found, else of the incumbent
    bound: float  # proven for this batch size
    loss: float  # total loss of the plan found; inf if none was


class Progress(NamedTuple):
    """Where deepening has got to."""

    value: float  # of the best plan known
    proven: float  # bound on this batch size
    budget: float  # for the next round; < 0 if time or room ran out
    settled: bool


@part
def search_batch(sweep: Sweep, knapsack: Knapsack, dual: Dual, lists: Lists) -> tuple[Found, Lists]:
    """
    The best plan at one batch size that is worth more than the best so far, if there is one.

    Parameters
    ----------
    sweep
        The best plan so far; ``scratch.chosen`` receives the plan.
    knapsack, dual
        The batch size, its prices and the bound that they prove.
    lists
        Room to work in; what comes back may have grown.
    """
    incumbent, chosen = sweep.best.value, sweep.scratch.chosen
    if knapsack.slots == 0:
        # The empty plan is all there is, and it is worth nothing, without any rounding.
        copy_plan(np.zeros(chosen.size, np.bool_), chosen)
        return Found(max(0.0, incumbent), min(0.0, dual.bound), np.inf), lists
    unit, noise = common_unit(knapsack.gains)
    worth = Worth(dual.bound, unit, noise, sweep.gap)
    # The best plan at a neighbouring batch size lost about as much.
    now = Progress(incumbent, bound_in_units(worth), 1.25 * sweep.best.depth, as_bool(False))
    loss = np.inf
    if now.proven <= cutoff_of(incumbent, sweep.gap):
        return Found(incumbent, now.proven, loss), lists

    # The first look is at the requests of the smallest loss only.
    sight = min(widest_loss(worth, incumbent), first_sight(knapsack, dual))
    while not now.settled:
        core = core_of(knapsack, dual, sight)
        if core.indices.size > 0 and not core.fits_keys:
            break
        before = now.value
        now, lists = _deepen(knapsack, core, worth, sight, now, lists, chosen, sweep.effort)
        if now.value > before:
            loss = dual.bound - now.value
        if now.budget < 0.0:
            break
        sight = max(widest_loss(worth, now.value), 0.0) + core.hidden
    return Found(now.value, now.proven, loss), lists


@inner
def _deepen(
    knapsack: Knapsack,
    core: Core,
    worth: Worth,
    sight: float,
    now: Progress,
    lists: Lists,
    chosen: NDArray[np.bool_],
    effort: Effort,
) -> tuple[Progress, Lists]:
    """
    Deepen the loss budget over the items of a core.

    The batch size is not settled if time or room ran out, or if the budget has outgrown
    the core's ``sight``.
    """
    value, proven = now.value, now.proven
    widest = widest_loss(worth, value) + core.hidden
    budget, cap = _first_round(core, now.budget, sight, widest)
    limits = np.empty((4, 2 * core.losses.size + 3))
    while True:
        effort.counts.deepened += 1
        if budget > sight and sight < widest:
            return Progress(value, proven, budget, as_bool(False)), lists
        within = items_within(core.losses, budget)
        used = min(within, cap)
        scope = Scope(used, budget, _most_idle(knapsack, core, used, budget))
        half_a, half_b = list_halves(lists, core, scope, limits, effort)
        room = lists.keys.shape[1]
        if half_b.size == OUT_OF_TIME or (half_b.size == NEEDS_ROOM and room >= _MOST_STATES):
            return Progress(value, proven, -1.0, as_bool(False)), lists
        if half_b.size == NEEDS_ROOM:
            lists = new_lists(4 * room)
            continue

        effort.counts.states += half_a.size + half_b.size
        pair = match_halves(lists, core, half_a, half_b, scope.most_idle, widest)
        if pair.a >= 0:
            plan = _plan_of(core, lists, half_a, half_b, pair)
            total = plan_value(knapsack.gains, plan)
            if total > value:
                copy_plan(plan, chosen)
                value = total
                widest = widest_loss(worth, value) + core.hidden
        # Whatever is missing in the lists loses more than this.
        complete = budget if used == within else min(budget, core.losses[used])
        if complete >= widest:
            doubt = _doubt(core, used)
            # Plans that differ in worth do so by a unit, so smaller doubts are none.
            doubt = doubt if doubt + worth.noise > 0.4 * worth.unit else 0.0
            proven = min(proven, cutoff_of(value, worth.gap) + doubt)
            return Progress(value, proven, budget, as_bool(True)), lists
        proven = min(proven, worth.bound - complete + core.hidden)

        brief = half_a.size + half_b.size < _LONG_LISTS
        if used == within:
            budget = _next_budget(core, budget, within, widest, brief)
        cap = max(int((1.75 if brief else 1.15) * cap), cap + 1)


@part
def _first_round(core: Core, budget: float, sight: float, widest: float) -> tuple[float, int]:
    """The budget and the most items to begin with."""
    cap = _FIRST_ITEMS
    if core.losses.size > _FIRST_ITEMS:
        budget = max(budget, core.losses[_FIRST_ITEMS])
        if budget > 0.0:
            cap = min(4 * _FIRST_ITEMS, items_within(core.losses, budget))
            cap = max(cap, _FIRST_ITEMS)
    else:
        budget = max(budget, sight)
    return widest if widest <= 1.5 * budget else budget, cap


@part
def _next_budget(core: Core, budget: float, within: int, widest: float, brief: bool) -> float:
    """The budget after one that covers ``within`` items."""
    further = (1.7 if brief else 1.3) * budget
    if within < core.losses.size:
        further = max(further, core.losses[min(core.losses.size - 1, within + 4)])
    else:
        further = max(further, 2.0**-10 * widest)
    return widest if widest <= 1.5 * further else further


@inner
def items_within(losses: NDArray[np.float64], budget: float) -> int:
    """How many of the rising losses do not exceed a budget."""
    low, high = 0, losses.size
    while low < high:
        middle = (low + high) // 2
        if losses[middle] <= budget:
            low = middle + 1
        else:
            high = middle
    return low


@part
def _most_idle(knapsack: Knapsack, core: Core, used: int, budget: float) -> int:
    """The most slots that a plan within the budget may leave free."""
    if core.stride == 0 or knapsack.exactly:
        return 0
    most = max(0, core.free_slots) + used
    if core.dual.slot_price > 0.0:
        most = int(min(most, budget / core.dual.slot_price))
    return most


@part
def _doubt(core: Core, used: int) -> float:
    """By how much rounding may have made the best pair of states look worse than another."""
    size = core.dual.memory_price * abs(core.free_weight)
    for k in range(used):
        size += abs(core.costs[k]) + abs(core.dual.slot_price)
    return 2.0 * UNIT_ROUNDOFF * (used + 8) * size


@part
def _plan_of(core: Core, lists: Lists, half_a: Half, half_b: Half, pair: Pair) -> NDArray[np.bool_]:
    """The plan of a pair of states, (m,)."""
    plan = core.base.copy()
    for node in (lists.nodes[half_a.row, pair.a], lists.nodes[half_b.row, pair.b]):
        while node >= 0:
            i = core.indices[lists.flips[node]]
            plan[i] = not plan[i]
            node = lists.parents[node]
    return plan
