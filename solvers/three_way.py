"""
Solvers for serve, hold or evict: HiGHS, CP-SAT, and prices with rounding.

They share one driver over the batch size, which works as :mod:`solvers.sweep` does: bound ranges of
batch sizes by prices, open the range with the largest bound first, stop when none can beat
the incumbent. Their class names and options mirror those of the two-way solvers.
"""

from __future__ import annotations

import heapq
import math
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_matrix

from andes_opt.plan import TOLERANCE, TOLERANCE_MIP
from andes_opt.snapshot import Action
from andes_opt.three_way import make_three_way_plan
from solvers.backend import (
    CP_SAT_FREE,
    check_options,
    integer_bound,
    integer_floor,
    integer_profits,
    load_back_end,
    new_cp_solver,
    scale_exponent,
    unscaled_bound,
)
from solvers.three_way_prices import ThreeWayStep, find_prices, repair, round_to_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from andes_opt.three_way import ThreeWayInstance, ThreeWayPlan

_CP_SAT = "ortools.sat.python.cp_model"
_ORTOOLS = "ortools>=9.12,<10"
#: HiGHS' mip_abs_gap, which SciPy does not expose.
_HIGHS_GAP = 1e-6
_LARGEST_ROW_SCALE = 1e5


@dataclass(frozen=True, slots=True, eq=False)
class _Outcome:
    """What a solver says about one batch size: actions (n,) or None, bound, times, numbers."""

    action: NDArray[np.int8] | None
    bound: float
    build_s: float = 0.0
    solve_s: float = 0.0
    info: Mapping[str, float] = field(default_factory=dict)


class ThreeWayPrices:
    """
    Lagrangian prices, rounding and one exchange: a heuristic with a proven gap on every call.

    Use it in a loop that has no second to spare: about 10 ms at a hundred requests and 50 ms at a
    thousand, batch sizes included, with gaps of 1e-3 and 1e-4. Its limits: it is not exact,
    and visits every batch size whose bound beats its incumbent. Time limits are kept.
    """

    exact = False

    def solve(
        self, instance: ThreeWayInstance, *, time_limit_s: float | None = None
    ) -> ThreeWayPlan:
        """Solve an instance; the plan carries a bound over all batch sizes."""
        return _sweep(instance, self._solve_one, TOLERANCE, time_limit_s)

    def _solve_one(self, step: ThreeWayStep, cutoff: float, time_left_s: float | None) -> _Outcome:
        started = time.perf_counter()
        prices = find_prices(step)
        action = round_to_plan(step, prices)
        return _Outcome(action, prices.bound, 0.0, time.perf_counter() - started)


class ThreeWayHighs:
    """
    The three-way step as a mixed-integer program for HiGHS (``scipy.optimize.milp``).

    Use it as the reference that is always there; it certifies to 1e-6. Its limits and options
    are those of :class:`solvers.highs.Highs`: 10 to 50 ms per batch size at 50 requests,
    about a second at a thousand.

    Parameters
    ----------
    presolve
        Whether HiGHS presolves the model.
    relative_gap
        Gap at which a batch size counts as solved; the solver is exact up to 1e-6.

    Raises
    ------
    ValueError
        If an option is out of range.
    """

    def __init__(self, *, presolve: bool = False, relative_gap: float = 0.0) -> None:
        check_options(relative_gap=relative_gap)
        self.presolve = presolve
        self.relative_gap = relative_gap

    @property
    def exact(self) -> bool:
        """True up to a ``relative_gap`` of 1e-6, which is what MIP back-ends certify."""
        return self.relative_gap <= TOLERANCE_MIP

    def solve(
        self, instance: ThreeWayInstance, *, time_limit_s: float | None = None
    ) -> ThreeWayPlan:
        """Solve an instance; the plan carries a bound over all batch sizes."""
        return _sweep(instance, self._solve_one, TOLERANCE_MIP, time_limit_s)

    def _solve_one(self, step: ThreeWayStep, cutoff: float, time_left_s: float | None) -> _Outcome:
        started = time.perf_counter()
        optimize = load_back_end("scipy.optimize", "scipy>=1.13")
        columns = _Columns.of(step)
        size = columns.requests.size
        if size == 0:
            return _Outcome(columns.action(step, np.zeros(0)), 0.0)
        exponent = scale_exponent(columns.profits)
        unit = min(float(columns.weights.max()), _LARGEST_ROW_SCALE)
        first, second = columns.pairs
        # Rows: memory, slots, places, then one choice per request that has two.
        entries = [columns.weights / unit, columns.served.astype(np.float64), np.ones(size)]
        choice = csr_matrix(
            (
                np.ones(2 * first.size),
                (np.tile(np.arange(first.size), 2), np.concatenate([first, second])),
            ),
            shape=(first.size, size),
        )
        constraints = [
            optimize.LinearConstraint(
                np.vstack(entries), -np.inf, [step.capacity / unit, step.slots, step.places]
            )
        ]
        if first.size:
            constraints.append(optimize.LinearConstraint(choice, -np.inf, 1.0))
        options = {"presolve": self.presolve, "mip_rel_gap": self.relative_gap}
        built = time.perf_counter()
        if time_left_s is not None:
            options["time_limit"] = max(1e-3, time_left_s - (built - started))
        result = optimize.milp(
            -np.ldexp(columns.profits, exponent),
            integrality=np.ones(size),
            bounds=optimize.Bounds(0.0, 1.0),
            constraints=constraints,
            options=options,
        )
        bound = math.inf
        if result.mip_dual_bound is not None:
            bound = unscaled_bound(
                -result.mip_dual_bound, exponent, size, absolute_slack=_HIGHS_GAP
            )
        action = None if result.x is None else columns.action(step, result.x)
        return _Outcome(action, bound, built - started, time.perf_counter() - built)


