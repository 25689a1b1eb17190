"""
Compiled core of the exact solver: which batch sizes to examine, and one of them in full.

:func:`search_batch` settles one batch size by deepening the loss budget of
:mod:`solvers._exact_lists`. :func:`optimise` visits batch sizes: it climbs to the one with
the largest dual bound, settles it, and sweeps outwards, jumping over every range of batch
sizes that a bound proves hopeless.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from andes_opt.gains import fill_gains, token_rate
from solvers._exact_lists import NEEDS_ROOM, OUT_OF_TIME, list_half, match_halves
from solvers.clock import now_s
from solvers.prices import evaluate_prices, find_prices, update_prices

if TYPE_CHECKING:
    from numpy.typing import NDArray

_UNIT_ROUNDOFF = 2.0**-53

#: Losses within this share of max(1, |value|) of the incumbent's are not worth finding.
SLACK = 2e-10

#: Free requests at which a search starts to deepen.
_FIRST_DEPTH = 24
_MOST_STATES = 2**22

#: Positions in the statistics array.
EXAMINED, SEARCHED, STATES, DEEPENED, PRICED, JUMPS = range(6)


@njit(cache=True)
def search_batch(
    g,
    weights,
    capacity,
    slots,
    exactly,
    memory_price,
    slot_price,
    bound,
    incumbent,
    depth_hint,
    lists,
    chosen,
    deadline_s,
    clock,
    statistics,
):
    """Settle one batch size: the best plan worth more than the incumbent, if any.

    Returns value (of the plan written to ``chosen``; the incumbent's if none was found),
    proven bound, loss of the best plan found (inf if none), and the lists, which may have grown.
    """
    keys, losses, costs, nodes, parents, flips = lists
    n = g.size
    found_value = incumbent
    cutoff = incumbent + SLACK * max(1.0, abs(incumbent)) if incumbent > -np.inf else -np.inf
    widest = bound - cutoff

    # The base set, and the requests whose flip alone does not exceed the budget.
    free_weight = capacity
    free_slots = slots
    base_value = 0.0
    count = 0
    for i in range(n):
        reduced = g[i] - memory_price * weights[i] - slot_price
        if reduced > 0.0:
            free_weight -= weights[i]
            free_slots -= 1
        count += abs(reduced) <= widest
    item_index = np.empty(count, np.int64)
    loss_of = np.empty(count)
    k = 0
    for i in range(n):
        reduced = g[i] - memory_price * weights[i] - slot_price
        if abs(reduced) <= widest:
            item_index[k] = i
            loss_of[k] = abs(reduced)
            k += 1
    order = np.argsort(loss_of)
    item_losses = loss_of[order]
    item_index = item_index[order]

    # One integer for count and weight. If slots are free for everybody they don't matter.
    total = abs(free_weight) + 1
    adds = 0
    for k in range(count):
        i = item_index[k]
        total += weights[i]
        adds += g[i] - memory_price * weights[i] - slot_price <= 0.0
    counted = exactly or slot_price != 0.0 or free_slots < adds
    stride = 4 * total if counted else 0
    if stride > 2**61 // (2 * count + 2 * abs(free_slots) + 4):
        return found_value, bound, np.inf, lists
    item_keys = np.empty(count, np.int64)
    item_costs = np.empty(count)
    for k in range(count):
        i = item_index[k]
        if g[i] - memory_price * weights[i] - slot_price > 0.0:
            item_keys[k] = -stride - int(weights[i])
            item_costs[k] = g[i] - slot_price
        else:
            item_keys[k] = stride + int(weights[i])
            item_costs[k] = slot_price - g[i]

    budget = widest
    if count > _FIRST_DEPTH:
        budget = max(item_losses[_FIRST_DEPTH], 1.25 * depth_hint)
    if widest <= 1.5 * budget:
        budget = widest
    proven = bound
    best_loss = np.inf
    while True:
        statistics[DEEPENED] += 1
        most = np.searchsorted(item_losses, budget, side="right")
        size_a, row_a, spare, pool = list_half(
            keys, losses, costs, nodes, parents, flips, 0, 0, 2, 0, most,
            item_keys, item_losses, item_costs, budget, stride, deadline_s, clock,
        )
        size_b, row_b = size_a, row_a
        if size_a > 0:
            free_row = spare
            size_b, row_b, spare, pool = list_half(
                keys, losses, costs, nodes, parents, flips, pool, 1, free_row, 1, most,
                item_keys, item_losses, item_costs, budget, stride, deadline_s, clock,
            )
        if size_a == OUT_OF_TIME or size_b == OUT_OF_TIME:
            break
        if size_a == NEEDS_ROOM or size_b == NEEDS_ROOM:
            if keys.shape[1] >= _MOST_STATES:
                break
            room = 4 * keys.shape[1]
            keys = np.empty((3, room), np.int64)
            losses = np.empty((3, room))
            costs = np.empty((3, room))
            nodes = np.empty((3, room), np.int32)
            parents = np.empty(4 * room, np.int32)
            flips = np.empty(4 * room, np.int32)
            continue

        statistics[STATES] += size_a + size_b
        most_idle = 0
        if counted and not exactly:
            most_idle = max(0, free_slots) + most
            if slot_price > 0.0:
                most_idle = int(min(most_idle, budget / slot_price))
        loss, a, b = match_halves(
            keys, costs, row_a, size_a, row_b, size_b, int(free_weight), free_slots,
            stride, most_idle, memory_price, slot_price, min(widest, best_loss),
        )
        if a >= 0:
            best_loss = loss
            for i in range(n):
                chosen[i] = g[i] - memory_price * weights[i] - slot_price > 0.0
            for node in (nodes[row_a, a], nodes[row_b, b]):
                while node >= 0:
                    i = item_index[flips[node]]
                    chosen[i] = not chosen[i]
                    node = parents[node]
            value = 0.0
            for i in range(n):
                value += g[i] if chosen[i] else 0.0
            found_value = value
            widest = min(widest, loss)
        if budget >= widest:
            proven = max(cutoff, found_value + SLACK * max(1.0, abs(found_value)))
            proven = min(proven, bound) if a < 0 and best_loss == np.inf else proven
            break
        proven = min(proven, bound - budget)
        budget = widest if widest <= 2.5 * budget else 1.7 * budget
    lists = (keys, losses, costs, nodes, parents, flips)
    return found_value, proven, best_loss, lists


@njit(cache=True)
def optimise(
    model, weights, capacity, most, first, last, exactly, monotone, concave,
    start_batch, start_price, serve, batch_size, value, lists, work, deadline_s, clock, statistics,
):
    """The best plan over all batch sizes; see the module."""
    if monotone:
        return _sweep_outwards(
            model, weights, capacity, most, first, last, exactly, concave, start_batch,
            start_price, serve, batch_size, value, lists, work, deadline_s, clock, statistics,
        )
    return _sweep_all(
        model, weights, capacity, most, first, last, exactly, start_price, serve, batch_size,
        value, lists, work, deadline_s, clock, statistics,
    )


@njit(cache=True)
def _sweep_outwards(
    model, weights, capacity, most, first, last, exactly, concave, start_batch, start_price,
    serve, batch_size, value, lists, work, deadline_s, clock, statistics,
):
    m = weights.size
    g = np.empty(m)
    neighbour = np.empty(m)
    chosen = np.zeros(m, np.bool_)
    settled = -np.inf
    best_batch = batch_size
    depth = 0.0

    peak, peak_price, peak_slot = _climb(
        model, g, neighbour, weights, capacity, most, first, last, exactly, start_batch,
        start_price, work, deadline_s, clock, statistics,
    )
    best_price = peak_price
    for direction in (1, -1):
        batch = peak if direction == 1 else peak - 1
        end = last if direction == 1 else first
        memory_price, slot_price = peak_price, peak_slot
        memory_margin, slot_margin = 0.02 * memory_price, 0.02 * abs(slot_price)
        stride = 1
        while first <= batch <= last:
            _gains(model, batch, g)
            slots = min(batch, most)
            # Fewer than B requests are worth at least as much at a smaller B.
            full = exactly or batch > first
            if now_s(clock) > deadline_s:
                # Gains at the low end and slots at the high end bound all that is left.
                low, high = min(batch, end), max(batch, end)
                _gains(model, low, g)
                bound, _, _ = find_prices(
                    g, weights, capacity, min(high, most), False, best_price, work
                )
                settled = max(settled, bound)
                break
            cutoff = value + SLACK * max(1.0, abs(value))
            statistics[PRICED] += 1
            bound = np.inf
            if full or slot_price >= 0.0:
                bound = evaluate_prices(g, weights, capacity, slots, memory_price, slot_price)
            if bound > cutoff:
                statistics[EXAMINED] += 1
                bound, new_memory, new_slot = update_prices(
                    g, weights, capacity, slots, full, memory_price, slot_price,
                    memory_margin, slot_margin, work,
                )
                memory_margin = 3.0 * abs(new_memory - memory_price) + 0.002 * new_memory
                slot_margin = 3.0 * abs(new_slot - slot_price) + 0.002 * abs(new_slot)
                memory_price, slot_price = new_memory, new_slot
            if bound > cutoff:
                statistics[SEARCHED] += 1
                new_value, proven, loss, lists = search_batch(
                    g, weights, capacity, slots, full, memory_price, slot_price, bound,
                    value, depth, lists, chosen, deadline_s, clock, statistics,
                )
                settled = max(settled, proven)
                if loss < np.inf:
                    depth = loss
                if new_value > value:
                    value = new_value
                    best_batch = batch
                    best_price = memory_price
                    serve[:] = chosen
            if batch == end:
                break
            cutoff = value + SLACK * max(1.0, abs(value))
            reached = _jump(
                model, g, neighbour, weights, capacity, batch, end, first, exactly, concave,
                memory_price, slot_price, cutoff, stride, statistics,
            )
            stride = max(1, abs(reached - batch) - 1)
            batch = reached
    bound = max(settled, value + SLACK * max(1.0, abs(value)))
    return value, best_batch, bound, best_price, lists


@njit(cache=True)
def _sweep_all(
    model, weights, capacity, most, first, last, exactly, start_price, serve, batch_size, value,
    lists, work, deadline_s, clock, statistics,
):
    m = weights.size
    g = np.empty(m)
    chosen = np.zeros(m, np.bool_)
    settled = -np.inf
    best_batch = batch_size
    best_price = start_price
    depth = 0.0
    bounds = np.full(last - first + 1, np.inf)
    prices = np.zeros((last - first + 1, 2))
    memory_price, slot_price = start_price, 0.0
    solved = False
    late = False
    for batch in range(first, last + 1):
        late = late or now_s(clock) > deadline_s
        _gains(model, batch, g)
        slots = min(batch, most)
        bound = np.inf
        if solved:
            statistics[PRICED] += 1
            bound = evaluate_prices(g, weights, capacity, slots, memory_price, slot_price)
        if not late and bound > value:
            statistics[EXAMINED] += 1
            bound, memory_price, slot_price = find_prices(
                g, weights, capacity, slots, exactly, memory_price, work
            )
            solved = True
            rounded = _round_down(
                g, weights, capacity, slots, exactly, memory_price, slot_price, chosen
            )
            if rounded > value:
                value = rounded
                best_batch = batch
                best_price = memory_price
                serve[:] = chosen
        bounds[batch - first] = bound
        prices[batch - first, 0] = memory_price
        prices[batch - first, 1] = slot_price
    while True:
        k = np.argmax(bounds)
        bound = bounds[k]
        if bound <= value + SLACK * max(1.0, abs(value)):
            break
        if now_s(clock) > deadline_s:
            settled = max(settled, bound)
            break
        batch = first + k
        _gains(model, batch, g)
        statistics[SEARCHED] += 1
        new_value, proven, loss, lists = search_batch(
            g, weights, capacity, min(batch, most), exactly, prices[k, 0], prices[k, 1],
            bound, value, depth, lists, chosen, deadline_s, clock, statistics,
        )
        settled = max(settled, proven)
        bounds[k] = -np.inf
        if loss < np.inf:
            depth = loss
        if new_value > value:
            value = new_value
            best_batch = batch
            best_price = prices[k, 0]
            serve[:] = chosen
    bound = max(settled, value + SLACK * max(1.0, abs(value)))
    return value, best_batch, bound, best_price, lists


@njit(cache=True)
def _gains(model, batch, out):
    """Gains of the requests that fit at all."""
    kind, params, scalars, index, whole = model
    if index.size == whole.size:
        fill_gains(kind, params, scalars, batch, out)
        return
    fill_gains(kind, params, scalars, batch, whole)
    for i in range(out.size):
        out[i] = whole[index[i]]


@njit(cache=True)
def _round_down(g, weights, capacity, slots, exactly, memory_price, slot_price, chosen):
    """Value of the base set if it is feasible, else -inf."""
    value = 0.0
    weight = 0.0
    count = 0
    for i in range(g.size):
        chosen[i] = g[i] - memory_price * weights[i] - slot_price > 0.0
        if chosen[i]:
            value += g[i]
            weight += weights[i]
            count += 1
    if weight > capacity or count > slots or (exactly and count < slots):
        return -np.inf
    return value


@njit(cache=True)
def _climb(
    model, g, neighbour, weights, capacity, most, first, last, exactly, start_batch, start_price,
    work, deadline_s, clock, statistics,
):
    """A batch size of (nearly always) the largest dual bound, and its prices.

    The slope of the dual bound is read off the prices: what they say about B + 1. A wrong
    answer costs time only, so the search for its sign change stops when it is close.
    """
    low, high = first, last
    low_slope, high_slope = 0.0, 0.0
    price, slot_price = start_price, 0.0
    memory_margin, slot_margin = -1.0, -1.0
    batch = start_batch if first <= start_batch <= last else (first + last) // 2
    while low < high:
        batch = min(max(batch, low), high - 1)
        _gains(model, batch, g)
        _gains(model, batch + 1, neighbour)
        slots = min(batch, most)
        full = exactly or batch > first
        statistics[EXAMINED] += 1
        if memory_margin >= 0.0:
            bound, new_price, new_slot = update_prices(
                g, weights, capacity, slots, full, price, slot_price, memory_margin,
                slot_margin, work,
            )
            memory_margin = 0.7 * abs(new_price - price)
            slot_margin = 0.7 * abs(new_slot - slot_price)
        else:
            bound, new_price, new_slot = find_prices(
                g, weights, capacity, slots, full, price, work
            )
            memory_margin = 0.3 * new_price
            slot_margin = 0.3 * abs(new_slot)
        price, slot_price = new_price, new_slot
        slope = (
            evaluate_prices(
                neighbour, weights, capacity, min(batch + 1, most), price, slot_price
            )
            - bound
        )
        if slope > 0.0:
            low, low_slope = batch + 1, slope
        else:
            high, high_slope = batch, slope
        if now_s(clock) > deadline_s:
            break
        share = 0.5
        if low_slope > 0.0 and high_slope < 0.0:
            share = min(0.9, max(0.1, low_slope / (low_slope - high_slope)))
        batch = low + int(share * (high - low))
    return low, max(price, 0.0), slot_price


@njit(cache=True)
def _jump(
    model, g, neighbour, weights, capacity, batch, end, first, exactly, concave, memory_price,
    slot_price, cutoff, stride, statistics,
):
    """The next batch size towards ``end`` that the prices at hand do not rule out.

    ``g`` holds the gains at ``batch``, ``stride`` is the length of the last jump.
    """
    _, _, scalars, _, _ = model
    direction = 1 if end > batch else -1
    near = batch + direction
    if direction < 0 and near == first and not exactly and slot_price < 0.0:
        return near
    if direction > 0:
        # Gains do not rise: only the price of more slots has to be added.
        here = evaluate_prices(g, weights, capacity, batch, memory_price, slot_price)
        if here <= cutoff and slot_price <= 0.0:
            return end + 1
    statistics[JUMPS] += 1
    rate = back = 0.0
    if concave and batch >= direction:
        rate = token_rate(scalars, batch)
        back = token_rate(scalars, batch - direction)
    straight = back != rate
    if straight:
        # From here, `neighbour` is the change of the gains per unit of rate.
        _gains(model, batch - direction, neighbour)
        for i in range(g.size):
            neighbour[i] = (neighbour[i] - g[i]) / (back - rate)
    elif direction > 0:
        if here <= cutoff:
            return min(end + 1, max(near, batch + int((cutoff - here) / slot_price * 0.999999)))
        return near

    # At-most plans of batch size `first` need a slot price >= 0.
    limit = end
    if direction < 0 and not exactly and slot_price < 0.0 and end == first:
        limit = first + 1
    good, bad = batch, limit + direction
    trial = near
    stride = max(1, 2 * stride)
    while True:
        if straight:
            bound = _extrapolated(
                g, neighbour, weights, capacity, memory_price, slot_price, near, trial,
                rate, token_rate(scalars, trial), abs(back - rate),
            )
        else:
            _gains(model, trial, neighbour)
            slots = near if slot_price >= 0.0 else trial
            bound = evaluate_prices(neighbour, weights, capacity, slots, memory_price, slot_price)
        if bound <= cutoff:
            good = trial
            stride *= 2
        else:
            bad = trial
            if trial == near:
                break
            stride = max(1, min(stride // 4, abs(bad - good) // 2))
        if abs(bad - good) <= 1 + abs(good - batch) // 8:
            break
        trial = good + direction * stride
        if (trial - bad) * direction >= 0:
            trial = bad - direction if bad == limit + direction else (good + bad) // 2
    return good + direction


@njit(cache=True, fastmath={"reassoc", "nsz"})
def _extrapolated(
    g, change, weights, capacity, memory_price, slot_price, near, far, rate, far_rate, unit
):
    """The bound at batch size ``far`` with gains continued in a straight line.

    A gain that is concave in the rate lies below the line through two of its points
    outside of them.
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
