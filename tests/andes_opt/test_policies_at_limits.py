"""Policies at the limits: objectives that say nothing, readers too fast or too patient, calm."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from stand_ins import Densest

from andes_opt.engine import EngineProfile
from andes_opt.latency import LatencyModel
from andes_opt.objective import AverageQoE, MaxMinQoE, PerfectRequests
from andes_opt.policy import FCFS, Andes, RollingHorizon, Thrift
from andes_opt.simulator import simulate
from andes_opt.workload import Poisson, Requests

if TYPE_CHECKING:
    from collections.abc import Callable

    from andes_opt.objective import Objective
    from andes_opt.snapshot import Policy, Snapshot

ENGINE = EngineProfile(
    name="opt_66b_4xa100",
    latency=LatencyModel(0.035, 3e-4, 4e-7, 1.2e-4),
    capacity_tokens=12_000,
    swap_s_per_token=2.95e-5,
)


def readers(requests: Requests, *, ttft_s: float = 1.0, tds: float = 4.8) -> Requests:
    """The same requests of other readers."""
    n = requests.num_requests
    return replace(requests, ttft_s=np.full(n, ttft_s), tds=np.full(n, tds))


@pytest.mark.parametrize(
    ("objective", "target"),
    [
        (MaxMinQoE(), {}),
        (PerfectRequests(), {"tds": 40.0}),
        (AverageQoE(), {"ttft_s": 600.0}),
        (AverageQoE(), {"tds": 1e12}),
    ],
    ids=["max_min", "faster than the engine", "patient", "as fast as possible"],
)
def test_an_objective_that_gains_nothing_does_not_stop_the_engine(
    objective: Objective, target: dict[str, float]
) -> None:
    """
    Where no request gains anything, the engine goes on in its own order.

    A regression test: nobody was served then, under a lasting overload for ever.
    """
    requests = readers(Poisson(rate=4.0, requests=80).generate(seed=2), **target)
    result = simulate(requests, ENGINE, Andes(Densest(), objective))
    assert np.isfinite(result.completion_s).all()
    fcfs = simulate(requests, ENGINE, FCFS())
    assert result.makespan_s < 2.0 * fcfs.makespan_s


@pytest.mark.parametrize("make", [lambda: Thrift(Densest()), lambda: RollingHorizon(slots=2)])
def test_fast_readers_do_not_shrink_the_batch(
    make: Callable[[], Policy], make_snapshot: Callable[..., Snapshot]
) -> None:
    """
    Room to grow is for what the engine can make, not for what a reader would take.

    A regression test: readers of 1000 tokens/s got room for 5000 tokens each.
    """
    served = []
    for tds in (30.0, 1e3, 1e12, 1e300):
        shot = make_snapshot(
            60, seed=1, need_tokens=np.full(60, 300), capacity_tokens=12_000, tds=np.full(60, tds)
        )
        decision = make().decide(shot)
        assert decision.action is not None
        served.append(int((decision.action > 0).sum()))
    assert min(served[1:]) >= served[0] > 10, served


@pytest.mark.parametrize("make", [lambda: Thrift(Densest()), lambda: RollingHorizon(slots=2)])
def test_lengths_are_learned_in_calm_times_too(make: Callable[[], Policy]) -> None:
    """
    Replies that are served without any pressure teach their true lengths.

    A regression test: without pressure the policy was not asked until a reply had ended, and
    took it for a token long.
    """
    n = 60
    requests = Requests(
        arrival_s=np.arange(n) * 60.0,
        prompt_tokens=np.full(n, 50),
        output_tokens=np.full(n, 300),
        ttft_s=np.ones(n),
        tds=np.full(n, 4.8),
    )
    policy = make()
    simulate(requests, ENGINE, policy)
    edges, share = policy._replies.support(np.empty(0, dtype=np.int64))  # type: ignore[attr-defined]  # noqa: SLF001
    mean = float((share * 0.5 * (edges[:-1] + edges[1:])).sum())
    assert mean == pytest.approx(300, rel=0.2)


def test_an_infinite_cap_is_refused() -> None:
    """No cap is None; infinity fails at once and not at the first pressure."""
    with pytest.raises(ValueError, match="preemption_cap = inf not understood"):
        Andes(Densest(), AverageQoE(), preemption_cap=float("inf"))


def test_the_makespan_ends_with_the_last_token() -> None:
    """Whoever is rejected afterwards does not prolong the run."""
    requests = Requests(
        arrival_s=np.array([0.0, 1000.0]),
        prompt_tokens=np.array([50, 50_000]),
        output_tokens=np.array([10, 10]),
        ttft_s=np.ones(2),
        tds=np.full(2, 4.8),
    )
    result = simulate(requests, ENGINE, FCFS())
    assert result.rejected.tolist() == [False, True]
    assert result.makespan_s == pytest.approx(float(result.completion_s[0]))
    assert result.makespan_s < 20.0


def test_all_solves_of_a_step_count(make_snapshot: Callable[..., Snapshot]) -> None:
    """Where compute binds thrift solves twice, and both are in its plan's times."""
    readers_of = {"need_tokens": np.full(60, 300), "capacity_tokens": 12_000}
    times = []
    for tds in (0.1, 25.0):
        plan = (
            Thrift(Densest(0.25, 1.0))
            .decide(make_snapshot(60, 1, tds=np.full(60, tds), **readers_of))
            .plan
        )
        assert plan is not None
        times.append((plan.build_s, plan.solve_s))
    assert times == [(0.25, 1.0), (0.5, 2.0)]


def test_a_budget_of_tokens_limits_the_batch() -> None:
    """Policies are told of no more places than an iteration has tokens."""
    engine = replace(ENGINE, token_budget=32)
    seen: list[Snapshot] = []
    simulate(
        Poisson(rate=4.0, requests=20).generate(seed=0),
        engine,
        FCFS(),
        capture=lambda shot, _: seen.append(shot),
    )
    assert {shot.max_batch for shot in seen} == {32}