class ThreeWayCpSat:
    """
    The three-way step in integers for OR-Tools CP-SAT.

    Use it for proofs to 1e-9, and where HiGHS is too slow: with presolve off it is several
    times as fast. Options, scaling and limits are those of :class:`solvers.cp_sat.CpSat`.

    Parameters
    ----------
    threads
        Workers, >= 1; one is deterministic.
    seed
        Random seed.
    presolve
        Whether CP-SAT presolves the model.
    relative_gap
        Gap at which a batch size counts as solved; the solver is exact at 0 only.

    Raises
    ------
    ImportError
        If OR-Tools is missing.
    ValueError
        If an option is out of range.
    """

    def __init__(
        self,
        *,
        threads: int = 1,
        seed: int = 0,
        presolve: bool = False,
        relative_gap: float = 0.0,
    ) -> None:
        check_options(threads=threads, seed=seed, relative_gap=relative_gap)
        load_back_end(_CP_SAT, _ORTOOLS)
        self.threads = threads
        self.seed = seed
        self.presolve = presolve
        self.relative_gap = relative_gap

    @property
    def exact(self) -> bool:
        """True with ``relative_gap`` 0."""
        return self.relative_gap == 0

    def solve(
        self, instance: ThreeWayInstance, *, time_limit_s: float | None = None
    ) -> ThreeWayPlan:
        """Solve an instance; the plan carries a bound over all batch sizes."""
        return _sweep(instance, self._solve_one, TOLERANCE, time_limit_s)

    def _solve_one(self, step: ThreeWayStep, cutoff: float, time_left_s: float | None) -> _Outcome:
        started = time.perf_counter()
        cp_model = load_back_end(_CP_SAT, _ORTOOLS)
        columns = _Columns.of(step)
        size = columns.requests.size
        if size == 0:
            return _Outcome(columns.action(step, np.zeros(0)), 0.0)
        profits, exponent = integer_profits(columns.profits)

        model = cp_model.CpModel()
        proto = model.proto
        indices = list(range(size))
        for _ in indices:
            proto.variables.add().domain.extend([0, 1])
        memory = proto.constraints.add().linear
        memory.vars.extend(indices)
        memory.coeffs.extend(columns.weights.tolist())
        memory.domain.extend([0, step.capacity])
        served = np.flatnonzero(columns.served).tolist()
        slots = proto.constraints.add().linear
        slots.vars.extend(served)
        slots.coeffs.extend([1] * len(served))
        slots.domain.extend([0, step.slots])
        places = proto.constraints.add().linear
        places.vars.extend(indices)
        places.coeffs.extend([1] * size)
        places.domain.extend([0, step.places])
        for one, other in zip(*columns.pairs, strict=True):
            proto.constraints.add().at_most_one.literals.extend([int(one), int(other)])
        proto.objective.vars.extend(indices)
        proto.objective.coeffs.extend((-profits).tolist())  # CP-SAT minimises
        proto.objective.scaling_factor = -1.0
        proto.objective.domain.extend([-CP_SAT_FREE, -integer_floor(cutoff, exponent, size)])

        solver = new_cp_solver(
            cp_model,
            threads=self.threads,
            seed=self.seed,
            presolve=self.presolve,
            relative_gap=self.relative_gap,
        )
        built = time.perf_counter()
        if time_left_s is not None:
            solver.parameters.max_time_in_seconds = max(1e-3, time_left_s - (built - started))
        status = solver.solve(model)

        action = None
        bound = math.inf
        if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            action = columns.action(step, np.array(solver.response_proto.solution))
            best = math.ceil(solver.best_objective_bound)
            bound = max(cutoff, integer_bound(best, exponent, size))
        elif status == cp_model.INFEASIBLE:
            bound = cutoff  # nothing reaches the floor
        elif status == cp_model.MODEL_INVALID:
            raise RuntimeError(f"CP-SAT refused the model: {model.validate()}")
        # Else it is unknown: out of time, and the bound it reports may never have been set.
        return _Outcome(action, bound, built - started, time.perf_counter() - built)


