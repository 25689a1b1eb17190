"""Prices, rounding and one best swap: no search, and a proven gap all the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from andes_opt.plan import make_plan
from solvers.knapsack import at_batch_size, rounded
from solvers.prices import dual_bound
from solvers.sweep import Outcome, sweep

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from andes_opt.instance import Instance
    from andes_opt.plan import Plan
    from solvers.knapsack import Knapsack


class PriceRounding:
    """
    Take what is worth its prices, fill up, and make the one best swap.

    Use it where a plan is wanted soon and its proven gap suffices: the Lagrangian prices
    of a token and of a slot (:mod:`solvers.prices`) say for each request what serving it
    gains beyond what it costs the others. At most two requests of the linear relaxation
    are fractional, so what rounding loses shrinks like 1/n. Batch sizes are visited in
    order of their bounds until none can beat the incumbent by more than ``target_gap``. Its
    limit: it never searches, so it is optimal by luck only, with tight memory and few
    requests less often.

    Parameters
    ----------
    target_gap
        Relative gap at which the sweep over batch sizes stops, >= 0.

    Raises
    ------
    ValueError
        If the gap is negative.
    """

    exact = False

    def __init__(self, target_gap: float = 1e-4) -> None:
        if not target_gap >= 0:
            raise ValueError(f"target_gap = {target_gap} < 0 not understood.")
        self._target_gap = target_gap

    def solve(self, instance: Instance, *, time_limit_s: float | None = None) -> Plan:
        """Solve an instance; see :class:`andes_opt.solver.Solver`."""

        def solve_one(
            batch_size: int,
            gains: NDArray[np.float64],
            cutoff: float,
            time_left_s: float | None,
        ) -> Outcome:
            knapsack = at_batch_size(instance, batch_size, gains)
            serve = np.zeros(instance.num_requests, dtype=np.bool_)
            if knapsack.size == 0 or knapsack.slots == 0:
                return Outcome(serve, 0.0)
            chosen, bound = _round_and_swap(knapsack)
            serve[knapsack.requests[chosen]] = True
            return Outcome(serve, bound)

        plan = sweep(instance, solve_one, tolerance=self._target_gap, time_limit_s=time_limit_s)
        if plan.value == -np.inf:
            return plan
        # The sweep calls a plan optimal within its tolerance; only a closed gap is.
        return make_plan(
            instance,
            plan.serve,
            plan.batch_size,
            bound=plan.bound,
            build_s=plan.build_s,
            solve_s=plan.solve_s,
            info=plan.info,
        )


def _round_and_swap(knapsack: Knapsack) -> tuple[NDArray[np.bool_], float]:
    """A feasible selection at one batch size, and the bound that the prices prove."""
    bound, memory_price, slot_price = dual_bound(
        knapsack.profits,
        knapsack.weights,
        knapsack.capacity,
        knapsack.slots,
        exactly=knapsack.exactly,
    )
    reduced = knapsack.profits - memory_price * knapsack.weights - slot_price
    # Scaled into (0, 1): `rounded` takes by decreasing value and treats 0 and 1 as settled.
    scale = 4.0 * max(float(np.abs(reduced).max()), 1e-300)
    chosen = rounded(knapsack, 0.5 + reduced / scale)
    leaves, enters = best_swap(
        knapsack.profits,
        knapsack.weights,
        chosen,
        knapsack.capacity - int(knapsack.weights[chosen].sum()),
    )
    if enters >= 0:
        chosen[leaves] = False
        chosen[enters] = True
    return chosen, bound


@njit(cache=True)
def best_swap(
    profits: NDArray[np.float64],
    weights: NDArray[np.int64],
    chosen: NDArray[np.bool_],
    free: int,
) -> tuple[int, int]:
    """
    The exchange of one chosen request for another that gains most.

    Parameters
    ----------
    profits, weights
        Gains and KV tokens, (n,).
    chosen
        The selection, (n,).
    free
        KV tokens that the selection leaves free.

    Returns
    -------
    leaves, enters
        Positions of the two requests; (-1, -1) if no swap gains anything.
    """
    order = np.argsort(weights)
    # Best outsider among the lightest ones, by position in the order.
    champion = np.empty(order.size, np.int64)
    best = -1
    for position in range(order.size):
        i = order[position]
        if not chosen[i] and (best < 0 or profits[i] > profits[best]):
            best = i
        champion[position] = best

    gain, leaves, enters = 0.0, -1, -1
    reach = 0
    for position in range(order.size):
        i = order[position]
        if not chosen[i]:
            continue
        while reach < order.size and weights[order[reach]] <= weights[i] + free:
            reach += 1
        best = champion[reach - 1]
        if best >= 0 and profits[best] - profits[i] > gain:
            gain, leaves, enters = profits[best] - profits[i], i, best
    return leaves, enters
