"""The work of the cells of ``andes-opt study hindsight``: bounds, and how tight."""

from __future__ import annotations

import time
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from hydra.utils import instantiate
from omegaconf import OmegaConf

from andes_opt.hindsight import bound_at_prices, window_bound
from andes_opt.hindsight.exhaustive import optimum, tiny_problem
from experiments.studies.measurements import Measurement

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Literal

    from andes_opt.hindsight import HindsightBound

#: What is measured of a bound, beside ``qoe_window_mean``: the bound itself.
METRICS = {
    "bound_cpu_s": "CPU seconds of the whole bound: linear program, line search, evaluation",
    "bound_lp_qoe_window": "mean window QoE by HiGHS's optimum of the fluid program; not a bound",
    "priced_share": "share of the time slots in which engine time has a price above 0",
    "exhaustive_qoe_window": "mean window QoE of the best of all schedules of a tiny instance",
    "exhaustive_bound_qoe_window": "the bound on the same instance",
    "exhaustive_gap_points": "that bound less the best schedule, in points (0.01)",
    "exhaustive_gap_max_points": "the largest such gap of all instances",
}

#: Seconds of a price slot on tiny instances, whose iterations take hundredths of a second.
_TINY_SLOT_S = 0.02


class TinyInstance(NamedTuple):
    """What was measured of a tiny instance; of all of them together if the seed is None."""

    seed: int | None
    measurements: list[Measurement]


def bounded(run: Mapping[str, Any], seed: int, slot_s: float, cells: int) -> list[Measurement]:
    """
    Bound the mean ``window`` QoE of every scheduler.

    Parameters
    ----------
    run
        Plain nodes ``workload`` and ``engine``.
    seed
        Of the workload.
    slot_s, cells
        As for :func:`andes_opt.hindsight.window_bound`.

    Returns
    -------
    list[Measurement]
        The bound and :data:`METRICS`.

    Raises
    ------
    RuntimeError
        If the bound is not what its own prices prove.
    """
    _warm_up()
    config = OmegaConf.create(dict(run))
    requests = instantiate(config.workload).generate(seed)
    engine = instantiate(config.engine)
    started = time.process_time()
    found = window_bound(requests, engine, slot_s=slot_s, cells=cells)
    seconds = time.process_time() - started
    again, _ = bound_at_prices(
        requests, engine, found.prices, slot_s=slot_s, shares=found.shares, cells=cells
    )
    if again != found.mean_window:
        raise RuntimeError(f"prices prove {again}, not the bound {found.mean_window}.")
    return [
        Measurement("qoe_window_mean", "", found.mean_window),
        Measurement("bound_cpu_s", "", seconds),
        Measurement("bound_lp_qoe_window", "", found.lp_value),
        Measurement("priced_share", "", _priced_share(found)),
    ]


def exhausted(
    preemption: Literal["swap", "recompute"], instances: int, cells: int
) -> list[TinyInstance]:
    """
    Compare bounds of tiny instances with the best of all their schedules.

    Parameters
    ----------
    preemption
        How the engine preempts.
    instances
        How many, >= 1.
    cells
        As for :func:`andes_opt.hindsight.window_bound`.

    Returns
    -------
    list[TinyInstance]
        Each of them, and the largest gap.
    """
    found: list[TinyInstance] = []
    gaps = []
    for seed in range(instances):
        requests, engine = tiny_problem(seed, preemption)
        best = optimum(requests, engine).mean_window
        bound = window_bound(requests, engine, slot_s=_TINY_SLOT_S, cells=cells).mean_window
        gaps.append(100 * (bound - best))
        numbers = [
            Measurement("exhaustive_qoe_window", "", best),
            Measurement("exhaustive_bound_qoe_window", "", bound),
            Measurement("exhaustive_gap_points", "", gaps[-1]),
        ]
        found.append(TinyInstance(seed, numbers))
    largest = Measurement("exhaustive_gap_max_points", "", max(gaps))
    return [*found, TinyInstance(None, [largest])]


def _priced_share(found: HindsightBound) -> float:
    return float((found.prices > 0).mean()) if found.prices.size else 0.0


@cache
def _warm_up() -> None:
    """Let a process compile the dynamic program, once, before it is timed."""
    window_bound(*tiny_problem(0, "swap"), slot_s=_TINY_SLOT_S, cells=10)
