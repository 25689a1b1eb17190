"""A solver's answer to one instance, and a check that takes nothing on trust."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from andes_opt.instance import Instance

#: Optimality tolerances, relative to max(1, |value|) (docs/model.md, Contracts).
TOLERANCE = 1e-9
TOLERANCE_MIP = 1e-6


class Status(Enum):
    """What a solver proved: optimality, feasibility only, or that no plan exists."""

    OPTIMAL = "optimal"
    FEASIBLE = "feasible"
    NO_SOLUTION = "no solution"


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """
    Which requests to serve, what that is worth, and what was proved about it.

    Parameters
    ----------
    serve
        True for each request that is served, (n,).
    batch_size
        The batch size whose gains were used.
    value
        Sum of gains(batch_size)[serve], recomputed from the instance.
    bound
        Proven upper bound on the optimum over *all* batch sizes; inf if none.
    status
        OPTIMAL, FEASIBLE or NO_SOLUTION.
    build_s, solve_s
        Wall-clock seconds spent building models and solving.
    info
        The solver's own numbers: nodes, batch sizes examined, fallbacks ...
    """

    serve: NDArray[np.bool_]
    batch_size: int
    value: float
    bound: float
    status: Status
    build_s: float
    solve_s: float
    info: Mapping[str, float] = field(default_factory=dict)

    @property
    def gap(self) -> float:
        """(bound - value) / max(1, |value|); 0 for a proven absence of solutions."""
        if self.status is Status.NO_SOLUTION:
            return 0.0 if self.bound == -math.inf else math.inf
        return max(0.0, self.bound - self.value) / max(1.0, abs(self.value))


class InvalidPlan(ValueError):
    """A plan that breaks a constraint or misstates its value, bound or status."""


def make_plan(
    instance: Instance,
    serve: NDArray[np.bool_],
    batch_size: int,
    *,
    bound: float = math.inf,
    tolerance: float = TOLERANCE,
    build_s: float = 0.0,
    solve_s: float = 0.0,
    info: Mapping[str, float] | None = None,
) -> Plan:
    """
    A plan whose value and status are recomputed rather than taken from a back-end.

    A worse-than-empty selection is replaced by the empty plan where that is allowed.
    The status is OPTIMAL exactly if bound - value <= tolerance * max(1, |value|).

    Parameters
    ----------
    instance
        The instance.
    serve
        Selected requests, (n,), feasible at ``batch_size``.
    batch_size
        The batch size whose gains count.
    bound
        A proven upper bound over all batch sizes; inf if none.
    tolerance
        Relative gap up to which the plan counts as optimal.
    build_s, solve_s, info
        Passed on to the plan.
    """
    serve = np.array(serve, dtype=np.bool_)
    value = _value(instance, serve, batch_size)
    if value < 0 and not instance.exactly:
        serve = np.zeros(instance.num_requests, dtype=np.bool_)
        batch_size, value = instance.min_batch, 0.0

    bound = max(bound, value)
    proven = bound - value <= tolerance * max(1.0, abs(value))
    return Plan(
        serve=serve,
        batch_size=int(batch_size),
        value=value,
        bound=bound,
        status=Status.OPTIMAL if proven else Status.FEASIBLE,
        build_s=build_s,
        solve_s=solve_s,
        info=dict(info or {}),
    )


def no_solution(
    instance: Instance,
    *,
    proven: bool,
    build_s: float = 0.0,
    solve_s: float = 0.0,
    info: Mapping[str, float] | None = None,
) -> Plan:
    """The NO_SOLUTION plan of an ``exactly`` instance: bound -inf if proven, else inf."""
    return Plan(
        serve=np.zeros(instance.num_requests, dtype=np.bool_),
        batch_size=instance.min_batch,
        value=-math.inf,
        bound=-math.inf if proven else math.inf,
        status=Status.NO_SOLUTION,
        build_s=build_s,
        solve_s=solve_s,
        info=dict(info or {}),
    )


def verify(instance: Instance, plan: Plan) -> None:
    """
    Check a plan against its instance; every number in it is recomputed.

    Raises
    ------
    InvalidPlan
        If a constraint is violated, the value is not the sum of the gains, the bound is
        below the value, or the status does not fit value and bound.
    """
    serve = np.asarray(plan.serve)
    if serve.shape != (instance.num_requests,) or serve.dtype != np.bool_:
        raise InvalidPlan(
            f"serve is {serve.dtype}{serve.shape}, not bool({instance.num_requests},)."
        )
    if not isinstance(plan.status, Status):
        raise InvalidPlan(f"status {plan.status!r} is no Status.")
    if not isinstance(plan.batch_size, Integral):
        raise InvalidPlan(f"batch_size {plan.batch_size!r} is no whole number.")
    if plan.status is Status.NO_SOLUTION:
        _verify_no_solution(instance, plan)
        return

    count = int(serve.sum())
    used = int(instance.weights[serve].sum())
    if not instance.min_batch <= plan.batch_size <= instance.max_batch:
        raise InvalidPlan(
            f"batch_size {plan.batch_size} is outside [{instance.min_batch}, {instance.max_batch}]."
        )
    if used > instance.capacity:
        raise InvalidPlan(f"the plan needs {used} KV tokens of {instance.capacity}.")
    if count > plan.batch_size:
        raise InvalidPlan(f"the plan serves {count} > batch_size {plan.batch_size}.")
    if instance.exactly and count != plan.batch_size:
        raise InvalidPlan(f"the plan serves {count}, not exactly {plan.batch_size}.")

    value = _value(instance, serve, plan.batch_size)
    slack = TOLERANCE * max(1.0, abs(value))
    if not abs(plan.value - value) <= slack:
        raise InvalidPlan(f"the plan states value {plan.value}; its gains sum to {value}.")
    if not plan.bound >= value - slack:
        raise InvalidPlan(f"the bound {plan.bound} is below the value {value}.")
    if plan.status is Status.OPTIMAL and not plan.bound - value <= 1.001 * TOLERANCE_MIP * max(
        1.0, abs(value)
    ):
        raise InvalidPlan(f"status OPTIMAL with bound {plan.bound} and value {value}.")


def _verify_no_solution(instance: Instance, plan: Plan) -> None:
    if not instance.exactly:
        raise InvalidPlan("NO_SOLUTION for an instance whose empty plan is feasible.")
    if np.any(plan.serve) or plan.batch_size != instance.min_batch:
        raise InvalidPlan("NO_SOLUTION must serve nobody at batch_size min_batch.")
    if plan.value != -math.inf or plan.bound not in (-math.inf, math.inf):
        raise InvalidPlan(
            f"NO_SOLUTION must have value -inf and bound -inf or inf, "
            f"not {plan.value} and {plan.bound}."
        )
    if plan.bound == -math.inf and _some_size_fits(instance):
        raise InvalidPlan("NO_SOLUTION is called proven, but some batch size fits.")


def _some_size_fits(instance: Instance) -> bool:
    if instance.min_batch > instance.num_requests:
        return False
    lightest = np.sort(instance.weights)[: instance.min_batch]
    return int(lightest.sum()) <= instance.capacity


def _value(instance: Instance, serve: NDArray[np.bool_], batch_size: int) -> float:
    return float(instance.gains_at(batch_size)[serve].sum())
