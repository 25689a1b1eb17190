"""
One batch size settled in full: the compiled search of the exact solver.

:func:`search_batch` lists sets of flips (:mod:`solvers._exact.lists`) within a loss budget
that it deepens until the lists provably hold every plan worth more than the best one known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from andes_opt.compilation import jit
from solvers._exact.jit import as_int, inner
from solvers._exact.lists import (
    NEEDS_ROOM,
    OUT_OF_TIME,
    Core,
    Lists,
    copy_plan,
    list_half,
    match_halves,
    new_lists,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Plans that are better by less than this share of max(1, |value|) are not worth finding.
SLACK = 2e-10

#: Items with which a search begins, and how many it looks at before it needs them all.
_FIRST_ITEMS = 24
_FIRST_SIGHT = 160

#: Lists longer than this deepen with care.
_LONG_LISTS = 4096
_MOST_STATES = 2**22

_UNIT_ROUNDOFF = 2.0**-53

#: Ties in the reduced gains that a search copes with as they come.
_FEW_TIES = 8


class Effort(NamedTuple):
    """When to stop, and what was done until then."""

    deadline_s: float
    clock: NDArray[np.int64]  # scratch of now_s
    statistics: NDArray[np.int64]  # see the positions below


#: Positions in ``Effort.statistics``.
EXAMINED, SEARCHED, STATES, DEEPENED, PRICED, JUMPS = range(6)


@inner
def cutoff_of(value: float, gap: float) -> float:
    """What a plan must be worth to be wanted beside one of ``value``."""
    return value + gap * max(1.0, abs(value))


@inner
def least_wanted(value: float, unit: float, noise: float, gap: float) -> float:
    """
    What every plan above the cutoff is worth more than, if values are multiples of ``unit``.

    The incumbent may come from another batch size, whose gains have another unit or none, so
    it need not be a multiple itself.
    """
    cutoff = cutoff_of(value, gap)
    if unit == 0.0:
        return cutoff
    return max(cutoff, unit * (np.ceil((cutoff - noise) / unit - 1e-9) - 1e-6) - noise)


@inner
def search_batch(
    g: NDArray[np.float64],
    weights: NDArray[np.float64],
    capacity: float,
    slots: int,
    exactly: bool,
    memory_price: float,
    slot_price: float,
    bound: float,
    incumbent: float,
    depth_hint: float,
    gap: float,
    lists: Lists,
    chosen: NDArray[np.bool_],
    effort: Effort,
) -> tuple[float, float, float, Lists]:
    """
    The best plan at one batch size that is worth more than the incumbent, if there is one.

    Parameters
    ----------
    g, weights, capacity, slots, exactly
        The knapsack; weights and capacity are whole numbers.
    memory_price, slot_price, bound
        Prices and the bound that they prove.
    incumbent
        Value of the best plan known.
    depth_hint
        Total loss of the best plan at a neighbouring batch size, or 0.
    gap
        Plans that are better by less than this share of max(1, |value|) are not wanted.
    lists
        Room to work in.
    chosen
        Receives the plan, (n,), if one is found.
    effort
        Deadline and statistics.

    Returns
    -------
    value, bound, loss, lists
        Value of the plan found, else of the incumbent; a proven bound on this batch size;
        the plan's total loss, inf if none was found; the lists, which may have grown.
    """
    if slots == 0:
        # The empty plan is all there is, and it is worth nothing, without any rounding.
        copy_plan(np.zeros(g.size, np.bool_), chosen)
        return max(0.0, incumbent), min(0.0, bound), np.inf, lists
    value = incumbent
    cutoff = cutoff_of(incumbent, gap)

    # Gains that are whole multiples of a unit (counts of requests, say) make values multiples.
    unit, noise = common_unit(g)
    proven = bound
    if unit > 0.0:
        proven = min(bound, unit * np.floor((bound + noise) / unit + 1e-9) + noise)
    if proven <= cutoff:
        return value, proven, np.inf, lists

    # The first look is at the requests of the smallest loss only.
    sight = min(
        bound - least_wanted(value, unit, noise, gap),
        first_sight(g, weights, memory_price, slot_price),
    )
    budget = 1.25 * depth_hint
    best_loss = np.inf
    settled = False
    while not settled:
        core = core_of(g, weights, capacity, slots, exactly, memory_price, slot_price, sight)
        if core.indices.size > 0 and not core.fits_keys:
            break
        found, proven, budget, settled, lists = _deepen(
            g,
            core,
            exactly,
            bound,
            value,
            proven,
            budget,
            sight,
            unit,
            noise,
            gap,
            lists,
            chosen,
            effort,
        )
        if found > value:
            value = found
            best_loss = bound - value
        if budget < 0.0:
            break
        sight = max(bound - least_wanted(value, unit, noise, gap), 0.0) + core.hidden
    return value, proven, best_loss, lists


@inner
def first_sight(
    g: NDArray[np.float64],
    weights: NDArray[np.float64],
    memory_price: float,
    slot_price: float,
) -> float:
    """A loss that about _FIRST_SIGHT requests do not exceed, by a sample; inf if few do."""
    n = g.size
    if n <= 2 * _FIRST_SIGHT:
        return np.inf
    stride = n // 128
    sample = np.empty((n + stride - 1) // stride)
    for k in range(sample.size):
        i = k * stride
        sample[k] = abs(g[i] - memory_price * weights[i] - slot_price)
    return float(np.sort(sample)[_FIRST_SIGHT * sample.size // n])


@inner
def core_of(
    g: NDArray[np.float64],
    weights: NDArray[np.float64],
    capacity: float,
    slots: int,
    exactly: bool,
    memory_price: float,
    slot_price: float,
    sight: float,
) -> Core:
    """The base set, and the requests whose flip alone loses at most ``sight``."""
    n = g.size
    # Losses as small as the rounding of the prices are ties; what that may hide is added
    # to the budget.
    tiny = 1e-11 * max(abs(slot_price), np.abs(g).max())
    hidden = 0.0
    base = np.empty(n, np.bool_)
    free_weight = capacity
    free_slots = slots
    count = 0
    ties = 0
    for i in range(n):
        reduced = g[i] - memory_price * weights[i] - slot_price
        base[i] = reduced > 0.0
        free_weight -= weights[i] if reduced > 0.0 else 0.0
        free_slots -= reduced > 0.0
        count += abs(reduced) <= sight
        ties += abs(reduced) <= tiny
    indices = np.empty(count, np.int64)
    losses = np.empty(count)
    k = 0
    for i in range(n):
        loss = abs(g[i] - memory_price * weights[i] - slot_price)
        if loss <= sight:
            indices[k] = i
            losses[k] = loss if loss > tiny else 0.0
            hidden += loss if loss <= tiny else 0.0
            k += 1
    if ties > _FEW_TIES:
        free_weight, free_slots = _arrange_ties(
            weights, base, free_weight, free_slots, indices, losses
        )
    order = np.argsort(losses)
    indices = indices[order]
    losses = np.maximum(losses[order], 0.0)

    # One integer for count and weight. If there are slots for everybody counts don't matter.
    item_weights = weights[indices]
    adds = 0
    for k in range(count):
        adds += not base[indices[k]]
    counted = exactly or slot_price != 0.0 or free_slots < adds
    span = 4.0 * (abs(free_weight) + 1.0 + item_weights.sum())
    fits_keys = span * (2 * count + 2 * abs(free_slots) + 4) < 2.0**61
    stride = int(span) if counted and fits_keys else 0
    keys = np.empty(count, np.int64)
    costs = np.empty(count)
    for k in range(count):
        i = indices[k]
        if base[i]:
            keys[k] = -stride - int(weights[i])
            costs[k] = g[i] - slot_price
        else:
            keys[k] = stride + int(weights[i])
            costs[k] = slot_price - g[i]
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
        memory_price,
        slot_price,
    )


@inner
def _deepen(
    g: NDArray[np.float64],
    core: Core,
    exactly: bool,
    bound: float,
    value: float,
    proven: float,
    budget: float,
    sight: float,
    unit: float,
    noise: float,
    gap: float,
    lists: Lists,
    chosen: NDArray[np.bool_],
    effort: Effort,
) -> tuple[float, float, float, bool, Lists]:
    """
    Deepen the loss budget over the items of a core.

    Returns the best value, the proven bound, the next budget (< 0 if time or room ran out),
    whether the batch size is settled, and the lists. It is not settled if the budget has
    outgrown the core's ``sight``.
    """
    count = core.losses.size
    widest = bound - least_wanted(value, unit, noise, gap) + core.hidden
    limits = np.empty((4, 2 * count + 3))
    cap = _FIRST_ITEMS
    if count > _FIRST_ITEMS:
        budget = max(budget, core.losses[_FIRST_ITEMS])
        if budget > 0.0:
            cap = min(4 * _FIRST_ITEMS, int(np.searchsorted(core.losses, budget, side="right")))
            cap = max(cap, _FIRST_ITEMS)
    else:
        budget = max(budget, sight)
    if widest <= 1.5 * budget:
        budget = widest
    while True:
        effort.statistics[DEEPENED] += 1
        if budget > sight and sight < widest:
            return value, proven, budget, False, lists
        within = int(np.searchsorted(core.losses, budget, side="right"))
        used = min(within, cap)
        most_idle = 0
        if core.stride > 0 and not exactly:
            most_idle = max(0, core.free_slots) + used
            if core.slot_price > 0.0:
                most_idle = int(min(most_idle, budget / core.slot_price))
        size_a, row_a, spare, pool = list_half(
            lists,
            core,
            as_int(0),
            used,
            budget,
            most_idle,
            as_int(0),
            as_int(0),
            as_int(2),
            limits,
            effort.deadline_s,
            effort.clock,
        )
        size_b, row_b = size_a, as_int(1)
        if size_a >= 0:
            size_b, row_b, spare, pool = list_half(
                lists,
                core,
                as_int(1),
                used,
                budget,
                most_idle,
                pool,
                as_int(1),
                spare,
                limits,
                effort.deadline_s,
                effort.clock,
            )
        room = lists.keys.shape[1]
        if size_b == OUT_OF_TIME or (size_b == NEEDS_ROOM and room >= _MOST_STATES):
            return value, proven, -1.0, False, lists
        if size_b == NEEDS_ROOM:
            lists = new_lists(4 * room)
            continue

        effort.statistics[STATES] += size_a + size_b
        _, a, b = match_halves(lists, core, row_a, size_a, row_b, size_b, most_idle, widest)
        if a >= 0:
            total = _plan_of(g, core, lists, row_a, a, row_b, b, chosen, value)
            if total > value:
                value = total
                widest = bound - least_wanted(value, unit, noise, gap) + core.hidden
        # Whatever is missing in the lists loses more than this.
        complete = budget if used == within else min(budget, core.losses[used])
        if complete >= widest:
            doubt = _doubt(core, used)
            # Plans that differ in worth do so by a unit, so smaller doubts are none.
            doubt = doubt if doubt + noise > 0.4 * unit else 0.0
            return value, min(proven, cutoff_of(value, gap) + doubt), budget, True, lists
        proven = min(proven, bound - complete + core.hidden)

        brief = size_a + size_b < _LONG_LISTS
        if used == within:
            further = (1.7 if brief else 1.3) * budget
            if within < count:
                further = max(further, core.losses[min(count - 1, within + 4)])
            else:
                further = max(further, 2.0**-10 * widest)
            budget = widest if widest <= 1.5 * further else further
        cap = max(int((1.75 if brief else 1.15) * cap), cap + 1)


@inner
def _doubt(core: Core, used: int) -> float:
    """By how much rounding may have made the best pair of states look worse than another."""
    size = core.memory_price * abs(core.free_weight)
    for k in range(used):
        size += abs(core.costs[k]) + abs(core.slot_price)
    return 2.0 * _UNIT_ROUNDOFF * (used + 8) * size


@inner
def _plan_of(
    g: NDArray[np.float64],
    core: Core,
    lists: Lists,
    row_a: int,
    a: int,
    row_b: int,
    b: int,
    chosen: NDArray[np.bool_],
    incumbent: float,
) -> float:
    """Value of a pair of states; ``chosen`` receives its plan if it beats the incumbent."""
    plan = core.base.copy()
    for node in (lists.nodes[row_a, a], lists.nodes[row_b, b]):
        while node >= 0:
            i = core.indices[lists.flips[node]]
            plan[i] = not plan[i]
            node = lists.parents[node]
    value = 0.0
    for i in range(g.size):
        value += g[i] if plan[i] else 0.0
    if value > incumbent:
        copy_plan(plan, chosen)
    return value


@jit(error_model="numpy")
def common_unit(g: NDArray[np.float64]) -> tuple[float, float]:
    """The largest number of which all gains are whole multiples, and what rounding may add.

    (0, 0) if there is none worth the name: gains that are real numbers share no unit, which
    shows after two or three of them.
    """
    largest = 0.0
    for i in range(g.size):
        largest = max(largest, abs(g[i]))
    least = 1e-5 * largest
    unit = 0.0
    for i in range(g.size):
        a, b = abs(g[i]), unit
        while b > 0.0:
            rest = abs(a - b * np.round(a / b))
            a, b = b, (rest if rest > 1e-8 * largest else 0.0)
        unit = a
        if 0.0 < unit < least:
            return 0.0, 0.0
    if unit == 0.0:
        return 0.0, 0.0
    unit = largest / np.round(largest / unit)
    noise = 0.0
    for i in range(g.size):
        noise += abs(g[i] - unit * np.round(g[i] / unit))
    if noise > 1e-10 * largest:
        return 0.0, 0.0
    return unit, noise


@inner
def _arrange_ties(
    weights: NDArray[np.float64],
    base: NDArray[np.bool_],
    free_weight: float,
    free_slots: int,
    item_index: NDArray[np.int64],
    item_losses: NDArray[np.float64],
) -> tuple[float, int]:
    """Choose which of the requests that lose nothing when flipped belong to the base set.

    Rounding noise would choose at random, far from feasible. Instead the base takes as many
    as there are slots, neighbours in weight, as heavy as fit; and those next to the ends of
    this window come first in the search. (item_losses becomes slightly negative for that.)
    """
    where = np.flatnonzero(item_losses == 0.0)
    size = np.empty(where.size)
    for k in range(where.size):
        i = item_index[where[k]]
        size[k] = weights[i]
        if base[i]:
            base[i] = False
            free_weight += weights[i]
            free_slots += 1
    order = np.argsort(size)
    want = min(max(free_slots, 0), where.size)
    start = 0
    used = 0.0
    for k in range(want):
        used += size[order[k]]
    while start + want < where.size:
        more = size[order[start + want]] - size[order[start]]
        if want == 0 or used + more > free_weight:
            break
        used += more
        start += 1
    for k in range(where.size):
        inside = start <= k < start + want
        i = item_index[where[order[k]]]
        if inside:
            base[i] = True
        away = min(abs(k - start + 0.5), abs(k - start - want + 0.5))
        item_losses[where[order[k]]] = -1.0 / (1.0 + away)
    return free_weight - used, free_slots - want
