"""The certified solver: the optimum over all batch sizes, proved, at the price of a sort."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import numpy as np

from andes_opt.gains import COSTED, FORECAST, compiled
from andes_opt.instance import GainTable, Instance
from andes_opt.plan import Plan, make_plan, no_solution
from solvers._exact_search import optimise

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NAMES = ("examined", "searched", "states", "deepened", "priced", "jumps")


class Exact:
    """
    Exact solver.

    Parameters
    ----------
    warm_start
        Start from the prices and the batch size of the previous call.
    """

    exact = True

    def __init__(self, warm_start: bool = True) -> None:
        self.warm_start = warm_start
        self._room = 4096
        self._lists = _new_lists(self._room)
        self._clock = np.zeros(2, dtype=np.int64)
        self._last_batch = -1
        self._last_price = -1.0

    def solve(self, instance: Instance, *, time_limit_s: float | None = None) -> Plan:
        started = time.perf_counter()
        deadline_s = math.inf if time_limit_s is None else time.monotonic() + time_limit_s
        weights = instance.weights
        n = weights.size
        capacity = instance.capacity
        order = np.argsort(weights)
        cumulated = np.cumsum(weights[order])
        most = int(np.searchsorted(cumulated, capacity, side="right"))
        first, last = instance.min_batch, instance.max_batch
        if instance.exactly:
            if most < first:
                return no_solution(instance, proven=True, solve_s=time.perf_counter() - started)
            last = min(last, most)
        elif instance.gains.monotone:
            last = max(first, min(last, most))

        kind, params, scalars = compiled(instance.gains, first, last)
        concave = instance.gains.concave_in_rate and kind in (FORECAST, COSTED)
        if n and weights[order[-1]] > capacity:
            index = np.flatnonzero(weights <= capacity)
        else:
            index = np.arange(n)
        kept = weights[index].astype(np.float64)
        common = int(np.gcd.reduce(weights[index])) if index.size else 1
        capacity = capacity // max(common, 1) * max(common, 1)
        chosen = np.zeros(index.size, dtype=np.bool_)
        value, batch_size = 0.0, first
        if instance.exactly:
            serve = np.zeros(n, dtype=np.bool_)
            serve[order[:first]] = True
            chosen[:] = serve[index]
            value = float(instance.gains_at(first)[serve].sum())
        if index.size == 0:
            return make_plan(instance, np.zeros(n, np.bool_), first, bound=0.0)
        statistics = np.zeros(8, dtype=np.int64)
        value, batch_size, bound, price, self._lists = optimise(
            (kind, params, scalars, index, np.empty(n)), kept, float(capacity), most, first, last,
            instance.exactly, instance.gains.monotone, concave,
            self._last_batch if self.warm_start else -1,
            self._last_price if self.warm_start else -1.0,
            chosen, batch_size, value, self._lists, np.empty((5, index.size)),
            deadline_s, self._clock, statistics,
        )
        self._last_batch, self._last_price = batch_size, price
        serve = np.zeros(n, dtype=np.bool_)
        serve[index] = chosen
        return make_plan(
            instance, serve, batch_size, bound=bound, solve_s=time.perf_counter() - started,
            info={name: float(statistics[k]) for k, name in enumerate(_NAMES)},
        )


def _new_lists(room):
    return (
        np.empty((3, room), np.int64),
        np.empty((3, room)),
        np.empty((3, room)),
        np.empty((3, room), np.int32),
        np.empty(4 * room, np.int32),
        np.empty(4 * room, np.int32),
    )
