"""The work of a cell of ``exact_vs_greedy``: a run whose steps are given to a second solver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import OmegaConf

from andes_opt.formulation import step_instance
from andes_opt.plan import Status
from experiments.studies import measurements
from experiments.studies.measurements import Measurement

if TYPE_CHECKING:
    from collections.abc import Mapping

    from andes_opt.instance import Instance
    from andes_opt.plan import Plan
    from andes_opt.snapshot import Decision, Snapshot

#: What is measured of the steps of an exact run, beside ``docs/metrics.md``.
METRICS = {
    "steps": "scheduling steps that both solvers were given",
    "step_gap_percent": "greedy's gap to the optimum of a step in %, mean over steps",
    "step_gap_p95_percent": "95th percentile of that gap over steps",
    "step_equal_share": "share of steps that greedy solves to optimality",
    "step_requests": "requests of a step, mean over steps",
    "step_batch_bound_share": "share of steps whose optimum leaves out a request that would gain "
    "and fit, for the sake of the batch size",
}


def stepped(
    run: Mapping[str, Any], seed: int, other: Mapping[str, Any], every: int
) -> list[Measurement]:
    """
    Simulate with one solver, and give a sample of its steps to another one.

    Parameters
    ----------
    run, seed
        As for :func:`experiments.studies.measurements.served`; the policy's solver is exact.
    other
        Plain node of the other solver.
    every
        One step in so many is compared.

    Returns
    -------
    list[Measurement]
        The numbers of the run, and :data:`METRICS`.
    """
    objective = instantiate(OmegaConf.create(dict(run["policy"]["objective"])))
    solver = instantiate(OmegaConf.create(dict(other)))
    gaps: list[float] = []
    sizes: list[int] = []
    batch_bound: list[bool] = []
    solves = 0

    def compare(snapshot: Snapshot, decision: Decision) -> None:
        nonlocal solves
        plan = decision.plan
        if plan is None or plan.status is Status.NO_SOLUTION:
            return
        solves += 1
        if solves % every:
            return
        instance = step_instance(snapshot, objective, prune_batch=run["policy"]["prune_batch"])
        if plan.value > 0:
            gaps.append(100 * max(0.0, 1 - solver.solve(instance).value / plan.value))
            sizes.append(instance.num_requests)
            batch_bound.append(batch_binds(instance, plan))

    result = measurements.simulated(run, seed, capture=compare)
    numbers = measurements.numbers_of(result)
    numbers.append(Measurement("steps", "", len(gaps)))
    if gaps:
        numbers += [
            Measurement("step_gap_percent", "", float(np.mean(gaps))),
            Measurement("step_gap_p95_percent", "", float(np.percentile(gaps, 95))),
            Measurement("step_equal_share", "", float(np.mean(np.array(gaps) < 1e-7))),
            Measurement("step_requests", "", float(np.mean(sizes))),
            Measurement("step_batch_bound_share", "", float(np.mean(batch_bound))),
        ]
    return numbers


def batch_binds(instance: Instance, plan: Plan) -> bool:
    """Return whether a plan leaves out a request that would gain at its batch size, and fit."""
    room = instance.capacity - int(instance.weights[plan.serve].sum())
    gaining = ~plan.serve & (instance.gains_at(plan.batch_size) > 0)
    return bool((gaining & (instance.weights <= room)).any())
