"""OR-Tools GLOP: the linear relaxation of each batch size, rounded."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from andes_opt.plan import TOLERANCE
from solvers.backend import scale_exponent
from solvers.knapsack import Answer, sweep_knapsacks
from solvers.ortools_linear import require, solve_linear
from solvers.prices import price_bound

if TYPE_CHECKING:
    from andes_opt.instance import Instance
    from andes_opt.plan import Plan
    from solvers.knapsack import Knapsack


class LpRounding:
    """
    Solve the linear relaxation, keep what is whole, fill the rest by gain per token.

    Use it as the textbook heuristic with a bound, and to see what specialised code buys:
    ``price_rounding`` gets the same bound without a simplex method. A vertex of the relaxation
    has at most two fractional requests, so the gap is at most two gains and shrinks like 1/n:
    about 1e-4 at a thousand requests. The bound is recomputed from GLOP's dual prices (any
    prices prove one), so it does not rest on GLOP's tolerances. Its limits: a heuristic, and as
    its gap hardly ever closes the sweep visits every batch size whose relaxation beats the
    incumbent, at 1 ms each for a hundred requests and 10 ms for a thousand. Time limits are kept.

    Parameters
    ----------
    presolve
        Whether GLOP preprocesses the model.

    Raises
    ------
    ImportError
        If OR-Tools is missing.
    """

    exact = False

    def __init__(self, *, presolve: bool = True) -> None:
        require("GLOP")
        self.presolve = presolve

    def solve(self, instance: Instance, *, time_limit_s: float | None = None) -> Plan:
        """Solve an instance; see :class:`andes_opt.solver.Solver`."""
        return sweep_knapsacks(instance, self._pack, tolerance=TOLERANCE, time_limit_s=time_limit_s)

    def _pack(self, knapsack: Knapsack, cutoff: float, time_left_s: float | None) -> Answer:
        exponent = scale_exponent(knapsack.profits)
        result = solve_linear(
            "GLOP",
            knapsack,
            np.ldexp(knapsack.profits, exponent),
            integer=False,
            parameters=f"use_preprocessing: {str(self.presolve).lower()}",
            time_left_s=time_left_s,
        )
        bound = math.inf
        if result.optimal:
            # Of a maximisation both prices are >= 0 up to tolerance, except where the number
            # of requests is prescribed.
            memory_price, slot_price = np.ldexp(result.row_prices, -exponent)
            bound = price_bound(
                knapsack.profits,
                knapsack.weights,
                knapsack.capacity,
                knapsack.slots,
                max(0.0, float(memory_price)),
                float(slot_price) if knapsack.exactly else max(0.0, float(slot_price)),
            )
        return Answer(result.values, bound, result.build_s, result.solve_s)
