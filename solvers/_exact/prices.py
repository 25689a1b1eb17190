"""
The prices of one batch size with the best bound, compiled.

For given memory price the best slot price is known (:mod:`solvers._exact.selection`), and in
the memory price alone the bound is convex and piecewise linear. Its minimum is bracketed, and
the next price to try is where the lines at both ends of the bracket cross.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from solvers._exact.jit import as_bool, as_int, inner, inner_sums, part
from solvers._exact.problem import UNIT_ROUNDOFF, Dual, Knapsack
from solvers._exact.selection import slot_price_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAX_ROUNDS = 100
#: Of two prices with the same bound, one that is so many times the other is worse.
_FAR = 1024.0
_TINY_PRICE = 1e-12
_DWARFS = 1e3


class Undecided(NamedTuple):
    """
    Requests that the prices tried so far may choose or not, and what is left for them.

    Their gains and weights are the first entries of the rows 0 and 1 of the scratch.
    """

    num_requests: int
    slots: int
    fixed_value: float  # of the requests that are chosen whatever the price
    fixed_weight: float


class End(NamedTuple):
    """An end of the bracket: prices, and value and weight of what is chosen there."""

    price: float
    slot_price: float
    value: float
    weight: float


@inner_sums
def evaluate_prices(knapsack: Knapsack, memory_price: float, slot_price: float) -> float:
    """
    The bound that a memory price >= 0 and a slot price prove.

    It is safe against rounding: each term is off by a few units of its own size, the sum by
    n units of its size, in whatever order it is added.
    """
    gains, weights, capacity, slots, _ = knapsack
    n = gains.size
    profit = 0.0
    size = 0.0
    for i in range(n):
        reduced = gains[i] - memory_price * weights[i] - slot_price
        chosen = reduced > 0.0
        profit += reduced if chosen else 0.0
        size += abs(gains[i]) + memory_price * weights[i] if chosen else 0.0
    base = memory_price * capacity + slot_price * slots
    size += memory_price * capacity + 2.0 * abs(slot_price) * slots + abs(slot_price) * n
    return base + profit + UNIT_ROUNDOFF * (n + 8) * size


@inner
def find_prices(knapsack: Knapsack, start: float, work: NDArray[np.float64]) -> Dual:
    """
    The best prices, searched from scratch.

    Parameters
    ----------
    knapsack
        The batch size; no more slots than requests. With ``exactly`` the lightest ``slots``
        requests must fit, else there is no finite bound; the caller checks that.
    start
        Memory price to start from (that of a neighbouring batch size); < 0 if none.
    work
        Scratch, (5, at least n).
    """
    gains, weights, _, slots, exactly = knapsack
    n = gains.size
    if n == 0:
        return Dual(0.0, 0.0, 0.0)
    steepest = 0.0
    lowest = gains[0]
    highest = gains[0]
    heaviest = 0.0
    for i in range(n):
        heaviest = max(heaviest, weights[i])
        work[0, i] = gains[i]
        work[1, i] = weights[i]
        steepest = max(steepest, gains[i] / weights[i])
        lowest = min(lowest, gains[i])
        highest = max(highest, gains[i])
    # Above the steepest gain per token (at most) the empty set is best; above the spread
    # of the gains (exactly) the lightest set is.
    if exactly:
        limit = highest - lowest + 1e-9 * abs(highest)
        # A price from elsewhere may dwarf the gains, and if weights are equal it stays
        # and turns reduced gains into rounding noise.
        if start * heaviest > _DWARFS * max(abs(highest), abs(lowest)):
            start = -1.0
    else:
        limit = steepest
        if start > steepest:
            start = -1.0
    everyone = Undecided(n, slots, 0.0, 0.0)
    price, slot_price = _search(knapsack, everyone, max(start, 0.0), limit, not exactly, work)
    return Dual(evaluate_prices(knapsack, price, slot_price), price, slot_price)


@inner
def update_prices(
    knapsack: Knapsack,
    guess: Dual,
    memory_margin: float,
    slot_margin: float,
    work: NDArray[np.float64],
) -> Dual:
    """
    As :func:`find_prices`, for prices that probably lie near known ones.

    Requests whose choice is the same at all prices within the margins are set aside. If the
    best prices of the rest lie within the margins, they are the best of all (the function
    is convex); if not, the search starts from scratch.

    Parameters
    ----------
    knapsack, work
        As for :func:`find_prices`.
    guess
        The known prices; their bound is not used.
    memory_margin, slot_margin
        How far the best prices may be from them, >= 0.
    """
    n = knapsack.gains.size
    low = max(0.0, guess.memory_price - memory_margin)
    high = guess.memory_price + max(memory_margin, _TINY_PRICE)
    low_slot, high_slot = guess.slot_price - slot_margin, guess.slot_price + slot_margin
    if not knapsack.exactly:
        low_slot = max(0.0, low_slot)
    g, w = knapsack.gains, knapsack.weights
    everyone = Undecided(n, knapsack.slots, 0.0, 0.0)
    rest = _undecided_between(everyone, g, w, low, high, low_slot, high_slot, work[0], work[1])
    if 0 <= rest.slots <= rest.num_requests and rest.num_requests < n:
        price, slot = _search(knapsack, rest, guess.memory_price, high, as_bool(False), work)
        # A price at the upper end means that the walk was stopped there.
        if low <= price < high and low_slot <= slot <= high_slot:
            return Dual(evaluate_prices(knapsack, price, slot), price, slot)
    return find_prices(knapsack, guess.memory_price, work)


@inner
def _search(
    knapsack: Knapsack,
    rest: Undecided,
    start: float,
    limit: float,
    limit_is_known: bool,
    work: NDArray[np.float64],
) -> tuple[float, float]:
    """
    Best memory and slot price, by cutting planes, from ``start``.

    No memory price above ``limit`` is tried; ``limit_is_known`` says that no undecided
    request is chosen there.
    """
    capacity = knapsack.capacity
    g, w, scores, scratch, spare = work[0], work[1], work[2], work[3], work[4]
    # At the low end the chosen set is too heavy; at the high one it fits.
    low = End(0.0, 0.0, 0.0, 0.0)
    high = End(limit, 0.0, rest.fixed_value, rest.fixed_weight)
    have_low, have_high = False, limit_is_known
    meet = np.inf
    side = 0  # how often in a row the same end moved: low ends count up, high ones down
    price = start
    step = 1.0 + 2.0**-7
    best_bound, best_price, best_slot = np.inf, price, 0.0
    if have_high:
        best_bound, best_price = high.value + limit * (capacity - high.weight), limit
    for _ in range(_MAX_ROUNDS):
        here = _choose(rest, g, w, knapsack.exactly, price, scores, scratch, spare)
        bound = here.value + price * (capacity - here.weight)
        tied = bound <= best_bound + 1e-14 * (abs(here.value) + price * abs(capacity - here.weight))
        if bound < best_bound or (tied and _FAR * price < best_price):
            best_bound, best_price, best_slot = bound, price, here.slot_price
        # At the crossing of the bracket's lines, one of them again means the end.
        crossed = have_low and have_high and price == meet
        if here.weight > capacity:
            if crossed and here.weight == low.weight and here.value == low.value:
                break
            low, have_low, side = here, True, max(side, 0) + 1
        else:
            if price == 0.0 or (
                crossed and here.weight == high.weight and here.value == high.value
            ):
                break
            high, have_high, side = here, True, min(side, 0) - 1

        if not have_high:
            if price >= limit:
                break
            price = min(limit, price * step) if price > 0.0 else limit * 2.0**-20
            step = step**4
            continue
        if not have_low:
            price = price / step if step < 64.0 else 0.0
            step = step**4
            continue
        # Slot prices fall when the memory price rises.
        rest = _undecided_between(
            rest, g, w, low.price, high.price, high.slot_price, low.slot_price, g, w
        )
        meet = (low.value - high.value) / (low.weight - high.weight)
        expected = low.value + meet * (capacity - low.weight)
        # A set that just fills the memory is best at all prices from somewhere on. Far up there
        # rounding hides what the gains differ by, so the search goes down to where that begins.
        reached = best_bound <= expected + 1e-14 * abs(expected) and best_price <= _FAR * meet
        if reached or not low.price < meet < high.price:
            break
        price = _between(low.price, meet, high.price, side)
    return best_price, best_slot


@part
def _between(low: float, meet: float, high: float, side: int) -> float:
    """
    The next price: the crossing ``meet``, or closer to an end that stays put far away.

    Such an end makes the crossings creep.
    """
    if side >= 3 and high > 1.25 * low:
        return float(np.sqrt(meet * high))
    if side <= -3 and high > 1.25 * low:
        return float(np.sqrt(meet * low)) if low > 0.0 else 0.5 * meet
    return meet


@part
def _choose(
    rest: Undecided,
    g: NDArray[np.float64],
    w: NDArray[np.float64],
    exactly: bool,
    price: float,
    scores: NDArray[np.float64],
    scratch: NDArray[np.float64],
    spare: NDArray[np.float64],
) -> End:
    """What is chosen at a memory price, with the best slot price there."""
    count = rest.num_requests
    if count == 0:
        return End(price, 0.0, rest.fixed_value, rest.fixed_weight)
    top = -np.inf
    for i in range(count):
        score = g[i] - price * w[i]
        scores[i] = score
        scratch[i] = score
        top = max(top, score)
    slot_price = slot_price_of(scratch, top, count, rest.slots, exactly, spare)

    value = 0.0
    weight = 0.0
    taken = 0
    for i in range(count):
        above = scores[i] > slot_price
        value += g[i] if above else 0.0
        weight += w[i] if above else 0.0
        taken += above
    if taken < rest.slots and (exactly or slot_price > 0.0):
        for i in range(count):
            if scores[i] == slot_price:
                value += g[i]
                weight += w[i]
                taken += 1
                if taken == rest.slots:
                    break
    return End(price, slot_price, value + rest.fixed_value, weight + rest.fixed_weight)


@part
def _undecided_between(
    rest: Undecided,
    g: NDArray[np.float64],
    w: NDArray[np.float64],
    low: float,
    high: float,
    low_slot: float,
    high_slot: float,
    gains: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> Undecided:
    """
    The requests whose choice can differ within ranges of both prices.

    ``gains`` and ``weights`` receive theirs. What all these prices choose is fixed, what none
    chooses is dropped.
    """
    slots = rest.slots
    fixed_value, fixed_weight = rest.fixed_value, rest.fixed_weight
    kept = as_int(0)
    for i in range(rest.num_requests):
        gain, weight = g[i], w[i]
        always = gain - high * weight > high_slot
        never = gain - low * weight < low_slot
        fixed_value += gain if always else 0.0
        fixed_weight += weight if always else 0.0
        slots -= always
        gains[kept] = gain
        weights[kept] = weight
        kept += not (always or never)
    return Undecided(kept, slots, fixed_value, fixed_weight)
