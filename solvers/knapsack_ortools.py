"""OR-Tools' multi-dimensional KnapsackSolver, one knapsack per batch size."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import numpy as np

from andes_opt.plan import TOLERANCE
from solvers.backend import integer_bound, integer_profits, load_back_end
from solvers.knapsack import Answer, rounded, sweep_knapsacks
from solvers.prices import dual_bound

if TYPE_CHECKING:
    from andes_opt.instance import Instance
    from andes_opt.plan import Plan
    from solvers.knapsack import Knapsack

_MODULE = "ortools.algorithms.python.knapsack_solver"
_REQUIREMENT = "ortools>=9.12,<10"


class KnapsackOrtools:
    """
    Branch and bound of OR-Tools' KnapsackSolver, with memory and slots as two dimensions.

    Use it for small steps, or to see why a solver made for knapsacks is not enough: its
    bound relaxes one dimension at a time, so with memory *and* slots binding it closes
    nothing from about 100 to 200 requests on, keeps all open nodes in memory (some 100 MB
    per second), and reports no bound when it stops early; then the bound is that of the
    prices (:mod:`solvers.prices`). Where only one dimension binds it takes milliseconds at
    any size. "Exactly B" is not in its vocabulary; it is posed as at most B with a reward
    per request that no empty slot can outweigh. Time limits are kept.

    Parameters
    ----------
    default_time_limit_s
        Limit for a call without one, > 0; None for none, which may not come back. Each
        batch size gets at most half of what is left.

    Raises
    ------
    ImportError
        If OR-Tools is missing.
    ValueError
        If the limit is not positive.
    """

    exact = True

    def __init__(self, *, default_time_limit_s: float | None = 2.0) -> None:
        if default_time_limit_s is not None and not default_time_limit_s > 0:
            raise ValueError(f"default_time_limit_s = {default_time_limit_s} <= 0 not understood.")
        load_back_end(_MODULE, _REQUIREMENT)
        self.default_time_limit_s = default_time_limit_s

    def solve(self, instance: Instance, *, time_limit_s: float | None = None) -> Plan:
        """Solve an instance; see :class:`andes_opt.solver.Solver`."""
        if time_limit_s is None:
            time_limit_s = self.default_time_limit_s
        return sweep_knapsacks(instance, self._pack, tolerance=TOLERANCE, time_limit_s=time_limit_s)

    def _pack(self, knapsack: Knapsack, cutoff: float, time_left_s: float | None) -> Answer:
        started = time.perf_counter()
        module = load_back_end(_MODULE, _REQUIREMENT)
        reward = _reward(knapsack) if knapsack.exactly else 0.0
        profits, exponent = integer_profits(knapsack.profits + reward)
        solver = module.KnapsackSolver(
            module.SolverType.KNAPSACK_MULTIDIMENSION_BRANCH_AND_BOUND_SOLVER, "step"
        )
        solver.init(
            profits.tolist(),
            [knapsack.weights.tolist(), [1] * knapsack.size],
            [knapsack.capacity, knapsack.slots],
        )
        built = time.perf_counter()
        if time_left_s is not None:
            left_s = time_left_s - (built - started)
            solver.set_time_limit(max(1e-3, left_s / 2))
        best = solver.solve()

        values = np.array(
            [solver.best_solution_contains(column) for column in range(knapsack.size)],
            dtype=np.float64,
        )
        bound = math.inf
        full = not knapsack.exactly or values.sum() == knapsack.slots
        if solver.is_solution_optimal() and full:
            bound = integer_bound(best, exponent, knapsack.slots) - reward * knapsack.slots
            # The rewards come off again up to the rounding of doubles of that size.
            bound += 4 * knapsack.slots * math.ulp(reward * knapsack.slots)
        return Answer(
            values,
            bound,
            built - started,
            time.perf_counter() - built,
            {"closed": float(solver.is_solution_optimal())},
        )


def _reward(knapsack: Knapsack) -> float:
    """
    What a filled slot must be worth so that no selection with an empty one is best.

    As small as it can be proved to be: the larger the reward, the weaker the back-end's bounds.
    """
    fewer, _, _ = dual_bound(
        knapsack.profits, knapsack.weights, knapsack.capacity, knapsack.slots - 1
    )
    some_full = float(knapsack.profits[rounded(knapsack, np.zeros(knapsack.size))].sum())
    least = max(0.0, fewer - some_full, -float(knapsack.profits.min()))
    return least + 1e-6 * (abs(fewer) + abs(some_full) + least)
