"""
Conformance checks for solvers: run them on your own.

    from andes_opt.testing import CHECKS, check_solver

    check_solver(MySolver)                      # everything, first failure raises
    CHECKS["deterministic"](MySolver)           # or one at a time, for a parametrised test

A solver passes if its plans pass :func:`andes_opt.plan.verify`, its values never exceed the
optimum, its bounds never fall below it, and, if it calls itself ``exact``, it proves and
reaches the optimum. The optimum comes from plain enumeration of all selections
(:mod:`andes_opt.testing_cases`), which uses no solver.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import numpy as np

from andes_opt.instance import Instance
from andes_opt.plan import TOLERANCE, Plan, Status, verify
from andes_opt.solver import Solver
from andes_opt.testing_cases import (
    KINDS,
    Case,
    cases,
    enumerate_optimum,
    large_instance,
    random_instance,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

__all__ = [
    "CHECKS",
    "KINDS",
    "Case",
    "NonConformance",
    "cases",
    "check_case",
    "check_cases",
    "check_contract",
    "check_deterministic",
    "check_lazy_gains",
    "check_leaves_instance_alone",
    "check_solver",
    "check_time_limit",
    "enumerate_optimum",
    "large_instance",
    "random_instance",
]

#: Relative slack when values are compared: sums of the same gains in another order.
_SUMMATION = 1e-11


class NonConformance(AssertionError):
    """A solver that breaks its contract; the sentence says on which case and how."""


def check_case(solver: Solver, case: Case, *, tolerance: float = TOLERANCE) -> Plan:
    """
    Check one plan of a solver without a time limit.

    Parameters
    ----------
    solver
        The solver.
    case
        The case.
    tolerance
        Relative gap within which an exact solver has to reach the optimum.

    Returns
    -------
    Plan
        The plan, for further checks.

    Raises
    ------
    NonConformance
        If the plan breaks the contract.
    """
    plan = solver.solve(case.instance)
    _require_sound(plan, case)
    if not solver.exact:
        return plan
    if case.optimum == -math.inf:
        _require(case, plan.bound == -math.inf, "an exact solver must prove that no plan exists")
        return plan
    slack = (tolerance + _SUMMATION) * max(1.0, abs(case.optimum))
    _require(
        case,
        plan.value >= case.optimum - slack,
        f"an exact solver must reach {case.optimum}, not {plan.value}",
    )
    _require(
        case,
        plan.status is Status.OPTIMAL,
        f"an exact solver without a time limit must prove optimality, not {plan.status.value} "
        f"with bound {plan.bound} and value {plan.value}",
    )
    return plan


def _require_sound(plan: Plan, case: Case) -> None:
    """Check what holds for every plan of every solver, at any time limit."""
    try:
        verify(case.instance, plan)
    except ValueError as error:
        raise NonConformance(f"{case.name}: {error}") from error
    if plan.status is Status.NO_SOLUTION:
        # An unproven NO_SOLUTION is allowed; verify has caught a wrong proof.
        return
    slack = _SUMMATION * max(1.0, abs(case.optimum))
    _require(
        case,
        plan.value <= case.optimum + slack,
        f"value {plan.value} is above the optimum {case.optimum}",
    )
    _require(
        case,
        plan.bound >= case.optimum - slack,
        f"bound {plan.bound} is below the optimum {case.optimum}",
    )
    _require(
        case,
        plan.build_s >= 0 and plan.solve_s >= 0,
        f"times {plan.build_s} and {plan.solve_s} must not be negative",
    )


def _require(case: Case, holds: bool, sentence: str) -> None:
    if not holds:
        raise NonConformance(f"{case.name}: {sentence}.")


def check_contract(make_solver: Callable[[], Solver]) -> None:
    """The object has the two members of the contract, and ``exact`` is a bool."""
    solver = make_solver()
    if not isinstance(solver, Solver):
        raise NonConformance(f"{type(solver).__name__} lacks `exact` or `solve`.")
    if not isinstance(solver.exact, bool):
        raise NonConformance(f"{type(solver).__name__}.exact is {solver.exact!r}, not a bool.")


def check_cases(make_solver: Callable[[], Solver], *, tolerance: float = TOLERANCE) -> None:
    """Every case, one solver object for all of them: sound, and optimal if exact."""
    solver = make_solver()
    for case in cases():
        check_case(solver, case, tolerance=tolerance)


def check_lazy_gains(make_solver: Callable[[], Solver], *, tolerance: float = TOLERANCE) -> None:
    """Gain models of third parties, which are callables and not tables, are accepted."""
    solver = make_solver()
    for case in cases():
        if case.name.startswith("random") and case.name.endswith("#0"):
            table = case.instance.gains
            lazy = Instance(
                case.instance.weights,
                case.instance.capacity,
                case.instance.min_batch,
                case.instance.max_batch,
                _LazyGains(table.__call__, table.monotone),
                case.instance.exactly,
            )
            check_case(
                solver, Case(f"{case.name}, lazy gains", lazy, case.optimum), tolerance=tolerance
            )


def check_deterministic(make_solver: Callable[[], Solver]) -> None:
    """Two fresh objects with the same options and seed give the same selections."""
    first, second = make_solver(), make_solver()
    for case in cases()[::4]:
        one, two = first.solve(case.instance), second.solve(case.instance)
        same = one.batch_size == two.batch_size and np.array_equal(one.serve, two.serve)
        _require(case, same, "two solvers made alike return different plans")


def check_leaves_instance_alone(make_solver: Callable[[], Solver]) -> None:
    """Solving changes neither the weights nor the gains, and gives the plan its own arrays."""
    solver = make_solver()
    for case in cases()[::4]:
        instance = case.instance
        weights = instance.weights.copy()
        table = instance.gain_table(instance.min_batch, instance.max_batch).copy()
        plan = solver.solve(instance)
        kept = np.array_equal(weights, instance.weights) and np.array_equal(
            table, instance.gain_table(instance.min_batch, instance.max_batch)
        )
        _require(case, kept, "solving changed the instance")
        before = plan.serve.copy()
        solver.solve(instance)
        _require(case, np.array_equal(before, plan.serve), "solving again changed an older plan")


def check_time_limit(
    make_solver: Callable[[], Solver], *, num_requests: int = 60, late_s: float = 1.0
) -> None:
    """
    At every time limit a valid plan comes back in time.

    Parameters
    ----------
    make_solver
        Makes the solver.
    num_requests
        Size of the larger instance; lower it for solvers that are made for tiny ones.
    late_s
        Seconds a plan may be late; generous, because this has to pass on a busy machine and is
        no benchmark.
    """
    solver = make_solver()
    tiny = [case for case in cases() if case.name in ("both bind", "exactly two at a loss")]
    for case in tiny:
        for limit_s in (0.0, 1e-6, 10.0):
            _require_sound(solver.solve(case.instance, time_limit_s=limit_s), case)

    # The optimum of the larger instance isn't known; it lies between 0 and infinity.
    instance = large_instance(num_requests)
    solver.solve(tiny[0].instance, time_limit_s=10.0)  # compiles what is compiled on first use
    for limit_s in (0.0, 0.05):
        started = time.perf_counter()
        plan = solver.solve(instance, time_limit_s=limit_s)
        late = time.perf_counter() - started - limit_s
        case = Case(f"{num_requests} requests within {limit_s} s", instance, math.nan)
        try:
            verify(instance, plan)
        except ValueError as error:
            raise NonConformance(f"{case.name}: {error}") from error
        _require(case, late <= late_s, f"the plan came {late:.3f} s late")


class _LazyGains:
    """A third party's gain model: the contract and nothing more."""

    concave_in_rate = False

    def __init__(self, gains_at: Callable[[int], NDArray[np.float64]], monotone: bool) -> None:
        self._gains_at = gains_at
        self.monotone = monotone

    def __call__(self, batch_size: int) -> NDArray[np.float64]:
        return self._gains_at(batch_size).copy()

    def table(self, first: int, last: int) -> NDArray[np.float64]:
        return np.array([self(batch_size) for batch_size in range(first, last + 1)])


#: Every check by name; each takes a callable that makes the solver.
CHECKS: Mapping[str, Callable[..., None]] = {
    "contract": check_contract,
    "cases": check_cases,
    "lazy gains": check_lazy_gains,
    "deterministic": check_deterministic,
    "leaves the instance alone": check_leaves_instance_alone,
    "time limit": check_time_limit,
}


def check_solver(
    make_solver: Callable[[], Solver],
    *,
    tolerance: float = TOLERANCE,
    num_requests: int = 60,
    late_s: float = 1.0,
) -> None:
    """
    Run every check on a solver.

    Parameters
    ----------
    make_solver
        Makes a fresh solver, always with the same options.
    tolerance
        Relative gap within which an exact solver has to reach the optimum.
    num_requests, late_s
        As for :func:`check_time_limit`.

    Raises
    ------
    NonConformance
        On the first failure.
    """
    check_contract(make_solver)
    check_cases(make_solver, tolerance=tolerance)
    check_lazy_gains(make_solver, tolerance=tolerance)
    check_deterministic(make_solver)
    check_leaves_instance_alone(make_solver)
    check_time_limit(make_solver, num_requests=num_requests, late_s=late_s)
