"""
Where to begin: the batch size with the largest bound.

With gains that never rise, the bound of "exactly B requests" rises while another slot is
worth more than the speed it costs everybody, and then falls: a hill. :func:`find_peak` follows
its slope to the top. Nothing depends on the answer but time: what the peak is not, the sweep of
:mod:`solvers._exact.sweep` finds out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from solvers._exact.jit import as_bool, as_int, inner, part
from solvers._exact.prices import evaluate_prices, find_prices, update_prices
from solvers._exact.problem import Dual, Model, Scratch, Step, knapsack_at, out_of_time

if TYPE_CHECKING:
    from solvers._exact.problem import Effort

#: Requests in the sample that gives the first idea.
_SAMPLE = 200


class Guide(NamedTuple):
    """Prices from close by, and how far the next ones may be from them."""

    dual: Dual
    memory_margin: float
    slot_margin: float
    known: bool  # the prices are probably close


@inner
def find_peak(
    model: Model,
    step: Step,
    start_batch: int,
    start_price: float,
    scratch: Scratch,
    effort: Effort,
) -> tuple[int, Dual]:
    """
    A batch size of (nearly always) the largest bound, with prices from close by.

    Parameters
    ----------
    model, step
        The instance; no gain may rise with the batch size.
    start_batch, start_price
        Batch size and memory price to start from; < 0 if there are none.
    scratch
        Where to work; ``chosen`` is left alone.
    effort
        Deadline and counts.
    """
    m = step.weights.size
    batch, dual = start_batch, Dual(-np.inf, start_price, 0.0)
    known = False
    stride = m // _SAMPLE
    if start_batch < 0 and stride >= 2 and step.last - step.first > 8 * stride:
        # A sample of the requests in front of a smaller engine has nearly the same peak.
        small_model, small_step = _sample(model, step, stride)
        if small_step.first + 2 < small_step.last:
            size = small_step.weights.size
            small = Scratch(
                scratch.gains[:size], scratch.neighbour[:size], scratch.work, scratch.chosen
            )
            nowhere = Dual(-np.inf, -1.0, 0.0)
            batch, dual = _climb(
                small_model,
                small_step,
                as_int(-1),
                nowhere,
                as_bool(False),
                as_bool(False),
                small,
                effort,
            )
            known = batch >= 0
            batch *= stride
    peak, dual = _climb(model, step, batch, dual, known, as_bool(False), scratch, effort)
    if peak < 0:
        # Not one hill, or slopes that misled.
        dual = Dual(-np.inf, dual.memory_price, 0.0)
        peak, dual = _climb(
            model, step, as_int(-1), dual, as_bool(False), as_bool(True), scratch, effort
        )
    return peak, dual


@part
def _sample(model: Model, step: Step, stride: int) -> tuple[Model, Step]:
    """Every stride-th request, with its share of the memory and of the batch sizes."""
    weights = step.weights[stride // 2 :: stride].copy()
    share = np.floor(step.capacity * weights.size / step.weights.size)
    fits = 0
    used = 0.0
    for k in np.argsort(weights):
        used += weights[k]
        fits += used <= share
    first, last = max(1, -(-step.first // stride)), min(step.last // stride, fits)
    requests = model.requests[stride // 2 :: stride].copy()
    return (
        Model(
            model.kind, model.params, model.scalars, model.concave, requests, model.whole, stride
        ),
        Step(weights, share, fits, first, last, step.exactly, step.monotone),
    )


@inner
def _climb(
    model: Model,
    step: Step,
    start_batch: int,
    start: Dual,
    known: bool,
    honest: bool,
    scratch: Scratch,
    effort: Effort,
) -> tuple[int, Dual]:
    """
    Follow the slope of the bound to the top, by regula falsi with the Illinois rule.

    ``known`` says that the prices at the start are probably close; for ``honest`` see
    :func:`_slope`. The batch size is -1 if the last bound is clearly not the largest seen.
    """
    low, high = step.first, step.last
    low_slope, high_slope = 0.0, 0.0
    rising, falling = False, False
    guide = Guide(start, 0.2 * abs(start.memory_price), 0.2 * abs(start.slot_price), known)
    highest = -np.inf
    guided = low <= start_batch <= high
    batch = start_batch if guided else (low + high) // 2
    pace = max(2, (high - low) // 64)
    near = (high - low) // 256
    while high - low > near:
        batch = min(max(batch, low), high - 1)
        guide, slope = _slope(model, step, batch, guide, honest, scratch, effort)
        highest = max(highest, guide.dual.bound)
        if slope > 0.0:
            if rising:
                high_slope *= 0.5
            low, low_slope, rising, falling = batch + 1, slope, True, False
        else:
            if falling:
                low_slope *= 0.5
            high, high_slope, rising, falling = batch, slope, False, True
        if out_of_time(effort):
            break
        if low_slope > 0.0 and high_slope < 0.0:
            share = min(0.9, max(0.1, low_slope / (low_slope - high_slope)))
            batch = low + int(share * (high - low))
        elif guided:
            batch = low - 1 + pace if slope > 0.0 else high - pace
            pace *= 4
        else:
            batch = (low + high) // 2
    if not guide.known:
        # A single batch size: nothing was priced, and a start from elsewhere may mislead.
        return low, Dual(-np.inf, 0.0, 0.0)
    bound, memory_price, slot_price = guide.dual
    if not honest and bound < highest - 1e-4 * abs(highest):
        low = -1
    return low, Dual(bound, max(memory_price, 0.0), slot_price)


@part
def _slope(
    model: Model,
    step: Step,
    batch: int,
    guide: Guide,
    honest: bool,
    scratch: Scratch,
    effort: Effort,
) -> tuple[Guide, float]:
    """
    The best prices at a batch size, and by how much the bound rises to the next.

    The slope is read off the prices: what they say about B + 1. Where many reduced gains
    are 0 that is too optimistic; ``honest`` solves B + 1 as well.
    """
    here = knapsack_at(model, step, batch, scratch.gains)
    more = knapsack_at(model, step, batch + 1, scratch.neighbour)
    effort.counts.batch_sizes_examined += 1
    if guide.known:
        dual = update_prices(here, guide.dual, guide.memory_margin, guide.slot_margin, scratch.work)
        guide = Guide(
            dual,
            abs(dual.memory_price - guide.dual.memory_price),
            abs(dual.slot_price - guide.dual.slot_price),
            as_bool(True),
        )
    else:
        dual = find_prices(here, guide.dual.memory_price, scratch.work)
        guide = Guide(dual, 0.3 * dual.memory_price, 0.3 * abs(dual.slot_price), as_bool(True))
    beyond = evaluate_prices(more, dual.memory_price, dual.slot_price)
    if honest and beyond > dual.bound:
        beyond = update_prices(
            more, dual, 0.05 * dual.memory_price, 0.05 * abs(dual.slot_price), scratch.work
        ).bound
    return guide, beyond - dual.bound
