"""Greedy packing improved by insertions, swaps and seeded kicks."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import numpy as np

from andes_opt import checks
from andes_opt.compilation import jit
from andes_opt.plan import make_plan, no_solution
from solvers.packing import SKIP, pack_all_batches, pack_in_order, repair_order
from solvers.sweep import best_size, upper_bound

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from andes_opt.instance import Instance
    from andes_opt.plan import Plan


class LocalSearch:
    """
    Greedy-skip, then insertions and one-for-one swaps up to a local optimum.

    A grid of batch sizes is searched, then finer and finer around the best. At each, the
    best insertion, removal or swap of one request for another is made until none improves;
    seeded kicks (force one request in, drop the least dense ones, refill) restart from
    there. Use it where greedy loses because slots are scarce (swaps see what a slot is
    worth, gain/weight does not) and no certificate is needed. Its limit:
    milliseconds rather than greedy's fraction of one (some 40 at 1000 requests), and no
    guarantee; ``price_rounding`` is mostly better and faster.

    Parameters
    ----------
    starts
        Batch sizes of the grid, >= 1; where greedy-skip packs most is searched as well.
    kicks
        Kicks per batch size, >= 0.
    seed
        Seed of the kicks, >= 0. The same instance gets the same plan at every call.
    bound
        If True, plans carry a proven upper bound from the dual prices.

    Raises
    ------
    ValueError
        If an option is out of range.
    """

    exact = False

    def __init__(
        self, *, starts: int = 8, kicks: int = 10, seed: int = 0, bound: bool = False
    ) -> None:
        checks.whole("starts", starts, 1)
        checks.whole("kicks", kicks, 0)
        checks.whole("seed", seed, 0)
        self.starts = starts
        self.kicks = kicks
        self.seed = seed
        self.bound = bound

    def solve(self, instance: Instance, *, time_limit_s: float | None = None) -> Plan:
        """
        Search; see :class:`~andes_opt.solver.Solver`.

        The time limit is looked at between batch sizes.
        """
        started = time.perf_counter()
        deadline_s = math.inf if time_limit_s is None else started + time_limit_s
        packing = pack_all_batches(instance, rule=SKIP, deadline_s=deadline_s)
        if packing is None:
            return no_solution(instance, proven=True, solve_s=time.perf_counter() - started)
        serve, batch_size, value = packing.serve, packing.batch_size, packing.value

        by_weight = np.argsort(instance.weights, kind="stable")
        generator = np.random.default_rng(self.seed)
        first, last = packing.first, packing.first + packing.values.size - 1
        step = max(1, -(-packing.values.size // self.starts))
        queue = [max(batch_size, first), *range(first + step // 2, last + 1, step)]
        visited: set[int] = set()
        moves = 0
        while first <= last and queue and time.perf_counter() < deadline_s:
            size = queue.pop(0)
            # A copy, because compiled code is compiled again for read-only arrays.
            gains = np.array(instance.gains_at(size))
            kicks = generator.integers(0, instance.num_requests, (self.kicks, 2))
            found, moved = _search(instance, gains, by_weight, size, kicks)
            moves += moved
            found_size, found_value = best_size(instance, found, size, gains)
            if found_value > value:
                serve, batch_size, value = found, found_size, found_value
            visited.add(size)
            while not queue and step > 1:
                step //= 2
                around = (batch_size - step, batch_size + step)
                queue = [b for b in around if first <= b <= last and b not in visited]

        bound = math.inf
        if self.bound:
            bound = upper_bound(instance, above=value, deadline_s=deadline_s)
        return make_plan(
            instance,
            serve,
            batch_size,
            bound=bound,
            build_s=packing.build_s,
            solve_s=time.perf_counter() - started - packing.build_s,
            info={"batch_sizes_examined": packing.values.size, "moves": moves},
        )


def _search(
    instance: Instance,
    gains: NDArray[np.float64],
    by_weight: NDArray[np.int64],
    slots: int,
    kicks: NDArray[np.int64],
) -> tuple[NDArray[np.bool_], int]:
    """Greedy-skip at one batch size, then descents and kicks: (selection, moves made)."""
    weights, capacity, exactly = instance.weights, instance.capacity, instance.exactly
    order = np.arange(gains.size)
    repair_order(order, gains / weights)
    inside = np.empty(gains.size, dtype=np.bool_)
    pack_in_order(order, gains, weights, by_weight, capacity, slots, exactly, SKIP, inside)
    moves = _descend(gains, weights, by_weight, capacity, slots, exactly, inside)
    best, best_value = inside.copy(), gains[inside].sum()
    for forced, out in kicks:
        if exactly:
            _kick_exactly(weights, capacity, forced, out, inside)
        else:
            _kick_at_most(order, gains, weights, capacity, slots, forced, inside)
        moves += _descend(gains, weights, by_weight, capacity, slots, exactly, inside)
        value = gains[inside].sum()
        if value > best_value:
            best, best_value = inside.copy(), value
        else:
            inside[:] = best
    return best, moves


@jit
def _descend(
    gains: NDArray[np.float64],
    weights: NDArray[np.int64],
    by_weight: NDArray[np.int64],
    capacity: int,
    slots: int,
    exactly: bool,
    inside: NDArray[np.bool_],
) -> int:
    """
    Make the best insertion, removal or swap until none gains; returns the moves made.

    Each move takes O(n): walking up the requests inside by weight, the heaviest request
    outside that could take such a place only moves up too, so the most valuable outside
    request that fits is a running maximum.
    """
    n = gains.size
    free = capacity
    left = slots
    scale = 0.0
    for i in range(n):
        scale = max(scale, abs(gains[i]))
        if inside[i]:
            free -= weights[i]
            left -= 1
    threshold = 1e-12 * scale  # a smaller "gain" may be rounding, and could cycle

    moves = 0
    while True:
        best_delta, best_in, best_out = threshold, -1, -1
        candidate = -1
        reach = 0  # by_weight[:reach] has been offered as candidate
        while reach < n and weights[by_weight[reach]] <= free:
            i = by_weight[reach]
            if not inside[i] and (candidate < 0 or gains[i] > gains[candidate]):
                candidate = i
            reach += 1
        if candidate >= 0 and left > 0 and not exactly and gains[candidate] > best_delta:
            best_delta, best_in = gains[candidate], candidate

        for out in by_weight:
            if not inside[out]:
                continue
            if not exactly and -gains[out] > best_delta:
                best_delta, best_in, best_out = -gains[out], -1, out
            while reach < n and weights[by_weight[reach]] <= free + weights[out]:
                i = by_weight[reach]
                if not inside[i] and (candidate < 0 or gains[i] > gains[candidate]):
                    candidate = i
                reach += 1
            if candidate >= 0 and gains[candidate] - gains[out] > best_delta:
                best_delta, best_in, best_out = gains[candidate] - gains[out], candidate, out

        if best_in < 0 and best_out < 0:
            return moves
        moves += 1
        if best_in >= 0:
            inside[best_in] = True
            free -= weights[best_in]
            left -= 1
        if best_out >= 0:
            inside[best_out] = False
            free += weights[best_out]
            left += 1


@jit
def _kick_at_most(
    order: NDArray[np.int64],
    gains: NDArray[np.float64],
    weights: NDArray[np.int64],
    capacity: int,
    slots: int,
    forced: int,
    inside: NDArray[np.bool_],
) -> None:
    """Force a request in, drop the least dense others until it fits, refill by density."""
    n = gains.size
    if weights[forced] > capacity:
        return
    inside[forced] = True
    free = capacity
    left = slots
    for i in range(n):
        if inside[i]:
            free -= weights[i]
            left -= 1
    for position in range(n - 1, -1, -1):
        if free >= 0 and left >= 0:
            break
        i = order[position]
        if inside[i] and i != forced:
            inside[i] = False
            free += weights[i]
            left += 1
    for i in order:
        if left <= 0 or gains[i] <= 0.0:
            break
        if not inside[i] and weights[i] <= free:
            inside[i] = True
            free -= weights[i]
            left -= 1


@jit
def _kick_exactly(
    weights: NDArray[np.int64], capacity: int, new: int, out: int, inside: NDArray[np.bool_]
) -> None:
    """Swap the first request outside from ``new`` on for the first inside from ``out`` on."""
    n = inside.size
    count = 0
    free = capacity
    for i in range(n):
        if inside[i]:
            count += 1
            free -= weights[i]
    if count == 0 or count == n:
        return
    while inside[new]:
        new = (new + 1) % n
    while not inside[out]:
        out = (out + 1) % n
    if weights[new] <= free + weights[out]:
        inside[new] = True
        inside[out] = False
