"""
All batch sizes: the compiled driver of the exact solver.

If no gain rises with B, the sweep starts at the batch size with the largest dual bound,
settles it, and goes outwards in both directions. There "at most B" may be read as "exactly B"
for every B above the smallest one (fewer requests are worth at least as much at a smaller
batch size), which makes bounds fall off on both sides. Ranges of batch sizes are jumped
over when one pair of prices rules out all of them:

* gains that do not rise are at most those at the range's low end;
* gains that are concave in the token rate lie below the line through two of their points,
  outside of them. Such a line makes the bound a convex function along the range (B is a convex
  function of the rate 1/latency(B)), so its two ends decide.

Otherwise every batch size is bounded, and settled in the order of its bound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from andes_opt.gains import token_rate
from solvers._exact.batch import (
    EXAMINED,
    JUMPS,
    PRICED,
    SEARCHED,
    core_of,
    cutoff_of,
    first_sight,
    search_batch,
)
from solvers._exact.jit import as_bool, as_int, inner, inner_sums
from solvers._exact.lists import copy_plan
from solvers._exact.peak import Step, find_peak, gains_into
from solvers._exact.rounding import round_and_swap
from solvers.clock import now_s
from solvers.prices import evaluate_prices, find_prices, update_prices

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from solvers._exact.batch import Effort
    from solvers._exact.lists import Lists
    from solvers._exact.peak import Model

_UNIT_ROUNDOFF = 2.0**-53

#: Bounds that rise so many times in a row, outwards, are another hill.
_RISES = 3


@inner
def sweep_outwards(
    model: Model,
    step: Step,
    concave: bool,
    start_batch: int,
    start_price: float,
    search: bool,
    gap: float,
    serve: NDArray[np.bool_],
    batch_size: int,
    value: float,
    lists: Lists,
    effort: Effort,
) -> tuple[float, int, float, float, Lists]:
    """
    The best plan, if no gain rises with the batch size.

    Parameters
    ----------
    model, step
        The instance.
    concave
        True if the gains are concave in the token rate that ``model.scalars`` describe.
    start_batch, start_price
        Batch size and memory price to start from; < 0 if there are none.
    search
        If False a batch size is not settled but rounded (:mod:`solvers._exact.rounding`).
    gap
        Plans that are better by less than this share of max(1, |value|) are not wanted.
    serve, batch_size, value
        The incumbent; ``serve`` (m,) is overwritten by the best plan.
    lists, effort
        Room to work in, deadline and statistics.

    Returns
    -------
    value, batch_size, bound, memory_price, lists
        The plan's value and batch size, a proven bound over all batch sizes, the memory
        price at the plan, and the lists, which may have grown.
    """
    weights, capacity, most, first, last, exactly = step
    m = weights.size
    g = np.empty(m)
    neighbour = np.empty(m)
    work = np.empty((5, m))
    chosen = np.zeros(m, np.bool_)
    settled = -np.inf
    depth = 0.0
    peak, peak_price, peak_slot = find_peak(
        model, step, start_batch, start_price, g, neighbour, work, effort
    )
    best_price = peak_price
    for direction in (1, -1):
        batch = peak if direction == 1 else peak - 1
        end = last if direction == 1 else first
        # Prices known best, the ones before, and where: they drift steadily with B.
        price, slot_price, at = peak_price, peak_slot, peak
        price_drift, slot_drift = 0.0, 0.0
        price_margin, slot_margin = 0.02 * price, 0.02 * abs(slot_price)
        stride = as_int(1)
        rises = 0
        bound_before = np.inf
        while first <= batch <= last:
            gains_into(model, batch, g)
            slots = min(batch, most)
            full = exactly or batch > first
            if now_s(effort.clock) > effort.deadline_s:
                if batch == peak and settled == -np.inf:
                    # Not even the peak has been settled: round there, rather than serve nobody.
                    found = _rounded(
                        g,
                        step,
                        slots,
                        peak_price,
                        peak_slot if full else max(0.0, peak_slot),
                        chosen,
                    )
                    if found > value:
                        value, batch_size, best_price = found, batch, peak_price
                        copy_plan(chosen, serve)
                # Gains at the low end and slots at the high end bound all that is left.
                gains_into(model, min(batch, end), g)
                bound, _, _ = find_prices(
                    g,
                    weights,
                    capacity,
                    min(max(batch, end), most),
                    as_bool(False),
                    best_price,
                    work,
                )
                settled = max(settled, bound)
                break
            away = batch - at
            memory_guess = max(0.0, price + away * price_drift)
            slot_guess = slot_price + away * slot_drift
            if not full:
                slot_guess = max(0.0, slot_guess)
            effort.statistics[PRICED] += 1
            bound = evaluate_prices(g, weights, capacity, slots, memory_guess, slot_guess)
            if bound > cutoff_of(value, gap):
                effort.statistics[EXAMINED] += 1
                margin = 0.8 * abs(away * price_drift) + 0.004 * price + price_margin
                slot_reach = 0.8 * abs(away * slot_drift) + 0.004 * abs(slot_price) + slot_margin
                bound, memory_guess, slot_guess = update_prices(
                    g,
                    weights,
                    capacity,
                    slots,
                    full,
                    memory_guess,
                    slot_guess,
                    margin,
                    slot_reach,
                    work,
                )
                if away != 0:
                    price_drift = (memory_guess - price) / away
                    slot_drift = (slot_guess - slot_price) / away
                price, slot_price, at = memory_guess, slot_guess, batch
                price_margin, slot_margin = 0.0, 0.0
            if bound > cutoff_of(value, gap):
                rises = rises + 1 if bound > bound_before else 0
                bound_before = bound
                if rises == _RISES:
                    # Another hill (where the context reaches the capacity, latency grows
                    # less): its top first, so that the slope can be jumped over.
                    rises = -(2**30)
                    rest = Step(weights, capacity, most, min(batch, end), max(batch, end), exactly)
                    top, top_price, top_slot = find_peak(
                        model,
                        rest,
                        as_int(-1),
                        memory_guess,
                        neighbour,
                        work[4].copy(),
                        work,
                        effort,
                    )
                    gains_into(model, top, neighbour)
                    top_bound, top_price, top_slot = find_prices(
                        neighbour,
                        weights,
                        capacity,
                        min(top, most),
                        exactly or top > first,
                        top_price,
                        work,
                    )
                    if top_bound > cutoff_of(value, gap):
                        found, _, _, lists = _settle(
                            neighbour,
                            step,
                            min(top, most),
                            exactly or top > first,
                            top_price,
                            top_slot,
                            top_bound,
                            value,
                            depth,
                            search,
                            gap,
                            lists,
                            chosen,
                            effort,
                        )
                        if found > value:
                            value, batch_size, best_price = found, top, top_price
                            copy_plan(chosen, serve)
            if bound > cutoff_of(value, gap):
                found, proven, loss, lists = _settle(
                    g,
                    step,
                    slots,
                    full,
                    memory_guess,
                    slot_guess,
                    bound,
                    value,
                    depth,
                    search,
                    gap,
                    lists,
                    chosen,
                    effort,
                )
                settled = max(settled, proven)
                if loss < np.inf:
                    depth = loss
                if found > value:
                    value, batch_size, best_price = found, batch, memory_guess
                    copy_plan(chosen, serve)
            if batch == end:
                break
            reached = _jump(
                model,
                step,
                concave,
                batch,
                end,
                memory_guess,
                slot_guess,
                bound,
                cutoff_of(value, gap),
                stride,
                g,
                neighbour,
                effort,
            )
            stride = max(1, abs(reached - batch) - 1)
            batch = reached
    return value, batch_size, max(settled, cutoff_of(value, gap)), best_price, lists


@inner
def sweep_all(
    model: Model,
    step: Step,
    start_price: float,
    search: bool,
    gap: float,
    serve: NDArray[np.bool_],
    batch_size: int,
    value: float,
    lists: Lists,
    effort: Effort,
) -> tuple[float, int, float, float, Lists]:
    """The best plan for any gains; parameters and results as of :func:`sweep_outwards`."""
    weights, capacity, most, first, last, exactly = step
    m = weights.size
    g = np.empty(m)
    work = np.empty((5, m))
    chosen = np.zeros(m, np.bool_)
    settled = -np.inf
    depth = 0.0
    best_price = start_price
    bounds = np.empty(last - first + 1)
    prices = np.empty((last - first + 1, 2))
    price, slot_price = start_price, 0.0
    for batch in range(first, last + 1):
        gains_into(model, batch, g)
        slots = min(batch, most)
        bound = np.inf
        if batch > first:
            effort.statistics[PRICED] += 1
            bound = evaluate_prices(g, weights, capacity, slots, price, slot_price)
        # Out of time, the prices at hand must do.
        if bound > value and (batch == first or now_s(effort.clock) <= effort.deadline_s):
            effort.statistics[EXAMINED] += 1
            bound, price, slot_price = find_prices(
                g, weights, capacity, slots, exactly, price, work
            )
            rounded = _rounded(g, step, slots, price, slot_price, chosen)
            if rounded > value:
                value, batch_size, best_price = rounded, batch, price
                copy_plan(chosen, serve)
        k = batch - first
        bounds[k], prices[k, 0], prices[k, 1] = bound, price, slot_price

    while True:
        k = int(np.argmax(bounds))
        if bounds[k] <= cutoff_of(value, gap):
            break
        if now_s(effort.clock) > effort.deadline_s:
            settled = max(settled, bounds[k])
            break
        batch = first + k
        gains_into(model, batch, g)
        found, proven, loss, lists = _settle(
            g,
            step,
            min(batch, most),
            exactly,
            prices[k, 0],
            prices[k, 1],
            bounds[k],
            value,
            depth,
            search,
            gap,
            lists,
            chosen,
            effort,
        )
        settled = max(settled, proven)
        bounds[k] = -np.inf
        if loss < np.inf:
            depth = loss
        if found > value:
            value, batch_size, best_price = found, batch, prices[k, 0]
            copy_plan(chosen, serve)
    return value, batch_size, max(settled, cutoff_of(value, gap)), best_price, lists


@inner
def _settle(
    g: NDArray[np.float64],
    step: Step,
    slots: int,
    full: bool,
    memory_price: float,
    slot_price: float,
    bound: float,
    value: float,
    depth: float,
    search: bool,
    gap: float,
    lists: Lists,
    chosen: NDArray[np.bool_],
    effort: Effort,
) -> tuple[float, float, float, Lists]:
    """Search one batch size, or only round; results as of search_batch."""
    effort.statistics[SEARCHED] += 1
    if search:
        return search_batch(
            g,
            step.weights,
            step.capacity,
            slots,
            full,
            memory_price,
            slot_price,
            bound,
            value,
            depth,
            gap,
            lists,
            chosen,
            effort,
        )
    rounded = _rounded(g, step, slots, memory_price, slot_price, chosen)
    return max(rounded, value), bound, np.inf, lists


@inner
def _rounded(
    g: NDArray[np.float64],
    step: Step,
    slots: int,
    memory_price: float,
    slot_price: float,
    chosen: NDArray[np.bool_],
) -> float:
    """Value of the plan rounded from prices, written to ``chosen``; -inf if there is none."""
    sight = first_sight(g, step.weights, memory_price, slot_price)
    core = core_of(
        g, step.weights, step.capacity, slots, step.exactly, memory_price, slot_price, sight
    )
    return round_and_swap(g, step.weights, step.capacity, slots, step.exactly, core, chosen)


@inner
def _jump(
    model: Model,
    step: Step,
    concave: bool,
    batch: int,
    end: int,
    memory_price: float,
    slot_price: float,
    here: float,
    cutoff: float,
    stride: int,
    g: NDArray[np.float64],
    neighbour: NDArray[np.float64],
    effort: Effort,
) -> int:
    """
    The next batch size towards ``end`` that the prices at hand do not rule out.

    ``g`` holds the gains at ``batch`` and ``here`` is the bound that the prices prove there;
    ``stride`` is the length of the last jump.
    """
    weights, capacity, _, first, _, exactly = step
    direction = 1 if end > batch else -1
    near = batch + direction
    # What one pair of prices proves about "exactly B" it proves about "at most B" only if
    # the slot price is not negative.
    limit = end
    if direction < 0 and end == first and not exactly and slot_price < 0.0:
        limit = first + 1
        if near == first:
            return near

    rate = token_rate(model.scalars, batch) if concave else 0.0
    back = token_rate(model.scalars, batch - direction) if concave and batch >= direction else rate
    straight = back != rate
    if straight:
        # From here, `neighbour` is the change of the gains per unit of rate, >= 0.
        gains_into(model, batch - direction, neighbour)
        for i in range(g.size):
            neighbour[i] = max(0.0, (neighbour[i] - g[i]) / (back - rate))
        if here > cutoff:
            here = _extrapolated(
                g,
                neighbour,
                weights,
                capacity,
                memory_price,
                slot_price,
                near,
                near,
                rate,
                token_rate(model.scalars, near),
                abs(back - rate),
            )
    if direction > 0:
        # Gains do not rise: where slots have no price, what is ruled out here is ruled out
        # for good; else only the price of more slots has to be added.
        if here <= cutoff and slot_price <= 0.0:
            return end + 1
        if not straight:
            free = (cutoff - here) / slot_price if slot_price > 0.0 else 0.0
            return min(end + 1, max(near, batch + 1 + int(free * (1.0 - 1e-9))))
    if straight and here > cutoff:
        return near

    effort.statistics[JUMPS] += 1
    good, bad = batch, limit + direction
    reach = max(1, 2 * stride)
    while abs(bad - good) > 1:
        trial = good + direction * reach
        if (trial - bad) * direction >= 0:
            trial = bad - direction if bad == limit + direction else (good + bad) // 2
        if straight:
            bound = _extrapolated(
                g,
                neighbour,
                weights,
                capacity,
                memory_price,
                slot_price,
                near,
                trial,
                rate,
                token_rate(model.scalars, trial),
                abs(back - rate),
            )
        else:
            gains_into(model, trial, neighbour)
            slots = near if slot_price >= 0.0 else trial
            bound = evaluate_prices(neighbour, weights, capacity, slots, memory_price, slot_price)
        if bound <= cutoff:
            good = trial
            if bad != limit + direction:
                break
            reach *= 2
        else:
            if good != batch:
                break
            bad = trial
            reach = max(1, reach // 3)
    return good + direction


@inner_sums
def _extrapolated(
    g: NDArray[np.float64],
    change: NDArray[np.float64],
    weights: NDArray[np.float64],
    capacity: float,
    memory_price: float,
    slot_price: float,
    near: int,
    far: int,
    rate: float,
    far_rate: float,
    unit: float,
) -> float:
    """
    The bound at batch size ``far`` with gains continued in straight lines.

    It is convex along the range, so if it rules out ``near`` and ``far`` it rules out all batch
    sizes in between. ``change`` is the slope per unit of rate, measured over ``unit``.
    """
    n = g.size
    move = far_rate - rate
    profit = 0.0
    size = 0.0
    for i in range(n):
        gain = g[i] + change[i] * move
        reduced = gain - memory_price * weights[i] - slot_price
        chosen = reduced > 0.0
        profit += reduced if chosen else 0.0
        size += abs(gain) + memory_price * weights[i] if chosen else 0.0
    # A negative slot price makes the slots' term concave along the range: take its largest.
    slots = far if slot_price >= 0.0 else min(near, far)
    base = memory_price * capacity + slot_price * slots
    size += memory_price * capacity + abs(slot_price) * (2.0 * slots + n)
    return base + profit + _UNIT_ROUNDOFF * (n + 8) * (1.0 + abs(move) / unit) * size
