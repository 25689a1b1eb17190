"""The certified solver: the optimum over all batch sizes, proved, at greedy's speed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from andes_opt.families import make
from solvers._exact.step import Workspace, solve_step
from solvers._exact.worth import SLACK

if TYPE_CHECKING:
    from andes_opt.instance import Instance
    from andes_opt.plan import Plan


class Exact:
    """
    Prices, core and lists: a certified optimum over all batch sizes.

    The first choice wherever an optimum is wanted: no back-end, one thread, about 2 ms for
    1000 requests and all batch sizes. Lagrangian prices of memory and slots bound every
    batch size (:mod:`solvers.prices`) and rule out most of them in ranges
    (:mod:`solvers._exact.sweep`); the few left are settled by a search over the requests
    that the prices leave undecided (:mod:`solvers._exact.search`). Its limits: knapsacks made
    to be hard (hundreds of requests of equal density whose weights can't fill the memory)
    may take seconds and up to 500 MB; and if weights are so large that a sum of them times
    the number of requests exceeds 2**61, batch sizes that bounds alone can't settle stay
    uncertified.

    Parameters
    ----------
    warm_start
        Begin with the batch size and the memory price of the previous call, for steps that
        follow each other. It changes the time, not the value.

    Notes
    -----
    ``info`` holds ``batch_sizes_examined`` (best prices computed), ``searched`` (searches),
    ``states`` (entries of the lists), ``deepened`` (rounds of deepening), ``priced`` (batch
    sizes bounded by known prices) and ``jumps`` (ranges bounded at once).

    An object is not safe to share between threads.
    """

    exact = True

    def __init__(self, warm_start: bool = True) -> None:
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
            search=True,
            gap=SLACK,
            warm_start=self._warm_start,
            time_limit_s=time_limit_s,
        )


def warm_up() -> None:
    """Compile what :class:`Exact` needs, or load it from the cache, before time matters."""
    solver = Exact()
    # One instance for each path through the code: rates, tables, any gains, exactly.
    for family in ("hard", "ties", "not_monotone", "exactly_negative"):
        solver.solve(make(family, 12, 0))
