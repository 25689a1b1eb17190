"""
Lagrangian prices of one batch size: what a token of KV memory and a slot are worth.

For fixed B, put a price lambda >= 0 on memory and mu on slots. For every plan x that
respects both limits

    sum g_i x_i  <=  lambda M + mu B + sum max(0, g_i - lambda w_i - mu)  =:  L(lambda, mu),

so any pair of prices proves an upper bound (mu >= 0 for "at most B"; any mu for "exactly
B"). The best pair is the dual of the linear relaxation: for given lambda the best mu is the
B-th largest of g_i - lambda w_i, and in lambda alone L is convex and piecewise linear, so
a one-dimensional cutting-plane search (intersect the steepest line known on either side)
ends at the minimum after a handful of evaluations (Kellerer, Pferschy, Pisinger, *Knapsack
Problems*, Springer 2004, sections 3.3, 5.2 and 9.3 on cardinality).

Bounds are safe against rounding: an allowance for every operation that went into the sum
is added, about 1e-12 of the value at n = 1000.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from andes_opt.compilation import jit
from solvers._exact.jit import as_bool, as_int, inner

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_UNIT_ROUNDOFF = 2.0**-53
_MAX_ROUNDS = 100
#: Of two prices with the same bound, one that is so many times the other is worse.
_FAR = 1024.0
_SAMPLE = 64
_TINY_PRICE = 1e-12
_DWARFS = 1e3


def dual_bound(
    gains: ArrayLike, weights: ArrayLike, capacity: int, slots: int, *, exactly: bool = False
) -> tuple[float, float, float]:
    """
    Best Lagrangian bound at one batch size, with its prices.

    Parameters
    ----------
    gains
        Gains at this batch size, (n,).
    weights
        KV tokens, (n,), >= 1.
    capacity
        KV tokens there are.
    slots
        The batch size B: most requests served, or their exact number.
    exactly
        If False the bound holds for plans of at most ``slots`` requests and the slot price
        is >= 0; if True it holds for plans of exactly ``slots`` requests only, and
        the slot price may be negative.

    Returns
    -------
    bound, memory_price, slot_price
        An upper bound on the value (-inf if ``exactly`` is impossible), the price of a KV
        token, and the price of a slot.
    """
    gains_array, weights_array = _arrays(gains, weights)
    n = gains_array.size
    if exactly:
        lightest = np.sort(weights_array)[:slots]
        if slots > n or lightest.sum() > capacity:
            return -np.inf, 0.0, 0.0
    bound, memory_price, slot_price = find_prices(
        gains_array, weights_array, float(capacity), slots, exactly, -1.0, np.empty((5, n))
    )
    return float(bound), float(memory_price), float(slot_price)


def price_bound(
    gains: ArrayLike,
    weights: ArrayLike,
    capacity: int,
    slots: int,
    memory_price: float,
    slot_price: float,
) -> float:
    """
    The bound L(memory_price, slot_price) that given prices prove at one batch size.

    It holds for plans of exactly ``slots`` requests, and for plans of at most ``slots`` if
    ``slot_price`` >= 0. Prices found for another batch size are welcome: any pair is valid.

    Parameters
    ----------
    gains, weights, capacity, slots
        As for :func:`dual_bound`.
    memory_price
        Price of a KV token, >= 0.
    slot_price
        Price of a slot.

    Raises
    ------
    ValueError
        If the memory price is negative or a price is not finite.
    """
    if not (0 <= memory_price < np.inf and np.isfinite(slot_price)):
        raise ValueError(f"prices ({memory_price}, {slot_price}) not understood.")
    gains_array, weights_array = _arrays(gains, weights)
    return float(
        evaluate_prices(
            gains_array, weights_array, float(capacity), slots, memory_price, slot_price
        )
    )


def _arrays(gains: ArrayLike, weights: ArrayLike) -> tuple[NDArray[np.float64], ...]:
    return (
        np.ascontiguousarray(gains, dtype=np.float64),
        np.ascontiguousarray(weights, dtype=np.float64),
    )


@jit(fastmath={"reassoc", "nsz"})
def evaluate_prices(
    gains: NDArray[np.float64],
    weights: NDArray[np.float64],
    capacity: float,
    slots: int,
    memory_price: float,
    slot_price: float,
) -> float:
    """Compiled core of :func:`price_bound`; weights as float64 so that the loop is SIMD."""
    n = gains.size
    profit = 0.0
    size = 0.0
    for i in range(n):
        reduced = gains[i] - memory_price * weights[i] - slot_price
        chosen = reduced > 0.0
        profit += reduced if chosen else 0.0
        size += abs(gains[i]) + memory_price * weights[i] if chosen else 0.0
    base = memory_price * capacity + slot_price * slots
    # Each term is off by a few units of its own size, the sum by n units of its size, in
    # whatever order it is added.
    size += memory_price * capacity + 2.0 * abs(slot_price) * slots + abs(slot_price) * n
    return base + profit + _UNIT_ROUNDOFF * (n + 8) * size


@jit(error_model="numpy")
def find_prices(
    gains: NDArray[np.float64],
    weights: NDArray[np.float64],
    capacity: float,
    slots: int,
    exactly: bool,
    start: float,
    work: NDArray[np.float64],
) -> tuple[float, float, float]:
    """
    Compiled core of :func:`dual_bound`: the best prices, searched from scratch.

    Parameters
    ----------
    gains, weights
        As for :func:`dual_bound`, both float64.
    capacity, slots, exactly
        As for :func:`dual_bound`. With ``exactly`` the lightest ``slots`` requests must
        fit, else there is no finite bound; the caller checks that.
    start
        Memory price to start from (that of a neighbouring batch size); < 0 if none.
    work
        Scratch, (5, at least n).

    Returns
    -------
    bound, memory_price, slot_price
    """
    n = gains.size
    if n == 0:
        return 0.0, 0.0, 0.0
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
    price, slot_price = _cut(
        work, n, 0.0, 0.0, min(slots, n), capacity, exactly, max(start, 0.0), limit, not exactly
    )
    bound = evaluate_prices(gains, weights, capacity, min(slots, n), price, slot_price)
    return bound, price, slot_price


@jit(error_model="numpy")
def update_prices(
    gains: NDArray[np.float64],
    weights: NDArray[np.float64],
    capacity: float,
    slots: int,
    exactly: bool,
    memory_price: float,
    slot_price: float,
    memory_margin: float,
    slot_margin: float,
    work: NDArray[np.float64],
) -> tuple[float, float, float]:
    """
    As :func:`find_prices`, for prices that probably lie near known ones.

    Requests whose choice is the same at all prices within the margins are set aside. If the
    best prices of the rest lie within the margins, they are the best of all (the function
    is convex); if not, the search starts from scratch.

    Parameters
    ----------
    gains, weights, capacity, slots, exactly, work
        As for :func:`find_prices`.
    memory_price, slot_price
        The known prices.
    memory_margin, slot_margin
        How far the best prices may be from them, >= 0.
    """
    n = gains.size
    low = max(0.0, memory_price - memory_margin)
    high = memory_price + max(memory_margin, _TINY_PRICE)
    low_slot, high_slot = slot_price - slot_margin, slot_price + slot_margin
    if not exactly:
        low_slot = max(0.0, low_slot)
    g, w = work[0], work[1]
    active = as_int(0)
    left = min(slots, n)
    fixed_value = 0.0
    fixed_weight = 0.0
    for i in range(n):
        gain, weight = gains[i], weights[i]
        always = gain - high * weight > high_slot
        never = gain - low * weight < low_slot
        fixed_value += gain if always else 0.0
        fixed_weight += weight if always else 0.0
        left -= always
        g[active] = gain
        w[active] = weight
        active += not (always or never)
    if 0 <= left <= active and active < n:
        price, slot = _cut(
            work,
            active,
            fixed_value,
            fixed_weight,
            left,
            capacity,
            exactly,
            memory_price,
            high,
            as_bool(False),
        )
        # A price at the upper end means that the walk was stopped there.
        if low <= price < high and low_slot <= slot <= high_slot:
            bound = evaluate_prices(gains, weights, capacity, min(slots, n), price, slot)
            return bound, price, slot
    return find_prices(gains, weights, capacity, slots, exactly, memory_price, work)


@inner
def _cut(
    work: NDArray[np.float64],
    active: int,
    fixed_value: float,
    fixed_weight: float,
    left: int,
    capacity: float,
    exactly: bool,
    start: float,
    limit: float,
    limit_is_known: bool,
) -> tuple[float, float]:
    """
    Best memory and slot price, by cutting planes, of ``left`` slots for the active requests
    whose gains and weights are in work[0] and work[1].

    No price above ``limit`` is tried; ``limit_is_known`` says that nothing active is chosen
    there.
    """
    g, w, scores, scratch, spare = work[0], work[1], work[2], work[3], work[4]

    # The two sides of the bracket: price, slot price, value and weight of the chosen set.
    # Below, the set is too heavy; above, it fits.
    low, low_slot, low_value, low_weight = 0.0, 0.0, 0.0, 0.0
    high, high_slot, high_value, high_weight = limit, 0.0, fixed_value, fixed_weight
    have_low, have_high = False, limit_is_known
    meet = np.inf
    side = 0  # how often in a row the same side moved

    price = start
    step = 1.0 + 2.0**-7
    best_bound, best_price, best_slot = np.inf, price, 0.0
    if have_high:
        best_bound, best_price = fixed_value + limit * (capacity - fixed_weight), limit
    for _ in range(_MAX_ROUNDS):
        slot_price, value, weight = _choose(
            g, w, active, left, exactly, price, scores, scratch, spare
        )
        value += fixed_value
        weight += fixed_weight
        bound = value + price * (capacity - weight)
        tied = bound <= best_bound + 1e-14 * (abs(value) + price * abs(capacity - weight))
        if bound < best_bound or (tied and _FAR * price < best_price):
            best_bound, best_price, best_slot = bound, price, slot_price
        # At the crossing of the bracket's lines, one of them again means the end.
        crossed = have_low and have_high and price == meet
        if weight > capacity:
            if crossed and weight == low_weight and value == low_value:
                break
            low, low_slot, low_value, low_weight = price, slot_price, value, weight
            have_low = True
            side = max(side, 0) + 1
        else:
            if price == 0.0 or (crossed and weight == high_weight and value == high_value):
                break
            high, high_slot, high_value, high_weight = price, slot_price, value, weight
            have_high = True
            side = min(side, 0) - 1

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

        # Only requests whose choice can still change stay active: slot prices fall when
        # the memory price rises, so both ends of the bracket bound both prices.
        active, fixed_value, fixed_weight, left = _narrow(
            g, w, active, fixed_value, fixed_weight, left, low, low_slot, high, high_slot
        )
        meet = (low_value - high_value) / (low_weight - high_weight)
        expected = low_value + meet * (capacity - low_weight)
        if not low < meet < high:
            break
        # A set that just fills the memory is best at all prices from somewhere on. Far up there
        # rounding hides what the gains differ by, so the search goes down to where that begins.
        if best_bound <= expected + 1e-14 * abs(expected) and best_price <= _FAR * meet:
            break
        price = meet
        # One end that stays put far away makes the crossings creep: step towards it.
        if side >= 3 and high > 1.25 * low:
            price = np.sqrt(meet * high)
        elif side <= -3 and high > 1.25 * low:
            price = np.sqrt(meet * low) if low > 0.0 else 0.5 * meet
    return best_price, best_slot


@inner
def _choose(
    g: NDArray[np.float64],
    w: NDArray[np.float64],
    active: int,
    left: int,
    exactly: bool,
    price: float,
    scores: NDArray[np.float64],
    scratch: NDArray[np.float64],
    spare: NDArray[np.float64],
) -> tuple[float, float, float]:
    """Slot price, value and weight of the ``left`` best active requests at a memory price."""
    if active == 0:
        return 0.0, 0.0, 0.0
    top = -np.inf
    for i in range(active):
        score = g[i] - price * w[i]
        scores[i] = score
        scratch[i] = score
        top = max(top, score)
    if left == 0:
        slot_price = top
    elif left >= active:
        slot_price = kth_largest(scratch, active, active, spare) if exactly else 0.0
    else:
        slot_price = kth_largest(scratch, active, left, spare)
    if not exactly:
        slot_price = max(slot_price, 0.0)

    value = 0.0
    weight = 0.0
    count = 0
    for i in range(active):
        above = scores[i] > slot_price
        value += g[i] if above else 0.0
        weight += w[i] if above else 0.0
        count += above
    if count < left and (exactly or slot_price > 0.0):
        for i in range(active):
            if scores[i] == slot_price:
                value += g[i]
                weight += w[i]
                count += 1
                if count == left:
                    break
    return slot_price, value, weight


@inner
def _narrow(
    g: NDArray[np.float64],
    w: NDArray[np.float64],
    active: int,
    fixed_value: float,
    fixed_weight: float,
    left: int,
    low: float,
    low_slot: float,
    high: float,
    high_slot: float,
) -> tuple[int, float, float, int]:
    """Drop what no price in the bracket chooses, fix what every price chooses."""
    kept = as_int(0)
    for i in range(active):
        gain, weight = g[i], w[i]
        always = gain - high * weight > low_slot
        never = gain - low * weight < high_slot
        fixed_value += gain if always else 0.0
        fixed_weight += weight if always else 0.0
        left -= always
        g[kept] = gain
        w[kept] = weight
        kept += not (always or never)
    return kept, fixed_value, fixed_weight, left


@jit(error_model="numpy")
def kth_largest(values: NDArray[np.float64], n: int, k: int, spare: NDArray[np.float64]) -> float:
    """
    The k-th largest (1 <= k <= n) of ``values[:n]``, which it may reorder.

    Long inputs are first cut down by two pivots from a sample that enclose the rank in all
    likelihood (Floyd and Rivest 1975); the pass has no branch to mispredict.
    """
    if n > 4 * _SAMPLE:
        stride = n // _SAMPLE
        for j in range(_SAMPLE):
            spare[j] = values[j * stride]
        _sort_descending(spare, as_int(0), as_int(_SAMPLE - 1))
        rank = k * _SAMPLE // n
        upper = spare[rank - _SAMPLE // 10] if rank >= _SAMPLE // 10 else np.inf
        reach = rank + _SAMPLE // 10
        lower = spare[reach] if reach < _SAMPLE else -np.inf
        above = as_int(0)
        kept = as_int(0)
        for i in range(n):
            value = values[i]
            above += value > upper
            spare[kept] = value
            kept += (value <= upper) & (value >= lower)
        if above < k <= above + kept:
            return _quickselect(spare, kept, k - above)
    return _quickselect(values, n, k)


@inner
def _quickselect(values: NDArray[np.float64], n: int, k: int) -> float:
    low = as_int(0)
    high = n - 1
    target = k - 1
    while high - low > 16:
        middle = (low + high) >> 1
        a, b, c = values[low], values[middle], values[high]
        pivot = max(min(a, b), min(max(a, b), c))
        i = low
        j = high
        while i <= j:
            while values[i] > pivot:
                i += 1
            while values[j] < pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if target <= j:
            high = j
        elif target >= i:
            low = i
        else:
            return values[target]
    _sort_descending(values, low, high)
    return values[target]


@inner
def _sort_descending(values: NDArray[np.float64], low: int, high: int) -> None:
    for i in range(low + 1, high + 1):
        value = values[i]
        j = i - 1
        while j >= low and values[j] < value:
            values[j + 1] = values[j]
            j -= 1
        values[j + 1] = value
