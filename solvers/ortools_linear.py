"""
OR-Tools' linear solvers on one knapsack, for the solvers built on SCIP and on GLOP.

The model goes over as arrays through the core of OR-Tools' ModelBuilder: half a
millisecond at a thousand requests, where pywraplp takes 10 and MathOpt 25.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_matrix

from solvers.backend import load_back_end

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from solvers.knapsack import Knapsack

_MODULE = "ortools.linear_solver.python.model_builder_helper"
_REQUIREMENT = "ortools>=9.12,<10"


@dataclass(frozen=True, slots=True, eq=False)
class LinearAnswer:
    """
    What a linear solver of OR-Tools reports.

    Parameters
    ----------
    values
        x, (k,); None if there is no solution.
    bound
        Its bound on the scaled objective; nan if it reports none.
    optimal
        Whether it claims optimality.
    row_prices
        Dual values of the memory row and the slot row, (2,); zeros from a MIP solver.
    build_s, solve_s
        Wall-clock seconds.
    """

    values: NDArray[np.float64] | None
    bound: float
    optimal: bool
    row_prices: NDArray[np.float64]
    build_s: float
    solve_s: float


def require(solver: str) -> None:
    """
    Check that OR-Tools is installed and was built with a solver.

    Parameters
    ----------
    solver
        OR-Tools' name of the solver, ``"SCIP"`` or ``"GLOP"``.

    Raises
    ------
    ImportError
        If not.
    """
    if not load_back_end(_MODULE, _REQUIREMENT).ModelSolverHelper(solver).solver_is_supported():
        raise ImportError(f"this build of OR-Tools lacks {solver}; pip install '{_REQUIREMENT}'.")


def solve_linear(
    solver: str,
    knapsack: Knapsack,
    scaled_profits: NDArray[np.float64],
    *,
    integer: bool,
    parameters: str,
    time_left_s: float | None,
) -> LinearAnswer:
    """
    Solve a knapsack or its linear relaxation.

    Parameters
    ----------
    solver
        OR-Tools' name of the solver.
    knapsack
        The knapsack.
    scaled_profits
        Objective coefficients, (k,).
    integer
        Whether x has to be integer.
    parameters
        The solver's own parameters, in its own syntax.
    time_left_s
        Wall-clock limit in seconds; None for no limit.
    """
    started = time.perf_counter()
    helper = load_back_end(_MODULE, _REQUIREMENT)
    size = knapsack.size
    model = helper.ModelBuilderHelper()
    model.fill_model_from_sparse_data(
        np.zeros(size),
        np.ones(size),
        scaled_profits,
        np.array([-np.inf, knapsack.slots if knapsack.exactly else -np.inf]),
        np.array([knapsack.capacity, knapsack.slots], dtype=np.float64),
        csr_matrix(np.vstack([knapsack.weights, np.ones(size)]).astype(np.float64)),
    )
    model.set_maximize(True)
    if integer:
        for column in range(size):
            model.set_var_integrality(column, True)
    solving = helper.ModelSolverHelper(solver)
    solving.set_solver_specific_parameters(parameters)
    built = time.perf_counter()
    if time_left_s is not None:
        solving.set_time_limit_in_seconds(max(1e-3, time_left_s - (built - started)))
    solving.solve(model)

    optimal = solving.status() == helper.SolveStatus.OPTIMAL
    found = optimal or solving.status() == helper.SolveStatus.FEASIBLE
    return LinearAnswer(
        values=np.array(solving.variable_values()) if found else None,
        bound=float(solving.best_objective_bound()) if found and integer else float("nan"),
        optimal=optimal,
        row_prices=np.array(solving.dual_values()) if optimal and not integer else np.zeros(2),
        build_s=built - started,
        solve_s=time.perf_counter() - built,
    )
