"""Prices, rounding and one best swap: no search, and a proven gap all the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from solvers._exact.rounding import best_swap
from solvers._exact.step import Workspace, solve_step

if TYPE_CHECKING:
    from andes_opt.instance import Instance
    from andes_opt.plan import Plan

__all__ = ["PriceRounding", "best_swap"]


class PriceRounding:
    """
    Take what is worth its prices, fill up, and make the one best swap.

    Use it where a plan is wanted soon and its proven gap suffices: the Lagrangian prices
    of a token and of a slot (:mod:`solvers.prices`) say for each request what serving it
    gains beyond what it costs the others. At most two requests of the linear relaxation
    are fractional, so what rounding loses shrinks like 1/n. Batch sizes are visited as by
    :class:`solvers.exact.Exact`, until none can beat the incumbent by more than
    ``target_gap`` / n. Its limit: it never searches, so it is optimal by luck only, with
    tight memory and few requests less often. With fewer than some hundred requests ``exact``
    needs no more time, since there its search is over at once.

    Parameters
    ----------
    target_gap
        Relative gap at which the sweep over batch sizes stops, times the number of
        requests, >= 0.
    warm_start
        Begin with the batch size and the memory price of the previous call.

    Raises
    ------
    ValueError
        If the gap is negative.
    """

    exact = False

    def __init__(self, target_gap: float = 0.07, warm_start: bool = True) -> None:
        if not target_gap >= 0:
            raise ValueError(f"target_gap = {target_gap} < 0 not understood.")
        self._target_gap = float(target_gap)
        self._warm_start = bool(warm_start)
        self._workspace = Workspace()

    def solve(self, instance: Instance, *, time_limit_s: float | None = None) -> Plan:
        """
        Solve an instance; see :class:`andes_opt.solver.Solver`.

        Raises
        ------
        ValueError
            If the gain model returns the wrong number of gains, NaN or infinity.
        """
        return solve_step(
            instance,
            self._workspace,
            search=False,
            gap=self._target_gap / max(1, instance.num_requests),
            warm_start=self._warm_start,
            time_limit_s=time_limit_s,
        )
