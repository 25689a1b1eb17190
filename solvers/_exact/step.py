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
from solvers._exact.jit import as_int, part, uncounted
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
from solvers.sweep import batch_range

if TYPE_CHECKING:
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
    best
        A record with the fields of :class:`Best`: the previous optimum. Its batch size is -1
        if there was none.
    clock, floats, plans, requests
        Scratch: of the clock, and for all requests.
    """

    __slots__ = ("best", "clock", "floats", "lists", "plans", "requests")

    def __init__(self) -> None:
        self.lists: Lists = new_lists(_ROOM)
        self.clock = np.zeros(2, dtype=np.int64)
        self.forget()
        self.make_room(0)

    def forget(self) -> None:
        """Begin anew at the next call."""
        self.best = records(Best, 1)[0]
        self.best["batch_size"], self.best["memory_price"] = -1, -1.0

    def make_room(self, num_requests: int) -> None:
        """Make scratch arrays for so many requests."""
        self.floats = np.empty((9, num_requests))
        self.plans = np.empty((2, num_requests), dtype=np.bool_)
        self.requests = np.empty(num_requests, dtype=np.int64)


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
        Begin with the workspace's batch size and price.
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
    most = most_that_fit(instance.weights, instance.capacity)
    if instance.exactly and most < instance.min_batch:
        return no_solution(instance, proven=True, solve_s=time.perf_counter() - started)
    # Here the empty batch counts, too.
    first = instance.min_batch
    last = max(first, batch_range(instance, most)[1])
    gains, n = instance.gains, instance.num_requests
    kind, params, scalars = compiled(gains, first, last)
    if params.shape[1] != n:
        raise ValueError(f"the gain model returned {params.shape[1]} gains for {n} requests.")
    if kind == CONSTANT and not instance.exactly:
        # Nothing depends on the batch size: the largest allows all that others allow.
        first = last
    if workspace.requests.size != n:
        workspace.make_room(n)
    best, counts = workspace.best, records(Counts, 1)[0]
    built = time.perf_counter()
    serve = np.zeros(n, np.bool_)
    bound, workspace.lists = _optimise(
        kind,
        params,
        scalars,
        bool(gains.concave_in_rate) and kind in _RATED,
        instance.weights,
        instance.capacity,
        most,
        first,
        last,
        instance.exactly,
        bool(gains.monotone),
        search,
        gap,
        warm_start,
        best,
        serve,
        workspace.floats,
        workspace.plans,
        workspace.requests,
        workspace.lists,
        Effort(deadline_s, workspace.clock, counts),
    )
    if not math.isfinite(best["value"]):
        workspace.forget()
        raise ValueError("the gain model returned NaN or infinity.")
    if workspace.lists.keys.shape[1] > _MOST_ROOM_KEPT:
        workspace.lists = new_lists(_ROOM)
    batch_size = int(best["batch_size"])
    if n and int(instance.weights.max()) > _EXACT_SUMS // n:
        _make_fit(instance, serve, batch_size)
    return make_plan(
        instance,
        serve,
        batch_size,
        bound=bound,
        build_s=built - started,
        solve_s=time.perf_counter() - built,
        info=dict(zip(Counts.__annotations__, counts.item(), strict=True)),
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
    concave: bool,
    weights: NDArray[np.int64],
    capacity: int,
    most: int,
    first: int,
    last: int,
    exactly: bool,
    monotone: bool,
    search: bool,
    gap: float,
    warm_start: bool,
    best: Best,
    serve: NDArray[np.bool_],
    floats: NDArray[np.float64],
    plans: NDArray[np.bool_],
    requests: NDArray[np.int64],
    lists: Lists,
    effort: Effort,
) -> tuple[float, Lists]:
    """
    Leave out what can't fit, find an incumbent, and sweep: returns the bound and the lists.

    ``best`` holds the plan before, where a warm start begins, and receives what is known of
    this one. ``serve``, (n,), receives its requests. ``floats``, ``plans`` and ``requests``
    are scratch.
    """
    start_batch = best.batch_size if warm_start else as_int(-1)
    start_price = best.memory_price if warm_start else -1.0
    best.value, best.batch_size, best.memory_price = 0.0, first, -1.0
    best.settled, best.depth = -np.inf, 0.0
    # The caller keeps all these arrays.
    floats, plans, requests = uncounted(floats), uncounted(plans), uncounted(requests)
    m, common = _that_fit(weights, capacity, requests, floats[0])
    if m == 0 or last == 0:
        return 0.0, lists

    requests = requests[:m]
    model = Model(
        kind, uncounted(params), uncounted(scalars), concave, requests, floats[1], as_int(1)
    )
    # Sums of weights are multiples of their common divisor (a block, say).
    whole = float(capacity // common * common)
    step = Step(floats[0, :m], whole, most, first, last, exactly, monotone)
    scratch = Scratch(floats[2, :m], floats[3, :m], floats[4:], plans[0, :m])
    effort = Effort(effort.deadline_s, uncounted(effort.clock), effort.counts)
    sweep = Sweep(model, step, search, gap, best, plans[1, :m], scratch, effort)
    for i in range(m):
        sweep.serve[i] = False
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
    return max(best.settled, cutoff(sweep)), lists


@part
def _that_fit(
    weights: NDArray[np.int64],
    capacity: int,
    requests: NDArray[np.int64],
    light: NDArray[np.float64],
) -> tuple[int, int]:
    """The requests that fit at all, and their weights: how many, and the weights' divisor."""
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
    return m, common
