"""Andes: serve the set of requests that gains the most QoE (arXiv 2404.16283)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from andes_opt import checks
from andes_opt.formulation import step_instance
from andes_opt.plan import Status
from andes_opt.policy.packing import limit_evictions
from andes_opt.policy.prefill_share import PrefillShare
from andes_opt.snapshot import Action, Decision, State

if TYPE_CHECKING:
    from andes_opt.objective import Objective
    from andes_opt.snapshot import Snapshot
    from andes_opt.solver import Solver


class Andes:
    """
    The paper's policy with any solver and any objective.

    At each step the requests to serve are the solution of a knapsack (docs/model.md; the paper,
    section 4.1). The paper's four optimisations (section 4.2) are options: selective triggering,
    pruning of batch sizes, the solver (the paper's is ``greedy``), and the preemption cap.

    Parameters
    ----------
    solver
        Solves each step.
    objective
        What a step maximises.
    selective
        Solve only under pressure: the KV tokens of all requests exceed ``kv_pressure`` of
        the capacity, or an iteration with all of them is slower than the strictest reader's
        1/tds. Otherwise all requests are served, first come, first served.
    kv_pressure
        Share of the KV cache, in (0, 1].
    preemption_cap
        Most preemptions per request seen so far, on average (the paper's P = 1); None for
        no cap.
    prune_batch
        Leave out batch sizes below the largest that is fast enough for the strictest reader.
    replan_every
        Iterations between solves under pressure, >= 1; arrivals, finishes and KV shortages
        solve sooner.
    prefill_share
        Whether token rates are lessened by the share of time that goes into prompts, measured from
        snapshots (:mod:`andes_opt.policy.prefill_share`).
    time_limit_s
        Wall-clock limit of each solve; None for none.

    Raises
    ------
    ValueError
        If an option is out of range.
    """

    def __init__(
        self,
        solver: Solver,
        objective: Objective,
        *,
        selective: bool = True,
        kv_pressure: float = 0.9,
        preemption_cap: float | None = 1.0,
        prune_batch: bool = True,
        replan_every: int = 1,
        prefill_share: bool = False,
        time_limit_s: float | None = None,
    ) -> None:
        checks.share("kv_pressure", kv_pressure)
        if preemption_cap is not None:
            checks.non_negative("preemption_cap", preemption_cap)
        checks.whole("replan_every", replan_every, 1)
        if time_limit_s is not None:
            checks.positive("time_limit_s", time_limit_s)
        self._solver = solver
        self._objective = objective
        self._selective = selective
        self._kv_pressure = kv_pressure
        self._preemption_cap = preemption_cap
        self._prune_batch = prune_batch
        self._replan_every = replan_every
        self._prefill_share = PrefillShare() if prefill_share else None
        self._time_limit_s = time_limit_s

    def decide(self, snapshot: Snapshot) -> Decision:
        """Pass through without pressure; else serve the solver's plan, within the cap."""
        if self._prefill_share is not None:
            snapshot = self._prefill_share.slowed(snapshot)
        if self._selective and (calm := calm_iterations(snapshot, self._kv_pressure)) > 0:
            return Decision(replan_after=calm)

        instance = step_instance(snapshot, self._objective, prune_batch=self._prune_batch)
        plan = self._solver.solve(instance, time_limit_s=self._time_limit_s)
        # If no request gains anything (all are too late, have text to read, or read faster than
        # the engine is), the objective is silent; the engine goes on first come, first served.
        if plan.status is Status.NO_SOLUTION or not plan.serve.any():
            return Decision(plan=plan, replan_after=1)

        density = instance.gains_at(plan.batch_size) / instance.weights
        urgency = np.argsort(-density, kind="stable")
        serve = plan.serve
        if self._preemption_cap is not None:
            budget = self._preemption_cap * snapshot.requests_seen - snapshot.preemptions_seen
            serve = limit_evictions(
                serve,
                (snapshot.state == State.RUNNING) | (snapshot.state == State.HELD),
                urgency,
                instance.weights,
                instance.capacity,
                snapshot.max_batch,
                max(0, math.floor(budget)),
            )
        return Decision(
            action=np.where(serve, Action.SERVE, Action.WAIT).astype(np.int8),
            order=urgency,
            plan=plan,
            replan_after=self._replan_every,
        )

    def finished(self, request_id: int) -> None:
        """Nothing is kept."""


def calm_iterations(snapshot: Snapshot, kv_pressure: float) -> int:
    """
    Iterations until the paper's selective triggering can see pressure, at the earliest.

    Until something arrives, each iteration adds at most one token to each request. So the
    moment of pressure has a lower bound and need not be checked in every iteration.

    Parameters
    ----------
    snapshot
        The engine now.
    kv_pressure
        Share of the KV cache above which there is pressure.

    Returns
    -------
    int
        0 if there is pressure now.
    """
    n = snapshot.num_requests
    if n == 0:
        return 1
    need_tokens = int(snapshot.need_tokens.sum())
    headroom_tokens = kv_pressure * snapshot.capacity_tokens - need_tokens
    latency = snapshot.latency
    slack_s = 1.0 / float(snapshot.tds.max()) - latency.iteration_s(n, need_tokens)
    if headroom_tokens < 0 or slack_s < 0 or n > snapshot.max_batch:
        return 0

    # Whole blocks: k more tokens fill at most k + block - 1 more tokens of blocks.
    growth_tokens = headroom_tokens / n
    if latency.per_context_token_s > 0:
        growth_tokens = min(growth_tokens, slack_s / (latency.per_context_token_s * n))
    return max(1, int(growth_tokens) - snapshot.block_tokens + 1)
