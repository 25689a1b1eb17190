"""
All batch sizes: the driver of the exact solver.

If no gain rises with the batch size, the sweep starts at the peak, the batch size with the
largest bound, settles it, and goes outwards in both directions, where bounds fall off. Ranges
of batch sizes that the prices at hand rule out are jumped over (:mod:`solvers._exact.jump`).

Otherwise every batch size is bounded, and they are settled in the order of the bounds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from solvers._exact.jit import as_bool, as_int, part
from solvers._exact.jump import jump
from solvers._exact.peak import find_peak
from solvers._exact.prices import evaluate_prices, find_prices, update_prices
from solvers._exact.problem import Dual, Knapsack, Scratch, Step, knapsack_at, out_of_time
from solvers._exact.settle import look_into, round_at, settle
from solvers._exact.worth import cutoff

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from solvers._exact.lists import Lists
    from solvers._exact.problem import Counts, Sweep

#: Bounds that rise so many times in a row, outwards, are another hill.
_RISES = 3


class Trend(NamedTuple):
    """The prices known last, and how steadily they drift with the batch size."""

    batch: int  # where the prices are the best
    memory_price: float
    slot_price: float
    memory_drift: float  # change per unit of batch size
    slot_drift: float
    memory_margin: float  # what a guess may be off, besides the drift
    slot_margin: float


@part
def sweep_outwards(sweep: Sweep, start_batch: int, start_price: float, lists: Lists) -> Lists:
    """
    Find the best plan, if no gain rises with the batch size.

    Parameters
    ----------
    sweep
        The instance, and the incumbent, which the best plan replaces.
    start_batch, start_price
        Batch size and memory price to start from; < 0 if there are none.
    lists
        Room to work in; what comes back may have grown.
    """
    peak, dual = find_peak(
        sweep.model, sweep.step, start_batch, start_price, sweep.scratch, sweep.effort
    )
    sweep.best.memory_price = dual.memory_price
    for direction in (1, -1):
        lists = _sweep_side(sweep, peak, dual, direction, lists)
    return lists


@part
def _sweep_side(sweep: Sweep, peak: int, at_peak: Dual, direction: int, lists: Lists) -> Lists:
    """Settle what has to be on one side of the peak (itself included if ``direction`` > 0)."""
    model, step, effort = sweep.model, sweep.step, sweep.effort
    gains, work = sweep.scratch.gains, sweep.scratch.work
    neighbour, counts = sweep.scratch.neighbour, effort.counts
    wanted = cutoff(sweep)
    batch = peak if direction > 0 else peak - 1
    end = step.last if direction > 0 else step.first
    trend = Trend(
        peak,
        at_peak.memory_price,
        at_peak.slot_price,
        0.0,
        0.0,
        0.02 * at_peak.memory_price,
        0.02 * abs(at_peak.slot_price),
    )
    stride = as_int(1)
    rises = 0
    bound_before = np.inf
    while step.first <= batch <= step.last:
        knapsack = knapsack_at(model, step, batch, gains)
        if out_of_time(effort):
            if batch == peak:
                _round_at_peak(sweep, knapsack, peak, at_peak)
            _bound_the_rest(sweep, batch, end)
            break
        trend, dual = _prices_at(knapsack, batch, trend, wanted, work, counts)
        if dual.bound > wanted:
            rises = rises + 1 if dual.bound > bound_before else 0
            bound_before = dual.bound
            if rises == _RISES:
                rises = -(2**30)
                lists = _try_other_hill(sweep, batch, end, dual.memory_price, lists)
                wanted = cutoff(sweep)
        if dual.bound > wanted:
            lists = settle(sweep, knapsack, batch, dual, lists)
            wanted = cutoff(sweep)
        if batch == end:
            break
        reached = jump(model, step, knapsack, batch, end, dual, wanted, stride, neighbour, counts)
        stride = max(1, abs(reached - batch) - 1)
        batch = reached
    return lists


@part
def _prices_at(
    knapsack: Knapsack,
    batch: int,
    trend: Trend,
    wanted: float,
    work: NDArray[np.float64],
    counts: Counts,
) -> tuple[Trend, Dual]:
    """Prices that follow the trend if they rule the batch size out, else its best ones."""
    away = batch - trend.batch
    memory_price = max(0.0, trend.memory_price + away * trend.memory_drift)
    slot_price = trend.slot_price + away * trend.slot_drift
    if not knapsack.exactly:
        slot_price = max(0.0, slot_price)
    counts.priced += 1
    bound = evaluate_prices(knapsack, memory_price, slot_price)
    dual = Dual(bound, memory_price, slot_price)
    if bound > wanted:
        counts.batch_sizes_examined += 1
        memory_off = abs(away * trend.memory_drift)
        slot_off = abs(away * trend.slot_drift)
        dual = update_prices(
            knapsack,
            dual,
            0.8 * memory_off + 0.004 * trend.memory_price + trend.memory_margin,
            0.8 * slot_off + 0.004 * abs(trend.slot_price) + trend.slot_margin,
            work,
        )
        memory_drift, slot_drift = trend.memory_drift, trend.slot_drift
        if away != 0:
            memory_drift = (dual.memory_price - trend.memory_price) / away
            slot_drift = (dual.slot_price - trend.slot_price) / away
        trend = Trend(batch, dual.memory_price, dual.slot_price, memory_drift, slot_drift, 0.0, 0.0)
    return trend, dual


@part
def _try_other_hill(sweep: Sweep, batch: int, end: int, memory_price: float, lists: Lists) -> Lists:
    """
    Look for a plan at the top of another hill between a batch size and ``end``.

    There is one where the context reaches the capacity and latency grows less, say. With its
    top known its slope can be jumped over.
    """
    step, scratch = sweep.step, sweep.scratch
    rest = Step(
        step.weights,
        step.capacity,
        step.most,
        min(batch, end),
        max(batch, end),
        step.exactly,
        step.monotone,
    )
    # The sweep still needs the gains at hand.
    other = Scratch(scratch.neighbour, scratch.work[4].copy(), scratch.work, scratch.chosen)
    top, dual = find_peak(sweep.model, rest, as_int(-1), memory_price, other, sweep.effort)
    knapsack = knapsack_at(sweep.model, step, top, scratch.neighbour)
    dual = find_prices(knapsack, dual.memory_price, scratch.work)
    if dual.bound > cutoff(sweep):
        _, lists = look_into(sweep, knapsack, top, dual, lists)
    return lists


@part
def _round_at_peak(sweep: Sweep, knapsack: Knapsack, peak: int, dual: Dual) -> None:
    """Round if not even the peak could be settled, rather than serve nobody."""
    slot_price = dual.slot_price if knapsack.exactly else max(0.0, dual.slot_price)
    round_at(sweep, knapsack, peak, Dual(dual.bound, dual.memory_price, slot_price))


@part
def _bound_the_rest(sweep: Sweep, batch: int, end: int) -> None:
    """Bound what is left: by the gains at the low end, and the slots at the high one."""
    step, best = sweep.step, sweep.best
    low = knapsack_at(sweep.model, step, min(batch, end), sweep.scratch.gains)
    slots = min(max(batch, end), step.most)
    knapsack = Knapsack(low.gains, low.weights, low.capacity, slots, as_bool(False))
    bound = find_prices(knapsack, best.memory_price, sweep.scratch.work).bound
    best.settled = max(best.settled, bound)


@part
def sweep_best_first(sweep: Sweep, start_price: float, lists: Lists) -> Lists:
    """
    Find the best plan for any gains.

    Parameters
    ----------
    sweep
        The instance, and the incumbent, which the best plan replaces.
    start_price
        Memory price to start from; < 0 if there is none.
    lists
        Room to work in; what comes back may have grown.
    """
    step, best = sweep.step, sweep.best
    best.memory_price = start_price
    count = step.last - step.first + 1
    bounds = np.empty(count)
    memory_prices = np.empty(count)
    slot_prices = np.empty(count)
    _bound_all(sweep, start_price, bounds, memory_prices, slot_prices)
    while True:
        k = 0
        for other in range(count):
            if bounds[other] > bounds[k]:
                k = other
        if bounds[k] <= cutoff(sweep):
            break
        if out_of_time(sweep.effort):
            best.settled = max(best.settled, bounds[k])
            break
        batch = step.first + k
        knapsack = knapsack_at(sweep.model, step, batch, sweep.scratch.gains)
        dual = Dual(bounds[k], memory_prices[k], slot_prices[k])
        lists = settle(sweep, knapsack, batch, dual, lists)
        bounds[k] = -np.inf
    return lists


@part
def _bound_all(
    sweep: Sweep,
    start_price: float,
    bounds: NDArray[np.float64],
    memory_prices: NDArray[np.float64],
    slot_prices: NDArray[np.float64],
) -> None:
    """A bound for each batch size, and the prices that prove it; plans are rounded on the way."""
    step, counts = sweep.step, sweep.effort.counts
    dual = Dual(np.inf, start_price, 0.0)
    for batch in range(step.first, step.last + 1):
        knapsack = knapsack_at(sweep.model, step, batch, sweep.scratch.gains)
        bound = np.inf
        if batch > step.first:
            counts.priced += 1
            bound = evaluate_prices(knapsack, dual.memory_price, dual.slot_price)
        dual = Dual(bound, dual.memory_price, dual.slot_price)
        # Out of time, the prices at hand must do.
        if bound > sweep.best.value and (batch == step.first or not out_of_time(sweep.effort)):
            counts.batch_sizes_examined += 1
            dual = find_prices(knapsack, dual.memory_price, sweep.scratch.work)
            round_at(sweep, knapsack, batch, dual)
        k = batch - step.first
        bounds[k], memory_prices[k], slot_prices[k] = dual
