"""From an instance to compiled code and back: what Exact and PriceRounding have in common."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import numpy as np

from andes_opt.compilation import jit
from andes_opt.formulation import most_that_fit
from andes_opt.gains import CONSTANT, COSTED, FORECAST, compiled
from andes_opt.plan import make_plan, no_solution
from andes_opt.request_state import records
from solvers._exact.jit import as_int, part
from solvers._exact.lists import new_lists
from solvers._exact.problem import (
    Best,
    Counts,
    Effort,
    Model,
    Scratch,
    Step,
    Sweep,
    knapsack_at,
    plan_value,
)
from solvers._exact.sweep import sweep_best_first, sweep_outwards
from solvers._exact.worth import cutoff
from solvers.clock import now_s

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from andes_opt.instance import Instance
    from andes_opt.plan import Plan
    from solvers._exact.lists import Lists

#: States per list at the start, and the most that is kept from one call to the next.
_ROOM = 4096
_MOST_ROOM_KEPT = 2**18

#: Whole numbers up to here, and their sums, are exact as floats.
_EXACT_SUMS = 2**53

#: Gain models whose rate is the token rate of andes_opt.gains.
_RATED = (FORECAST, COSTED)


class Workspace:
    """
    Memory that a solver keeps from one call to the next.

    Attributes
    ----------
    lists
        Lists of the search.
    last_batch, last_price
        Batch size and memory price of the previous optimum; -1 if there was none.
    """

    __slots__ = ("clock", "last_batch", "last_price", "lists")

    def __init__(self) -> None:
        self.lists: Lists = new_lists(_ROOM)
        self.clock = np.zeros(2, dtype=np.int64)
        self.last_batch = -1
        self.last_price = -1.0


def solve_step(
    instance: Instance,
    workspace: Workspace,
    *,
    search: bool,
    gap: float,
    warm_start: bool,
    time_limit_s: float | None,
) -> Plan:
    """
    Sweep the batch sizes of an instance.

    Parameters
    ----------
    instance
        The instance.
    workspace
        Memory of the calling solver.
    search
        If True batch sizes are settled by search, else only rounded.
    gap
        Plans that are better by less than this share of max(1, |value|) are not wanted.
    warm_start
        Begin with the workspace's batch size and price, and leave the new ones there.
    time_limit_s
        Wall-clock limit, None for none.

    Raises
    ------
    ValueError
        If the gain model returns the wrong number of gains, NaN or infinity.
    """
    started = time.perf_counter()
    # On the compiled clock, which on some systems is not that of time.monotonic.
    deadline_s = math.inf if time_limit_s is None else now_s(workspace.clock) + time_limit_s
    n = instance.num_requests
    monotone = bool(instance.gains.monotone)
    most = most_that_fit(instance.weights, instance.capacity)
    first, last = instance.min_batch, instance.max_batch
    if instance.exactly:
        if most < first:
            return no_solution(instance, proven=True, solve_s=time.perf_counter() - started)
        last = min(last, most)
    elif monotone:
        # More slots than requests that fit are of no use and cost speed.
        last = max(first, min(last, most))

    kind, params, scalars = compiled(instance.gains, first, last)
    if params.shape[1] != n:
        raise ValueError(f"the gain model returned {params.shape[1]} gains for {n} requests.")
    if kind == CONSTANT and not instance.exactly:
        # Nothing depends on the batch size: the largest allows all that others allow.
        first = last
    # Arrays of one record: Numba takes them faster than the records themselves.
    counts, found = records(Counts, 1), records(Best, 1)
    built = time.perf_counter()
    serve, bound, workspace.lists = _optimise(
        kind,
        params,
        scalars,
        instance.weights,
        instance.capacity,
        most,
        first,
        last,
        instance.exactly,
        monotone,
        bool(instance.gains.concave_in_rate) and kind in _RATED,
        workspace.last_batch if warm_start else -1,
        workspace.last_price if warm_start else -1.0,
        search,
        gap,
        found,
        workspace.lists,
        deadline_s,
        workspace.clock,
        counts,
    )
    best = found[0]
    if not math.isfinite(best["value"]):
        raise ValueError("the gain model returned NaN or infinity.")
    batch_size = int(best["batch_size"])
    if warm_start:
        workspace.last_batch, workspace.last_price = batch_size, float(best["memory_price"])
    if workspace.lists.keys.shape[1] > _MOST_ROOM_KEPT:
        workspace.lists = new_lists(_ROOM)
    if n and int(instance.weights.max()) > _EXACT_SUMS // n:
        _make_fit(instance, serve, batch_size)
    return make_plan(
        instance,
        serve,
        batch_size,
        bound=bound,
        build_s=built - started,
        solve_s=time.perf_counter() - built,
        info=dict(zip(counts.dtype.names, counts[0].item(), strict=True)),
    )


def _make_fit(instance: Instance, serve: NDArray[np.bool_], batch_size: int) -> None:
    """Take out of a plan what does not fit, where weights are too large for sums of floats."""
    if instance.exactly:
        if int(instance.weights[serve].sum()) > instance.capacity:
            serve[:] = False
            serve[np.argsort(instance.weights, kind="stable")[:batch_size]] = True
        return
    density = instance.gains_at(batch_size) / instance.weights
    for i in np.argsort(density, kind="stable"):
        if int(instance.weights[serve].sum()) <= instance.capacity:
            return
        serve[i] = False


@jit(error_model="numpy")
def _optimise(
    kind: int,
    params: NDArray[np.float64],
    scalars: NDArray[np.float64],
    weights: NDArray[np.int64],
    capacity: int,
    most: int,
    first: int,
    last: int,
    exactly: bool,
    monotone: bool,
    concave: bool,
    start_batch: int,
    start_price: float,
    search: bool,
    gap: float,
    found: Sequence[Best],
    lists: Lists,
    deadline_s: float,
    clock: NDArray[np.int64],
    counts: Sequence[Counts],
) -> tuple[NDArray[np.bool_], float, Lists]:
    """Leave out what can't fit, find an incumbent, and sweep: plan (n,), bound, and lists."""
    serve = np.zeros(weights.size, np.bool_)
    effort = Effort(deadline_s, clock, counts[0])
    best = found[0]
    best.batch_size = first
    best.memory_price = -1.0
    best.settled = -np.inf
    requests, light, common = _that_fit(weights, capacity)
    m = requests.size
    if m == 0 or last == 0:
        return serve, 0.0, lists

    model = Model(kind, params, scalars, concave, requests, np.empty(weights.size), as_int(1))
    # Sums of weights are multiples of their common divisor (a block, say).
    whole = float(capacity // common * common)
    step = Step(light, whole, most, first, last, exactly, monotone)
    scratch = Scratch(np.empty(m), np.empty(m), np.empty((5, m)), np.zeros(m, np.bool_))
    sweep = Sweep(model, step, search, gap, best, np.zeros(m, np.bool_), scratch, effort)
    if exactly and first > 0:
        # The lightest requests fit if any do.
        order = np.argsort(step.weights)
        for k in range(first):
            sweep.serve[order[k]] = True
        lightest = knapsack_at(model, step, first, scratch.gains)
        best.value = plan_value(lightest.gains, sweep.serve)
    if monotone:
        lists = sweep_outwards(sweep, start_batch, start_price, lists)
    else:
        lists = sweep_best_first(sweep, start_price, lists)
    for k in range(m):
        serve[requests[k]] = sweep.serve[k]
    return serve, max(best.settled, cutoff(sweep)), lists


@part
def _that_fit(
    weights: NDArray[np.int64], capacity: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], int]:
    """The requests that fit at all, their weights, and the weights' common divisor."""
    requests = np.empty(weights.size, np.int64)
    light = np.empty(weights.size)
    m = 0
    common = 0
    for i in range(weights.size):
        if weights[i] <= capacity:
            requests[m] = i
            light[m] = weights[i]
            m += 1
            a, b = common, weights[i]
            while b > 0 and common != 1:
                a, b = b, a % b
            common = a if common != 1 else 1
    return requests[:m], light[:m], common
