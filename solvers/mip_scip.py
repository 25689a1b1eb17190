"""SCIP through OR-Tools, one mixed-integer program per batch size."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from andes_opt.plan import TOLERANCE_MIP
from solvers.backend import check_options, scale_exponent, unscaled_bound
from solvers.knapsack import Answer, sweep_knapsacks
from solvers.ortools_linear import require, solve_linear

if TYPE_CHECKING:
    from andes_opt.instance import Instance
    from andes_opt.plan import Plan
    from solvers.knapsack import Knapsack

#: SCIP treats values closer than this to an integer, or to each other, as equal.
_ABSOLUTE_GAP = 1e-4


class MipScip:
    """
    Branch, cut and price by SCIP, the academic MIP solver that OR-Tools ships.

    Use it as a second opinion on HiGHS and CBC: an independent code, on these two rows some
    one and a half to three times as fast as HiGHS. It certifies to 1e-6. Its limits: 10 ms per
    batch size at 50 requests, 50 ms at 200, half a second at a thousand, where CBC takes a
    quarter of that; one thread in OR-Tools' build, and no warm start between batch sizes.
    Short time limits are missed by some 10 ms.

    Parameters
    ----------
    seed
        Shift of SCIP's random seeds.
    presolve
        Whether SCIP presolves the model.
    relative_gap
        Gap at which a batch size counts as solved; the solver is exact up to 1e-6.

    Raises
    ------
    ImportError
        If OR-Tools is missing.
    ValueError
        If an option is out of range.
    """

    def __init__(self, *, seed: int = 0, presolve: bool = True, relative_gap: float = 0.0) -> None:
        check_options(seed=seed, relative_gap=relative_gap)
        require("SCIP")
        self.seed = seed
        self.presolve = presolve
        self.relative_gap = relative_gap

    @property
    def exact(self) -> bool:
        """True up to a ``relative_gap`` of 1e-6, which is what MIP back-ends certify."""
        return self.relative_gap <= TOLERANCE_MIP

    def solve(self, instance: Instance, *, time_limit_s: float | None = None) -> Plan:
        """Solve an instance; see :class:`andes_opt.solver.Solver`."""
        return sweep_knapsacks(
            instance, self._pack, tolerance=TOLERANCE_MIP, time_limit_s=time_limit_s
        )

    def _pack(self, knapsack: Knapsack, cutoff: float, time_left_s: float | None) -> Answer:
        exponent = scale_exponent(knapsack.profits)
        parameters = [
            f"limits/gap = {self.relative_gap}",
            f"randomization/randomseedshift = {self.seed}",
        ]
        if not self.presolve:
            parameters.append("presolving/maxrounds = 0")
        result = solve_linear(
            "SCIP",
            knapsack,
            np.ldexp(knapsack.profits, exponent),
            integer=True,
            parameters="\n".join(parameters),
            time_left_s=time_left_s,
        )
        bound = math.inf
        if math.isfinite(result.bound):
            bound = unscaled_bound(
                result.bound, exponent, knapsack.size, absolute_slack=_ABSOLUTE_GAP
            )
        return Answer(result.values, bound, result.build_s, result.solve_s)
