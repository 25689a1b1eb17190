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
from solvers._exact.batch import Effort
from solvers._exact.jit import inner
from solvers._exact.lists import new_lists
from solvers._exact.peak import Model, Step, gains_into
from solvers._exact.sweep import sweep_all, sweep_outwards
from solvers.clock import now_s

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

_STATISTICS = ("batch_sizes_examined", "searched", "states", "deepened", "priced", "jumps")


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
    statistics = np.zeros(len(_STATISTICS), dtype=np.int64)
    built = time.perf_counter()
    value, batch_size, bound, price, serve, workspace.lists = _optimise(
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
        workspace.lists,
        Effort(deadline_s, workspace.clock, statistics),
    )
    if not math.isfinite(value):
        raise ValueError("the gain model returned NaN or infinity.")
    if warm_start:
        workspace.last_batch, workspace.last_price = batch_size, price
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
        info=dict(zip(_STATISTICS, statistics.tolist(), strict=True)),
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
    lists: Lists,
    effort: Effort,
) -> tuple[float, int, float, float, NDArray[np.bool_], Lists]:
    """Leave out what can't fit, round the capacity, find an incumbent, and sweep."""
    n = weights.size
    index = np.empty(n, np.int64)
    size = np.empty(n)
    m = 0
    common = 0
    for i in range(n):
        if weights[i] <= capacity:
            index[m] = i
            size[m] = weights[i]
            m += 1
            a, b = common, weights[i]
            while b > 0 and common != 1:
                a, b = b, a % b
            common = a if common != 1 else 1
    serve = np.zeros(n, np.bool_)
    if m == 0 or last == 0:
        return 0.0, first, 0.0, -1.0, serve, lists

    # Sums of weights are multiples of their common divisor (a block, say).
    capacity = capacity // common * common
    model = Model(kind, params, scalars, index[:m], np.empty(n))
    step = Step(size[:m], float(capacity), most, first, last, exactly)
    value = 0.0
    chosen = np.zeros(m, np.bool_)
    if exactly and first > 0:
        # The lightest requests fit if any do.
        chosen[np.argsort(step.weights)[:first]] = True
        value = _value_of(model, first, chosen)
    if monotone:
        value, batch_size, bound, price, lists = sweep_outwards(
            model,
            step,
            concave,
            start_batch,
            start_price,
            search,
            gap,
            chosen,
            first,
            value,
            lists,
            effort,
        )
    else:
        value, batch_size, bound, price, lists = sweep_all(
            model, step, start_price, search, gap, chosen, first, value, lists, effort
        )
    for k in range(m):
        serve[index[k]] = chosen[k]
    return value, batch_size, bound, price, serve, lists


@inner
def _value_of(model: Model, batch: int, chosen: NDArray[np.bool_]) -> float:
    g = np.empty(chosen.size)
    gains_into(model, batch, g)
    value = 0.0
    for i in range(chosen.size):
        value += g[i] if chosen[i] else 0.0
    return value
