"""
Ranges of batch sizes that one pair of prices rules out, to be jumped over.

* Gains that do not rise are at most those at the range's low end.
* Gains that are concave in the token rate lie below the line through two of their points,
  outside of them. Such a line makes the bound a convex function along the range (B is a convex
  function of the rate 1/latency(B)), so its two ends decide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from andes_opt.gains import token_rate
from solvers._exact.jit import as_bool, inner, inner_sums, part
from solvers._exact.prices import evaluate_prices
from solvers._exact.problem import UNIT_ROUNDOFF, Knapsack, gains_into

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from solvers._exact.problem import Counts, Dual, Model, Step


class Line(NamedTuple):
    """Gains continued in straight lines in the token rate."""

    straight: bool  # False if these gains can't be continued so
    near: int  # the next batch size
    rate: float  # token rate at the batch size where the lines begin
    unit: float  # distance in rate over which their slopes were measured


@inner
def jump(
    model: Model,
    step: Step,
    here: Knapsack,
    batch: int,
    end: int,
    dual: Dual,
    wanted: float,
    stride: int,
    neighbour: NDArray[np.float64],
    counts: Counts,
) -> int:
    """
    The next batch size towards ``end`` that the prices at hand do not rule out.

    Parameters
    ----------
    model, step
        The instance.
    here, batch
        The knapsack at the batch size to start from.
    end
        The last batch size.
    dual
        Prices, and the bound that they prove here.
    wanted
        The cutoff: batch sizes with a bound up to it are ruled out.
    stride
        Length of the last jump.
    neighbour
        Scratch, (m,).
    counts
        What has been done.
    """
    direction = 1 if end > batch else -1
    near = batch + direction
    # What one pair of prices proves about "exactly B" it proves about "at most B" only if
    # the slot price is not negative.
    limit = end
    if direction < 0 and end == step.first and not step.exactly and dual.slot_price < 0.0:
        limit = step.first + 1
        if near == step.first:
            return near

    line = _line_from(model, here, batch, direction, neighbour)
    bound = dual.bound
    if line.straight and bound > wanted:
        bound = _bound_at(model, here, line, near, dual, neighbour)
    if direction > 0:
        # Gains do not rise: where slots have no price, what is ruled out here is ruled out
        # for good; else only the price of more slots has to be added.
        if bound <= wanted and dual.slot_price <= 0.0:
            return end + 1
        if not line.straight:
            free = (wanted - bound) / dual.slot_price if dual.slot_price > 0.0 else 0.0
            return min(end + 1, max(near, batch + 1 + int(free * (1.0 - 1e-9))))
    if line.straight and bound > wanted:
        return near

    counts.jumps += 1
    good, bad = batch, limit + direction  # ruled out, and not
    reach = max(1, 2 * stride)
    while abs(bad - good) > 1:
        trial = good + direction * reach
        if (trial - bad) * direction >= 0:
            trial = bad - direction if bad == limit + direction else (good + bad) // 2
        if _bound_at(model, here, line, trial, dual, neighbour) <= wanted:
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


@part
def _line_from(
    model: Model, here: Knapsack, batch: int, direction: int, slopes: NDArray[np.float64]
) -> Line:
    """The lines through the gains here and one batch size back; ``slopes`` gets theirs."""
    near, behind = batch + direction, batch - direction
    if not model.concave:
        return Line(as_bool(False), near, 0.0, 0.0)
    rate = token_rate(model.scalars, batch)
    back = token_rate(model.scalars, behind) if behind >= 0 else rate
    if back == rate:
        return Line(as_bool(False), near, rate, 0.0)
    gains_into(model, behind, slopes)
    for i in range(slopes.size):
        slopes[i] = max(0.0, (slopes[i] - here.gains[i]) / (back - rate))
    return Line(as_bool(True), near, rate, abs(back - rate))


@part
def _bound_at(
    model: Model,
    here: Knapsack,
    line: Line,
    far: int,
    dual: Dual,
    neighbour: NDArray[np.float64],
) -> float:
    """
    A bound that rules out all batch sizes from the next to ``far`` if it rules out both.

    ``neighbour`` holds the lines' slopes, and is scratch where there are no lines. A negative
    slot price makes the slots' term concave along the range: its largest is taken.
    """
    if line.straight:
        slots = far if dual.slot_price >= 0.0 else min(line.near, far)
        move = token_rate(model.scalars, far) - line.rate
        return _extrapolated(here, slots, neighbour, move, line.unit, dual)
    gains_into(model, far, neighbour)
    slots = line.near if dual.slot_price >= 0.0 else far
    knapsack = Knapsack(neighbour, here.weights, here.capacity, slots, here.exactly)
    return evaluate_prices(knapsack, dual.memory_price, dual.slot_price)


@inner_sums
def _extrapolated(
    knapsack: Knapsack,
    slots: int,
    slopes: NDArray[np.float64],
    move: float,
    unit: float,
    dual: Dual,
) -> float:
    """
    The bound of prices after a move of the token rate, with other slots.

    For the allowance for rounding see evaluate_prices.
    """
    g, weights, capacity, _, _ = knapsack
    memory_price, slot_price = dual.memory_price, dual.slot_price
    n = g.size
    profit = 0.0
    size = 0.0
    for i in range(n):
        gain = g[i] + slopes[i] * move
        reduced = gain - memory_price * weights[i] - slot_price
        chosen = reduced > 0.0
        profit += reduced if chosen else 0.0
        size += abs(gain) + memory_price * weights[i] if chosen else 0.0
    base = memory_price * capacity + slot_price * slots
    size += memory_price * capacity + abs(slot_price) * (2.0 * slots + n)
    return base + profit + UNIT_ROUNDOFF * (n + 8) * (1.0 + abs(move) / unit) * size
