"""Greedy packing by gain per KV token: Algorithm 1 of the paper, and its obvious repair."""

from __future__ import annotations

from typing import TYPE_CHECKING

from solvers.packing import SKIP, STOP, greedy_plan

if TYPE_CHECKING:
    from andes_opt.instance import Instance
    from andes_opt.plan import Plan


class Greedy:
    """
    Algorithm 1 of the paper: by gain per KV token, up to the first misfit.

    For each batch size, requests with a positive gain are taken by decreasing gain/weight
    until one doesn't fit into the memory or the slots are full; the best batch size, up to
    the most requests that fit together, wins (Andes, arXiv 2404.16283, Algorithm 1). Use it
    as the paper's baseline and where microseconds count. Its limit: gain/weight ignores
    what a slot is worth, so it loses 3-10 % where batch size and memory both bind (below
    1 % where only memory does), and it leaves memory empty behind a large misfit. With
    ``exactly`` a misfit is a request after which the remaining slots can't be filled any
    more; the lightest requests fill them.

    Parameters
    ----------
    bound
        If True, plans carry a proven upper bound from the dual prices; that costs a few
        dual searches more than the packing itself.
    """

    exact = False

    def __init__(self, *, bound: bool = False) -> None:
        self.bound = bound

    def solve(self, instance: Instance, *, time_limit_s: float | None = None) -> Plan:
        """Pack; see :class:`~andes_opt.solver.Solver`."""
        return greedy_plan(instance, rule=STOP, proven_bound=self.bound, time_limit_s=time_limit_s)


class GreedySkip:
    """
    Greedy by gain per KV token that skips misfits and goes on.

    As :class:`Greedy`, but a request that doesn't fit is passed over and smaller ones
    behind it are still tried. Use it where Algorithm 1 would be used: for a fixed batch
    size it is never worse, unless plans have to fill the batch exactly, and costs hardly
    more. It is just as blind to the price of a slot.

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
        return greedy_plan(instance, rule=SKIP, proven_bound=self.bound, time_limit_s=time_limit_s)
