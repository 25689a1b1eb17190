"""HiGHS through SciPy, one mixed-integer program per batch size."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import numpy as np

from andes_opt.plan import TOLERANCE_MIP
from solvers.backend import check_options, load_back_end, scale_exponent, unscaled_bound
from solvers.knapsack import Answer, sweep_knapsacks

if TYPE_CHECKING:
    from andes_opt.instance import Instance
    from andes_opt.plan import Plan
    from solvers.knapsack import Knapsack

_MODULE = "scipy.optimize"
_REQUIREMENT = "scipy>=1.13"

#: HiGHS' mip_abs_gap, which SciPy does not expose.
_ABSOLUTE_GAP = 1e-6
#: Rows are divided by at most this much, so that HiGHS' feasibility tolerance (1e-6 of a
#: scaled row) stays below half a token and rounding a solution can't overfill the memory.
_LARGEST_ROW_SCALE = 1e5


class Highs:
    """
    Branch and cut by HiGHS, called through ``scipy.optimize.milp``.

    Use it as the reference that is always there: SciPy is a core dependency, and no second copy
    of HiGHS enters the process (highspy's would clash with OR-Tools'). It certifies to 1e-6.
    Presolve is off by default: it takes a third of a second at a thousand requests, finds
    nothing to strengthen in two rows, and does not look at the clock. Its limits: 30 ms per
    batch size at 50 requests, 0.2 s at 200, 0.3 to 2 s at a thousand; SciPy offers neither
    threads nor seed nor a warm start; the clock is looked at between cut rounds, so that
    short time limits are missed by some 20 ms, and by 0.4 s with presolve at a thousand
    requests; and on subset-sum-like instances some versions print stray debugging lines.

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
        load_back_end(_MODULE, _REQUIREMENT)
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
        started = time.perf_counter()
        optimize = load_back_end(_MODULE, _REQUIREMENT)
        exponent = scale_exponent(knapsack.profits)
        # Token counts of thousands beside ones make HiGHS stumble over its own feasibility
        # tolerance; in units of the largest request it was up to five times as fast.
        unit = min(float(knapsack.weights.max()), _LARGEST_ROW_SCALE)
        rows = np.vstack([knapsack.weights / unit, np.ones(knapsack.size)])
        least = np.array([-np.inf, knapsack.slots if knapsack.exactly else -np.inf])
        most = np.array([knapsack.capacity / unit, knapsack.slots])
        options = {"presolve": self.presolve, "mip_rel_gap": self.relative_gap}
        built = time.perf_counter()
        if time_left_s is not None:
            options["time_limit"] = max(1e-3, time_left_s - (built - started))
        result = optimize.milp(
            -np.ldexp(knapsack.profits, exponent),
            integrality=np.ones(knapsack.size),
            bounds=optimize.Bounds(0.0, 1.0),
            constraints=optimize.LinearConstraint(rows, least, most),
            options=options,
        )

        bound = math.inf
        if result.mip_dual_bound is not None:
            bound = unscaled_bound(
                -result.mip_dual_bound, exponent, knapsack.size, absolute_slack=_ABSOLUTE_GAP
            )
        return Answer(
            result.x,
            bound,
            built - started,
            time.perf_counter() - built,
            {"nodes": result.mip_node_count or 0},
        )
