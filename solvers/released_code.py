"""The ordering of the scheduler that the paper's authors released, as a named baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from solvers.packing import SKIP_UNTIL_FULL, greedy_plan

if TYPE_CHECKING:
    from andes_opt.instance import Instance
    from andes_opt.plan import Plan


class ReleasedCode:
    """
    What the paper's released scheduler does, which is not quite Algorithm 1.

    Its notion of a request's value is already a gain per KV token, and its packing divides
    by the weight once more: requests are taken by gain/weight**2, which favours short
    contexts. It passes over misfits while less than 90 % of the memory is used and stops
    at the first one after that; if all requests fit together, the slots go by gain/weight.
    Use it only to compare with the released system. Two liberties, both in its
    favour: it is swept over all batch sizes (the released code packs once, with one fixed
    token latency), and requests without a positive gain are left out. ``exactly`` is
    handled as in :class:`~solvers.greedy.Greedy`.

    Parameters
    ----------
    bound
        If True, plans carry a proven upper bound from the dual prices.
    """

    exact = False

    def __init__(self, *, bound: bool = False) -> None:
        self.bound = bound

    def solve(self, instance: Instance, *, time_limit_s: float | None = None) -> Plan:
        """Pack; see :class:`~andes_opt.solver.Solver`."""
        all_fit = int(instance.weights.sum()) <= instance.capacity
        return greedy_plan(
            instance,
            rule=SKIP_UNTIL_FULL,
            weight_power=1.0 if all_fit else 2.0,
            proven_bound=self.bound,
            time_limit_s=time_limit_s,
        )