@dataclass(frozen=True, slots=True, eq=False)
class _Columns:
    """
    The 0-1 variables of a model: a column for each choice that fits and gains, (m,).

    ``served`` says which choose to serve; ``pairs`` are the positions of the two columns of each
    request that has both.
    """

    requests: NDArray[np.int64]
    served: NDArray[np.bool_]
    profits: NDArray[np.float64]
    weights: NDArray[np.int64]
    pairs: tuple[NDArray[np.int64], NDArray[np.int64]]

    @classmethod
    def of(cls, step: ThreeWayStep) -> _Columns:
        serve = np.flatnonzero((step.serve_gains > 0) & (step.serve_weights <= step.capacity))
        hold = np.flatnonzero((step.hold_gains > 0) & (step.hold_weights <= step.capacity))
        _, first, second = np.intersect1d(serve, hold, assume_unique=True, return_indices=True)
        return cls(
            requests=np.concatenate([serve, hold]),
            served=np.arange(serve.size + hold.size) < serve.size,
            profits=np.concatenate([step.serve_gains[serve], step.hold_gains[hold]]),
            weights=np.concatenate([step.serve_weights[serve], step.hold_weights[hold]]),
            pairs=(first, second + serve.size),
        )

    def action(self, step: ThreeWayStep, values: NDArray[np.float64]) -> NDArray[np.int8]:
        """Actions (n,) of a back-end's values (m,), not yet known to be feasible."""
        action = np.full(step.serve_gains.size, Action.WAIT, dtype=np.int8)
        chosen = values > 0.5
        action[self.requests[chosen & ~self.served]] = Action.HOLD
        action[self.requests[chosen & self.served]] = Action.SERVE
        return action


def _sweep(
    instance: ThreeWayInstance,
    solve_one: Callable[[ThreeWayStep, float, float | None], _Outcome],
    tolerance: float,
    time_limit_s: float | None,
) -> ThreeWayPlan:
    """Solve over all batch sizes, best bound first, until none can beat the incumbent."""
    started = time.perf_counter()
    action = np.full(instance.num_requests, Action.WAIT, dtype=np.int8)
    batch_size, value = instance.min_batch, 0.0
    settled = -math.inf
    totals: Counter[str] = Counter()
    build_s = 0.0
    whole = instance.min_batch, instance.max_batch
    step = _step(instance, *whole)
    prices = find_prices(step)
    frontier = [(-prices.bound, *whole)]  # (-bound, first, last)
    if instance.serve_gains.monotone:
        # The choice at the prices of all batch sizes is a first incumbent at a size that holds it.
        action = round_to_plan(step, prices)
        batch_size = max(instance.min_batch, int((action == Action.SERVE).sum()))
        value = _step(instance, batch_size, batch_size).value(action)

    while frontier:
        left_s = None if time_limit_s is None else time_limit_s - (time.perf_counter() - started)
        key, first, last = frontier[0]
        if -key <= value + tolerance * max(1.0, value) or (left_s is not None and left_s <= 0):
            break
        heapq.heappop(frontier)
        if first < last:
            middle = (first + last) // 2
            for low, high in ((first, middle), (middle + 1, last)):
                bound = min(-key, find_prices(_step(instance, low, high)).bound)
                heapq.heappush(frontier, (-bound, low, high))
            continue

        step = _step(instance, first, first)
        outcome = solve_one(step, value, left_s)
        found = outcome.action
        totals["batch_sizes_examined"] += 1
        totals["unanswered"] += found is None and outcome.bound > value
        if found is None:
            found = round_to_plan(step, find_prices(step))
        elif not step.fits(found):
            totals["repaired"] += 1
            found = repair(step, found, 0.0, 0.0)
        build_s += outcome.build_s
        totals.update(outcome.info)
        settled = max(settled, min(outcome.bound, -key))
        if step.value(found) > value:
            action, batch_size, value = found, first, step.value(found)

    bound = max(settled, -frontier[0][0] if frontier else -math.inf, value)
    return make_three_way_plan(
        instance,
        action,
        batch_size,
        bound=bound,
        tolerance=tolerance,
        build_s=build_s,
        solve_s=time.perf_counter() - started - build_s,
        info=totals,
    )


def _step(instance: ThreeWayInstance, first: int, last: int) -> ThreeWayStep:
    """One batch size, or what bounds all from first to last: most slots, largest gains."""
    two_way = instance.two_way
    if first == last or instance.serve_gains.monotone:
        gains = two_way.gains_at(first)
    else:
        gains = two_way.gain_table(first, last).max(axis=0)
    can_serve = instance.serve_weights <= instance.capacity
    can_hold = instance.resident & (instance.hold_weights <= instance.capacity)
    return ThreeWayStep(
        serve_gains=np.where(can_serve, gains, -np.inf),
        hold_gains=np.where(can_hold, instance.hold_gains, -np.inf),
        serve_weights=instance.serve_weights,
        hold_weights=np.where(instance.resident, instance.hold_weights, 1),
        capacity=instance.capacity,
        slots=min(last, instance.num_requests),
        places=min(instance.max_batch, instance.num_requests),
    )
