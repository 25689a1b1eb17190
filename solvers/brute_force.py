"""Every selection at every batch size: the reference for small instances."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from andes_opt.compilation import jit
from andes_opt.formulation import most_that_fit
from andes_opt.plan import make_plan, no_solution
from solvers.sweep import batch_range

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from andes_opt.instance import Instance
    from andes_opt.plan import Plan

_Number = TypeVar("_Number", np.int64, np.float64)

#: Most requests; 2**20 selections take about a millisecond per batch size.
MAX_REQUESTS = 20


class BruteForce:
    """
    Try all 2**n selections at every batch size.

    Use it to check other solvers: it shares no bound, price or search with them. Its limit
    is 20 requests, at about a millisecond per batch size there; more are refused. At a
    time limit, which it looks at between batch sizes, no bound is proven.
    """

    exact = True

    def solve(self, instance: Instance, *, time_limit_s: float | None = None) -> Plan:
        """
        Enumerate; see :class:`~andes_opt.solver.Solver`.

        Raises
        ------
        ValueError
            If the instance has more than 20 requests.
        """
        started = time.perf_counter()
        n = instance.num_requests
        if n > MAX_REQUESTS:
            raise ValueError(
                f"{n} requests are too many for brute force: at most {MAX_REQUESTS}; "
                "use the solver 'exact' instead."
            )
        most = most_that_fit(instance.weights, instance.capacity)
        if instance.exactly and most < instance.min_batch:
            return no_solution(instance, proven=True, solve_s=time.perf_counter() - started)

        # Sums over the lower and the upper half of the requests: any selection is one of
        # each, and no sum drifts by being updated a million times.
        half = n // 2
        low_weight = _subset_sums(instance.weights[:half])
        high_weight = _subset_sums(instance.weights[half:])
        ones = np.ones(n, dtype=np.int64)
        low_count, high_count = _subset_sums(ones[:half]), _subset_sums(ones[half:])
        built = time.perf_counter()

        best_mask, best_batch = 0, instance.min_batch
        best_value = -math.inf if instance.exactly and instance.min_batch > 0 else 0.0
        complete = True
        first, last = batch_range(instance, most)
        examined = 0
        for batch_size in range(first, last + 1):
            if time_limit_s is not None and time.perf_counter() - started >= time_limit_s:
                complete = False
                break
            gains = instance.gains_at(batch_size)
            mask, value = _best_selection(
                low_weight,
                high_weight,
                low_count,
                high_count,
                _subset_sums(gains[:half]),
                _subset_sums(gains[half:]),
                instance.capacity,
                batch_size,
                instance.exactly,
            )
            examined += 1
            if value > best_value:
                best_mask, best_batch, best_value = mask, batch_size, value

        times = {"build_s": built - started, "solve_s": time.perf_counter() - built}
        info = {"batch_sizes_examined": examined}
        if best_value == -math.inf:  # out of time before the first batch size
            return no_solution(instance, proven=False, info=info, **times)
        serve = (best_mask >> np.arange(n)) & 1 == 1
        bound = best_value if complete else math.inf
        return make_plan(instance, serve, best_batch, bound=bound, info=info, **times)


def _subset_sums(terms: NDArray[_Number]) -> NDArray[_Number]:
    """Sums of all subsets, (2**len(terms),): entry m has the terms of the bits of m."""
    sums: NDArray[_Number] = np.zeros(1, dtype=terms.dtype)
    for term in terms:
        sums = np.concatenate((sums, sums + term))
    return sums


@jit
def _best_selection(
    low_weight: NDArray[np.int64],
    high_weight: NDArray[np.int64],
    low_count: NDArray[np.int64],
    high_count: NDArray[np.int64],
    low_value: NDArray[np.float64],
    high_value: NDArray[np.float64],
    capacity: int,
    slots: int,
    exactly: bool,
) -> tuple[int, float]:
    best_mask = 0
    best_value = -np.inf
    for high in range(high_weight.size):
        free = capacity - high_weight[high]
        left = slots - high_count[high]
        if free < 0 or left < 0:
            continue
        for low in range(low_weight.size):
            value = low_value[low] + high_value[high]
            allowed = low_count[low] == left if exactly else low_count[low] <= left
            if value > best_value and low_weight[low] <= free and allowed:
                best_value = value
                best_mask = high * low_weight.size + low
    return best_mask, best_value
