"""
The one place that sweeps the batch size for solvers that know only one B at a time.

Gains depend on B, so a back-end that packs one knapsack has to be asked once per B. The
driver here keeps that rare: it bounds whole ranges of batch sizes with the two Lagrangian
prices of :mod:`solvers.prices`, always opens the range with the largest bound, and stops as
soon as no open range can beat the incumbent (best-first branch and bound over B).
"""

from __future__ import annotations

import heapq
import math
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from andes_opt.formulation import most_that_fit
from andes_opt.plan import TOLERANCE, make_plan, no_solution
from solvers.prices import dual_bound

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from andes_opt.instance import Instance
    from andes_opt.plan import Plan


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    What a back-end found out about one batch size.

    Parameters
    ----------
    serve
        Best selection found, (n,); None if nothing better than the cutoff was found.
    bound
        Proven upper bound on the value of the subproblem at this B; inf if none. A
        back-end that stopped at the cutoff states at least the cutoff.
    build_s, solve_s
        Wall-clock seconds to build the model and to solve it.
    info
        The back-end's own numbers; they are summed over the batch sizes.
    """

    serve: NDArray[np.bool_] | None
    bound: float
    build_s: float = 0.0
    solve_s: float = 0.0
    info: Mapping[str, float] = field(default_factory=dict)


class SolveOne(Protocol):
    """A solver for one batch size."""

    def __call__(
        self,
        batch_size: int,
        gains: NDArray[np.float64],
        cutoff: float,
        time_left_s: float | None,
        /,
    ) -> Outcome:
        """
        Pack one knapsack.

        Parameters
        ----------
        batch_size
            B: serve at most (``instance.exactly``: exactly) so many. It may exceed n
            unless ``exactly``; a size at which no selection fits is never asked.
        gains
            Gains at this B, (n,); read only.
        cutoff
            Value of the incumbent. Selections worth no more need not be returned.
        time_left_s
            Seconds left; None for no limit.
        """
        ...


class SolveMany(Protocol):
    """A solver for several batch sizes at once: sizes (k,), gains (k, n), k outcomes."""

    def __call__(
        self,
        batch_sizes: Sequence[int],
        gains: NDArray[np.float64],
        cutoff: float,
        time_left_s: float | None,
        /,
    ) -> Sequence[Outcome]: ...


def sweep(
    instance: Instance,
    solve_one: SolveOne,
    *,
    tolerance: float = TOLERANCE,
    time_limit_s: float | None = None,
) -> Plan:
    """
    Solve an instance over all its batch sizes with a solver for one batch size.

    Parameters
    ----------
    instance
        The instance; any gain model, ``exactly`` or not.
    solve_one
        The solver for one batch size.
    tolerance
        Relative gap at which a batch size is no longer worth a visit, and up to which the
        plan counts as optimal.
    time_limit_s
        Wall-clock limit; at the limit the incumbent comes back with the bound proven so far.

    Returns
    -------
    Plan
        Its bound holds over all batch sizes, visited or not. ``solve_s`` includes the
        driver's own bounds. ``info`` has ``batch_sizes_examined`` (solved by ``solve_one``),
        ``ranges_bounded``, ``pricing_s`` (the part of solve_s spent on bounds), ``rejected``
        (selections that broke a constraint and were dropped) and the summed numbers of
        ``solve_one``.

    Notes
    -----
    The bound of a range [L, U] is the dual bound of the gains at L with U slots if no gain
    rises with B, and else of each request's largest gain in the range. Both dominate every
    batch size of the range.
    """

    def solve_many(
        batch_sizes: Sequence[int],
        gains: NDArray[np.float64],
        cutoff: float,
        time_left_s: float | None,
    ) -> Sequence[Outcome]:
        return [solve_one(batch_sizes[0], gains[0], cutoff, time_left_s)]

    return sweep_together(
        instance, solve_many, width=1, tolerance=tolerance, time_limit_s=time_limit_s
    )


def sweep_together(
    instance: Instance,
    solve_many: SolveMany,
    *,
    width: int,
    tolerance: float = TOLERANCE,
    time_limit_s: float | None = None,
) -> Plan:
    """
    As :func:`sweep`, for a solver that handles up to ``width`` batch sizes at once.

    Parameters
    ----------
    instance, tolerance, time_limit_s
        As for :func:`sweep`.
    solve_many
        The solver; it gets the most promising batch sizes together.
    width
        Most batch sizes per call, >= 1.
    """
    started = time.perf_counter()
    deadline_s = math.inf if time_limit_s is None else started + time_limit_s
    most = most_that_fit(instance.weights, instance.capacity)
    if instance.exactly and most < instance.min_batch:
        return no_solution(instance, proven=True, solve_s=time.perf_counter() - started)

    # The lightest min_batch requests fit whenever anything does, so an incumbent always
    # exists; without `exactly` it is the empty plan, worth 0.
    serve = np.zeros(instance.num_requests, dtype=np.bool_)
    batch_size = instance.min_batch
    value = 0.0
    if instance.exactly and batch_size > 0:
        serve[np.argsort(instance.weights, kind="stable")[:batch_size]] = True
        value = float(instance.gains_at(batch_size)[serve].sum())

    frontier = _Frontier(instance, most)
    totals: Counter[str] = Counter()
    build_s = back_end_s = 0.0
    pricing_s = time.perf_counter() - started  # of the first bound
    examined = rejected = 0
    settled = -math.inf  # largest bound among the batch sizes that were solved
    while True:
        tick = time.perf_counter()
        chosen = frontier.pop(width, value + tolerance * max(1.0, abs(value)), deadline_s)
        gains = np.array([instance.gains_at(size) for size, _ in chosen])
        now = time.perf_counter()
        pricing_s += now - tick
        if not chosen:
            break
        if now >= deadline_s:
            settled = max(settled, chosen[0][1])
            break

        time_left_s = None if time_limit_s is None else deadline_s - now
        outcomes = solve_many([size for size, _ in chosen], gains, value, time_left_s)
        examined += len(chosen)
        for (size, range_bound), size_gains, outcome in zip(chosen, gains, outcomes, strict=True):
            build_s += outcome.build_s
            back_end_s += outcome.solve_s
            totals.update(outcome.info)
            settled = max(settled, min(outcome.bound, range_bound))
            if outcome.serve is None:
                continue
            found = np.asarray(outcome.serve, dtype=np.bool_)
            if not _fits(instance, found, size):
                rejected += 1
                continue
            found_size, found_value = best_size(instance, found, size, size_gains)
            if found_value > value:
                serve, batch_size, value = found.copy(), found_size, found_value

    return make_plan(
        instance,
        serve,
        batch_size,
        bound=max(settled, frontier.bound, value),
        tolerance=tolerance,
        build_s=build_s,
        solve_s=back_end_s + pricing_s,
        info={
            **totals,
            "batch_sizes_examined": examined,
            "ranges_bounded": frontier.bounded,
            "pricing_s": pricing_s,
            "rejected": rejected,
        },
    )


def upper_bound(
    instance: Instance, *, above: float = -math.inf, deadline_s: float = math.inf
) -> float:
    """
    A proven upper bound on the optimum over all batch sizes, from prices alone.

    Parameters
    ----------
    instance
        The instance; some batch size must be feasible.
    above
        A known value: the search for a better bound ends where it can't get below that.
    deadline_s
        When to stop with a looser bound, on the clock of ``time.perf_counter``.
    """
    frontier = _Frontier(instance, most_that_fit(instance.weights, instance.capacity))
    # Popped from a best-first queue, the first single batch size has the largest bound.
    chosen = frontier.pop(1, above, deadline_s)
    floor = 0.0 if instance.min_batch == 0 or not instance.exactly else -math.inf
    return max(floor, chosen[0][1] if chosen else frontier.bound, above)


def batch_range(instance: Instance, most: int) -> tuple[int, int]:
    """
    Batch sizes worth a look, first and last; none if first > last.

    Left out are size 0, sizes that can't be feasible, and sizes that can't be better than
    a smaller one.

    Parameters
    ----------
    instance
        The instance.
    most
        The most requests that fit into its memory together.
    """
    first = max(instance.min_batch, 1)
    if most == 0:
        return first, first - 1
    if instance.exactly:
        return first, min(instance.max_batch, most)
    if instance.gains.monotone:
        # Nobody can fill more than `most` slots, and larger batches only lower the gains.
        return first, min(instance.max_batch, max(first, most))
    return first, instance.max_batch


def best_size(
    instance: Instance, serve: NDArray[np.bool_], batch_size: int, gains: NDArray[np.float64]
) -> tuple[int, float]:
    """
    The batch size at which a selection is known to be worth most, and that value.

    Where no gain rises with B, a selection that leaves slots empty is worth at least as
    much at the smallest batch size that holds it.

    Parameters
    ----------
    instance
        The instance.
    serve
        A selection feasible at ``batch_size``, (n,).
    batch_size, gains
        The batch size it was found at, and the gains there, (n,).
    """
    smaller = max(int(serve.sum()), instance.min_batch)
    if smaller < batch_size and instance.gains.monotone:
        return smaller, float(instance.gains_at(smaller)[serve].sum())
    return batch_size, float(gains[serve].sum())


class _Frontier:
    """The open ranges of batch sizes, by decreasing bound."""

    def __init__(self, instance: Instance, most: int) -> None:
        self._instance = instance
        self._most = most
        self._heap: list[tuple[float, int, int]] = []  # (-bound, first, last)
        self.bounded = 0
        first, last = batch_range(instance, most)
        if first <= last:
            self._push(first, last, math.inf)

    @property
    def bound(self) -> float:
        """Upper bound over everything still open; -inf if nothing is."""
        return -self._heap[0][0] if self._heap else -math.inf

    def pop(self, width: int, threshold: float, deadline_s: float) -> list[tuple[int, float]]:
        """
        Take out up to ``width`` single batch sizes, each with its bound above the threshold.

        The first has the largest bound of all that is open. None come back when nothing
        exceeds the threshold, or when the time is over.
        """
        chosen: list[tuple[int, float]] = []
        while self._heap and len(chosen) < width and self.bound > threshold:
            if time.perf_counter() >= deadline_s:
                break
            key, first, last = heapq.heappop(self._heap)
            if first == last:
                chosen.append((first, -key))
                continue
            middle = (first + last) // 2
            self._push(first, middle, -key)
            self._push(middle + 1, last, -key)
        return chosen

    def _push(self, first: int, last: int, parent_bound: float) -> None:
        instance = self._instance
        if instance.gains.monotone or first == last:
            # A copy: compiled code is compiled a second time for read-only arrays.
            gains = np.array(instance.gains_at(first))
        else:
            gains = instance.gain_table(first, last).max(axis=0)
        bound, _, _ = dual_bound(
            gains,
            instance.weights,
            instance.capacity,
            min(last, self._most),
            exactly=instance.exactly and first == last,
        )
        heapq.heappush(self._heap, (-min(parent_bound, bound), first, last))
        self.bounded += 1


def _fits(instance: Instance, serve: NDArray[np.bool_], batch_size: int) -> bool:
    if serve.shape != (instance.num_requests,):
        return False
    count = int(serve.sum())
    wanted = count == batch_size if instance.exactly else count <= batch_size
    return wanted and int(instance.weights[serve].sum()) <= instance.capacity
