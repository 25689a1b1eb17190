"""
Serve, hold or evict: the step as a multiple-choice knapsack, with its own pair of types.

A resident request that is not served need not lose its KV cache. It can be *held*: it keeps
its memory and its place in the batch, computes nothing, and saves the price of restoring it later.
The step then is

    maximise over B in [min_batch, max_batch] and s, h in {0, 1}^n
        sum_i serve_gains_i(B) s_i + sum_i hold_gains_i h_i
    subject to
        sum_i serve_weights_i s_i + sum_i hold_weights_i h_i <= capacity,
        sum_i s_i <= B,    sum_i s_i + h_i <= max_batch,
        s_i + h_i <= 1,    h_i = 0 for every request that is not resident.

A request that is neither served nor held waits; a resident one is evicted. That is worth 0, so
both gains are relative to eviction. Andes (arXiv 2404.16283) knows only serve and evict. If no
request is resident, or no hold gain is above 0, the problem is that of
:class:`andes_opt.instance.Instance`. The empty plan is always feasible.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from andes_opt.instance import Instance
from andes_opt.plan import TOLERANCE, TOLERANCE_MIP, InvalidPlan, Status
from andes_opt.snapshot import Action

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from andes_opt.instance import GainModel


@dataclass(frozen=True, slots=True, eq=False)
class ThreeWayInstance:
    """
    One scheduling step with three choices per request.

    Parameters
    ----------
    serve_weights
        KV tokens a request holds while it is served, (n,), integers >= 1.
    hold_weights
        KV tokens a request occupies while it is held, (n,), integers; >= 1 for resident
        requests, not read for others.
    capacity
        KV tokens there are, >= 0.
    min_batch, max_batch
        Range of batch sizes, 0 <= min_batch <= max_batch; max_batch may exceed n. Served and
        held requests together are at most max_batch.
    serve_gains
        Gain model of serving, relative to eviction.
    hold_gains
        Gain of holding, relative to eviction, (n,), finite; it does not depend on the batch size.
    resident
        True for requests that have KV in memory and can be held, (n,).

    Raises
    ------
    ValueError
        On a wrong shape, a weight < 1, a bad range, a gain that is not finite, or a gain
        table that does not cover [min_batch, max_batch] and n.
    """

    serve_weights: NDArray[np.int64]
    hold_weights: NDArray[np.int64]
    capacity: int
    min_batch: int
    max_batch: int
    serve_gains: GainModel
    hold_gains: NDArray[np.float64]
    resident: NDArray[np.bool_]

    def __post_init__(self) -> None:
        two_way = Instance(
            self.serve_weights, self.capacity, self.min_batch, self.max_batch, self.serve_gains
        )
        shape = two_way.weights.shape
        hold_weights = np.array(self.hold_weights)
        hold_gains = np.array(self.hold_gains, dtype=np.float64)
        resident = np.array(self.resident)
        for name, array in (
            ("hold_weights", hold_weights),
            ("hold_gains", hold_gains),
            ("resident", resident),
        ):
            if array.shape != shape:
                raise ValueError(f"{name} of shape {array.shape} not understood: need {shape}.")
        if resident.dtype != np.bool_:
            raise ValueError(f"resident must be bool, not {resident.dtype}.")
        if hold_weights.size and not np.issubdtype(hold_weights.dtype, np.integer):
            raise ValueError(f"hold_weights must be integers, not {hold_weights.dtype}.")
        if (hold_weights[resident] < 1).any():
            raise ValueError(
                "hold_weights must be >= 1 for resident requests; "
                f"the smallest is {hold_weights[resident].min()}."
            )
        if not np.isfinite(hold_gains).all():
            raise ValueError("hold_gains must be finite; found NaN or infinity.")

        hold_weights = hold_weights.astype(np.int64)
        hold_weights.flags.writeable = False
        hold_gains.flags.writeable = False
        resident.flags.writeable = False
        for name, value in (
            ("serve_weights", two_way.weights),
            ("hold_weights", hold_weights),
            ("capacity", two_way.capacity),
            ("min_batch", two_way.min_batch),
            ("max_batch", two_way.max_batch),
            ("hold_gains", hold_gains),
            ("resident", resident),
        ):
            object.__setattr__(self, name, value)

    @property
    def num_requests(self) -> int:
        """Number of requests n."""
        return int(self.serve_weights.size)

    @property
    def two_way(self) -> Instance:
        """The instance that is left when holding is not allowed."""
        return Instance(
            self.serve_weights, self.capacity, self.min_batch, self.max_batch, self.serve_gains
        )


@dataclass(frozen=True, slots=True, eq=False)
class ThreeWayPlan:
    """
    What to do with each request, its value, and the proven bound.

    Parameters
    ----------
    action
        :class:`andes_opt.snapshot.Action` of each request, (n,) int8.
    batch_size
        The batch size whose gains were used.
    value
        Sum of the gains of what is served at ``batch_size`` and of what is held,
        recomputed from the instance.
    bound
        Proven upper bound on the optimum over *all* batch sizes; inf if none.
    status
        OPTIMAL or FEASIBLE.
    build_s, solve_s
        Wall-clock seconds spent building models and solving.
    info
        The solver's own numbers.
    """

    action: NDArray[np.int8]
    batch_size: int
    value: float
    bound: float
    status: Status
    build_s: float
    solve_s: float
    info: Mapping[str, float] = field(default_factory=dict)

    @property
    def gap(self) -> float:
        """(bound - value) / max(1, |value|)."""
        return max(0.0, self.bound - self.value) / max(1.0, abs(self.value))


def make_three_way_plan(
    instance: ThreeWayInstance,
    action: NDArray[np.int8],
    batch_size: int,
    *,
    bound: float = math.inf,
    tolerance: float = TOLERANCE,
    build_s: float = 0.0,
    solve_s: float = 0.0,
    info: Mapping[str, float] | None = None,
) -> ThreeWayPlan:
    """
    A plan whose value and status are recomputed rather than taken from a back-end.

    Actions that are worth less than the empty plan are replaced by it. The status is OPTIMAL
    exactly if bound - value <= tolerance * max(1, |value|).

    Parameters
    ----------
    instance
        The instance.
    action
        Feasible actions, (n,).
    batch_size
        The batch size whose gains count.
    bound
        A proven upper bound over all batch sizes; inf if none.
    tolerance
        Relative gap up to which the plan counts as optimal.
    build_s, solve_s, info
        Passed on to the plan.
    """
    action = np.array(action, dtype=np.int8)
    value = _value(instance, action, batch_size)
    if value < 0:
        action = np.full(instance.num_requests, Action.WAIT, dtype=np.int8)
        batch_size, value = instance.min_batch, 0.0

    bound = max(bound, value)
    proven = bound - value <= tolerance * max(1.0, abs(value))
    return ThreeWayPlan(
        action=action,
        batch_size=int(batch_size),
        value=value,
        bound=bound,
        status=Status.OPTIMAL if proven else Status.FEASIBLE,
        build_s=build_s,
        solve_s=solve_s,
        info=dict(info or {}),
    )


def verify_three_way(instance: ThreeWayInstance, plan: ThreeWayPlan) -> None:
    """
    Check a plan against its instance; every number in it is recomputed.

    Raises
    ------
    InvalidPlan
        If a constraint is violated, the value is not the sum of the gains, the bound is
        below the value, or the status does not fit value and bound.
    """
    action = plan.action
    n = instance.num_requests
    if action.shape != (n,) or action.dtype != np.int8:
        raise InvalidPlan(f"action is {action.dtype}{action.shape}, not int8({n},).")
    if not np.isin(action, list(Action)).all():
        raise InvalidPlan(f"the actions {sorted(set(action.tolist()))} are not all of 0, 1, 2.")

    served, held = action == Action.SERVE, action == Action.HOLD
    if (held & ~instance.resident).any():
        first = int(np.flatnonzero(held & ~instance.resident)[0])
        raise InvalidPlan(f"request {first} is held but not resident.")
    if not instance.min_batch <= plan.batch_size <= instance.max_batch:
        raise InvalidPlan(
            f"batch_size {plan.batch_size} is outside [{instance.min_batch}, {instance.max_batch}]."
        )
    if served.sum() > plan.batch_size:
        raise InvalidPlan(f"the plan serves {served.sum()} > batch_size {plan.batch_size}.")
    if served.sum() + held.sum() > instance.max_batch:
        raise InvalidPlan(
            f"the plan serves {served.sum()} and holds {held.sum()} > max_batch "
            f"{instance.max_batch}: a held request keeps its place in the batch."
        )
    used = int(instance.serve_weights[served].sum() + instance.hold_weights[held].sum())
    if used > instance.capacity:
        raise InvalidPlan(f"the plan needs {used} KV tokens of {instance.capacity}.")

    value = _value(instance, action, plan.batch_size)
    slack = TOLERANCE * max(1.0, abs(value))
    if not abs(plan.value - value) <= slack:
        raise InvalidPlan(f"the plan states value {plan.value}; its gains sum to {value}.")
    if not plan.bound >= value - slack:
        raise InvalidPlan(f"the bound {plan.bound} is below the value {value}.")
    if plan.status is Status.NO_SOLUTION:
        raise InvalidPlan("NO_SOLUTION for an instance whose empty plan is feasible.")
    if plan.status is Status.OPTIMAL and not plan.bound - value <= 1.001 * TOLERANCE_MIP * max(
        1.0, abs(value)
    ):
        raise InvalidPlan(f"status OPTIMAL with bound {plan.bound} and value {value}.")


def _value(instance: ThreeWayInstance, action: NDArray[np.int8], batch_size: int) -> float:
    gains = instance.two_way.gains_at(batch_size)
    served = gains[action == Action.SERVE].sum()
    return float(served + instance.hold_gains[action == Action.HOLD].sum())
