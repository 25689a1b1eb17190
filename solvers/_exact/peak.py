"""
Where to begin: the batch size with the largest dual bound.

With gains that never rise, the dual bound of "exactly B requests" rises while another slot
is worth more than the speed it costs everybody, and then falls. :func:`find_peak` follows its
slope to the top. Nothing depends on the answer but time: what the peak is not, the sweep of
:mod:`solvers._exact.sweep` finds out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from andes_opt.gains import fill_gains
from solvers._exact.batch import EXAMINED, Effort
from solvers._exact.jit import as_bool, as_int, inner
from solvers.clock import now_s
from solvers.prices import evaluate_prices, find_prices, update_prices

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Requests in the sample that gives the first idea.
_SAMPLE = 200


class Model(NamedTuple):
    """Gains for compiled code (andes_opt.gains), of the requests that fit at all."""

    kind: int
    params: NDArray[np.float64]
    scalars: NDArray[np.float64]
    requests: NDArray[np.int64]  # (m,): the requests that fit, of all n
    whole: NDArray[np.float64]  # scratch, (n,)


class Step(NamedTuple):
    """An instance without its gains: the requests that fit, and the batch sizes to consider."""

    weights: NDArray[np.float64]  # (m,), whole numbers
    capacity: float  # whole number
    most: int  # most requests that fit together
    first: int
    last: int
    exactly: bool


@inner
def gains_into(model: Model, batch: int, out: NDArray[np.float64]) -> None:
    """Write the gains at a batch size to ``out``, (m,)."""
    if model.requests.size == model.whole.size:
        fill_gains(model.kind, model.params, model.scalars, batch, out)
        return
    fill_gains(model.kind, model.params, model.scalars, batch, model.whole)
    for i in range(out.size):
        out[i] = model.whole[model.requests[i]]


@inner
def find_peak(
    model: Model,
    step: Step,
    start_batch: int,
    start_price: float,
    g: NDArray[np.float64],
    neighbour: NDArray[np.float64],
    work: NDArray[np.float64],
    effort: Effort,
) -> tuple[int, float, float]:
    """
    A batch size of (nearly always) the largest dual bound, with prices from close by.

    Parameters
    ----------
    model, step
        The instance; no gain may rise with the batch size.
    start_batch, start_price
        Batch size and memory price to start from; < 0 if there are none.
    g, neighbour, work
        Scratch, (m,), (m,) and (5, m).
    effort
        Deadline and statistics.
    """
    m = step.weights.size
    batch, price, slot_price = start_batch, start_price, 0.0
    known = False
    stride = m // _SAMPLE
    if start_batch < 0 and stride >= 2 and step.last - step.first > 8 * stride:
        # A sample of the requests in front of a smaller engine has nearly the same peak.
        some = step.weights[stride // 2 :: stride].copy()
        size = some.size
        share = np.floor(step.capacity * size / m)
        fits = int(np.searchsorted(np.cumsum(np.sort(some)), share, side="right"))
        low, high = max(1, -(-step.first // stride)), min(step.last // stride, fits)
        if low + 2 < high:
            sample = model.requests[stride // 2 :: stride].copy()
            batch, price, slot_price = _climb(
                Model(model.kind, model.params, model.scalars, sample, model.whole),
                Step(some, share, fits, low, high, step.exactly),
                stride,
                as_int(-1),
                -1.0,
                0.0,
                as_bool(False),
                as_bool(False),
                g[:size],
                neighbour[:size],
                work,
                effort,
            )
            known = batch >= 0
            batch *= stride
    peak, peak_price, peak_slot = _climb(
        model,
        step,
        as_int(1),
        batch,
        price,
        slot_price,
        as_bool(known),
        as_bool(False),
        g,
        neighbour,
        work,
        effort,
    )
    if peak < 0:
        # Not one hill, or slopes that misled.
        peak, peak_price, peak_slot = _climb(
            model,
            step,
            as_int(1),
            as_int(-1),
            peak_price,
            0.0,
            as_bool(False),
            as_bool(True),
            g,
            neighbour,
            work,
            effort,
        )
    return peak, peak_price, peak_slot


@inner
def _climb(
    model: Model,
    step: Step,
    scale: int,
    start_batch: int,
    start_price: float,
    start_slot: float,
    known: bool,
    honest: bool,
    g: NDArray[np.float64],
    neighbour: NDArray[np.float64],
    work: NDArray[np.float64],
    effort: Effort,
) -> tuple[int, float, float]:
    """
    Follow the slope of the dual bound to the top, by regula falsi with the Illinois rule.

    The slope is read off the prices: what they say about B + 1. Where many reduced gains
    are 0 that is too optimistic; ``honest`` solves B + 1 as well. Batch sizes are in units
    of ``scale``. ``known`` says that the prices at the start are probably close. The batch
    size is -1 if the last bound is clearly not the largest seen.
    """
    low, high = step.first, step.last
    low_slope, high_slope = 0.0, 0.0
    rising, falling = False, False
    price, slot_price = start_price, start_slot
    memory_margin, slot_margin = 0.2 * abs(price), 0.2 * abs(slot_price)
    highest = -np.inf
    bound = -np.inf
    guided = low <= start_batch <= high
    batch = start_batch if guided else (low + high) // 2
    pace = max(2, (high - low) // 64)
    near = (high - low) // 256
    while high - low > near:
        batch = min(max(batch, low), high - 1)
        gains_into(model, batch * scale, g)
        gains_into(model, (batch + 1) * scale, neighbour)
        full = step.exactly or batch > step.first
        slots = min(batch, step.most)
        more = min(batch + 1, step.most)
        effort.statistics[EXAMINED] += 1
        if known:
            bound, new_price, new_slot = update_prices(
                g,
                step.weights,
                step.capacity,
                slots,
                full,
                price,
                slot_price,
                memory_margin,
                slot_margin,
                work,
            )
            memory_margin = abs(new_price - price)
            slot_margin = abs(new_slot - slot_price)
        else:
            bound, new_price, new_slot = find_prices(
                g, step.weights, step.capacity, slots, full, price, work
            )
            memory_margin = 0.3 * new_price
            slot_margin = 0.3 * abs(new_slot)
            known = True
        price, slot_price = new_price, new_slot
        highest = max(highest, bound)
        beyond = evaluate_prices(neighbour, step.weights, step.capacity, more, price, slot_price)
        if honest and beyond > bound:
            beyond, _, _ = update_prices(
                neighbour,
                step.weights,
                step.capacity,
                more,
                as_bool(True),
                price,
                slot_price,
                0.05 * price,
                0.05 * abs(slot_price),
                work,
            )
        slope = beyond - bound
        if slope > 0.0:
            if rising:
                high_slope *= 0.5
            low, low_slope, rising, falling = batch + 1, slope, True, False
        else:
            if falling:
                low_slope *= 0.5
            high, high_slope, rising, falling = batch, slope, False, True
        if now_s(effort.clock) > effort.deadline_s:
            break
        if low_slope > 0.0 and high_slope < 0.0:
            share = min(0.9, max(0.1, low_slope / (low_slope - high_slope)))
            batch = low + int(share * (high - low))
        elif guided:
            batch = low - 1 + pace if slope > 0.0 else high - pace
            pace *= 4
        else:
            batch = (low + high) // 2
    if not known:
        # A single batch size: nothing was priced, and a start from elsewhere may mislead.
        price, slot_price = 0.0, 0.0
    if not honest and bound < highest - 1e-4 * abs(highest):
        low = -1
    return low, max(price, 0.0), slot_price
