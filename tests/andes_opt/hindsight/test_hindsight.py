"""The hindsight bound: no schedule beats it, whatever the prices, and it is not idle."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andes_opt import qoe
from andes_opt.engine import EngineProfile
from andes_opt.hindsight import bound_at_prices, dp, window_bound
from andes_opt.hindsight.exhaustive import Replay, optimum, tiny_problem
from andes_opt.latency import LatencyModel
from andes_opt.policy.fcfs import FCFS
from andes_opt.policy.round_robin import RoundRobin
from andes_opt.simulator import simulate
from andes_opt.snapshot import Action, Decision, Snapshot
from andes_opt.workload import Requests

LATENCY = LatencyModel(
    base_s=0.02, per_request_s=1e-3, per_context_token_s=1e-6, per_prefill_token_s=1e-4
)


def make_engine(**changes: object) -> EngineProfile:
    options: dict[str, object] = {
        "name": "tiny",
        "latency": LATENCY,
        "capacity_tokens": 256,
        "block_tokens": 16,
        "max_batch": 64,
        "token_budget": 512,
        "preemption": "swap",
        "swap_s_per_token": 1e-4,
    }
    return EngineProfile(**(options | changes))  # type: ignore[arg-type]


def make_requests(
    n: int, seed: int, rate: float = 20.0, most_prompt: int = 100, most_output: int = 40
) -> Requests:
    rng = np.random.default_rng(seed)
    return Requests(
        arrival_s=np.cumsum(rng.exponential(1 / rate, n)),
        prompt_tokens=rng.integers(1, most_prompt + 1, n),
        output_tokens=rng.integers(1, most_output + 1, n),
        ttft_s=rng.choice([0.0, 0.1, 0.5], n),
        tds=rng.uniform(5.0, 40.0, n),
    )


class Gambler:
    """Serves, holds and evicts at random, at most ``max_batch`` requests at a time."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def decide(self, snapshot: Snapshot) -> Decision:
        n = snapshot.num_requests
        action = self._rng.choice(np.array([0, 1, 1, 1, 2], dtype=np.int8), n)
        action[np.flatnonzero(action)[snapshot.max_batch :]] = Action.WAIT
        order = self._rng.permutation(n)
        return Decision(action=action, order=order, replan_after=int(self._rng.integers(1, 9)))

    def finished(self, request_id: int) -> None:
        pass


def policy_of(name: str, seed: int) -> FCFS | RoundRobin | Gambler:
    return {"fcfs": FCFS(), "turns": RoundRobin(5), "gambler": Gambler(seed)}[name]


WORLDS = {
    "seed": st.integers(0, 10_000),
    "n": st.integers(1, 25),
    "rate": st.sampled_from([2.0, 20.0, 200.0]),
    "policy": st.sampled_from(["fcfs", "turns", "gambler"]),
    "preemption": st.sampled_from(["swap", "recompute"]),
    "recompute_hit_share": st.sampled_from([0.0, 0.5, 1.0]),
    "capacity_tokens": st.sampled_from([130, 256, 4096]),
    "block_tokens": st.sampled_from([1, 16]),
    "max_batch": st.sampled_from([1, 3, 64]),
    "token_budget": st.sampled_from([8, 64, 2048]),
    "reserve_full_context": st.booleans(),
    "watermark": st.sampled_from([0.0, 0.2]),
    "fast_prefill": st.booleans(),
    "mixed": st.sampled_from([(0.0, 0.0), (-0.019, -1e-3), (0.01, 1e-3)]),
}


@settings(max_examples=60, deadline=None)
@given(**WORLDS)
def test_no_policy_beats_it(
    seed: int,
    n: int,
    rate: float,
    policy: str,
    fast_prefill: bool,
    mixed: tuple[float, float],
    **engine_options: object,
) -> None:
    """First come, in turns or at random: no run's mean window QoE exceeds the bound."""
    latency = replace(LATENCY, mixed_base_s=mixed[0], mixed_per_request_s=mixed[1])
    latency = replace(latency, per_prefill_token_s=1e-6) if fast_prefill else latency
    engine = make_engine(latency=latency, **engine_options)
    requests = make_requests(n, seed, rate)
    bound = window_bound(requests, engine, slot_s=0.25, cells=100)
    result = simulate(requests, engine, policy_of(policy, seed))

    assert (bound.rejected == result.rejected).all()
    assert result.qoe_window.mean() <= bound.mean_window
    assert bound.mean_window <= 1 - result.rejected.mean() + 1e-8


@settings(max_examples=60, deadline=None)
@given(
    **WORLDS,
    level=st.sampled_from([0.0, 1e-3, 0.1, 1.0, 10.0]),
    slot_s=st.sampled_from([0.05, 0.3, 2.0]),
    cells=st.sampled_from([1, 7, 50]),
)
def test_any_prices_give_a_bound(
    seed: int,
    n: int,
    rate: float,
    policy: str,
    fast_prefill: bool,
    mixed: tuple[float, float],
    level: float,
    slot_s: float,
    cells: int,
    **engine_options: object,
) -> None:
    """
    Weak duality: random prices, random weights and any grid bound every run, also request by
    request, with nothing taken on trust from a solver.
    """
    latency = replace(LATENCY, mixed_base_s=mixed[0], mixed_per_request_s=mixed[1])
    latency = replace(latency, per_prefill_token_s=1e-6) if fast_prefill else latency
    engine = make_engine(latency=latency, **engine_options)
    requests = make_requests(n, seed, rate)
    rng = np.random.default_rng(seed)
    prices = level * rng.exponential(size=rng.integers(1, 40))
    shares = rng.dirichlet([0.3, 0.3, 0.3])
    bound, _ = bound_at_prices(requests, engine, prices, slot_s=slot_s, shares=shares, cells=cells)
    result = simulate(requests, engine, policy_of(policy, seed))
    assert result.qoe_window.mean() <= bound


def test_prices_prove_the_bound() -> None:
    """The bound is what its prices prove, recomputed, and the sum of what it reports."""
    requests, engine = make_requests(60, 1, rate=40.0), make_engine()
    bound = window_bound(requests, engine, slot_s=0.5)
    mean, profit = bound_at_prices(
        requests,
        engine,
        bound.prices,
        slot_s=bound.slot_s,
        shares=bound.shares,
        cells=bound.cells,
    )
    assert mean == bound.mean_window < 0.97
    assert (profit == bound.profit).all()
    assert profit.sum() + bound.prices.sum() * 0.5 == pytest.approx(60 * mean, abs=1e-6)
    assert bound.shares.sum() == pytest.approx(1.0)


def test_good_prices_matter() -> None:
    """Under overload the prices found are better than none, and close to what HiGHS says."""
    requests, engine = make_requests(80, 2, rate=60.0), make_engine()
    bound = window_bound(requests, engine, slot_s=0.25)
    free, _ = bound_at_prices(requests, engine, [0.0], slot_s=0.25)
    assert bound.mean_window < free - 0.1
    assert bound.mean_window == pytest.approx(bound.lp_value, abs=0.05)


def test_each_limit_tightens() -> None:
    """Memory, batch size and token budget each lower the bound when they are scarce."""
    requests = make_requests(60, 3, rate=60.0)
    ample = {"capacity_tokens": 100_000, "max_batch": 1000, "token_budget": 10_000}
    free = window_bound(requests, make_engine(**ample), slot_s=0.5).mean_window
    scarce = {"capacity_tokens": 192, "max_batch": 3, "token_budget": 24}
    for index, (name, value) in enumerate(scarce.items()):
        bound = window_bound(requests, make_engine(**(ample | {name: value})), slot_s=0.5)
        assert bound.mean_window < free - 0.05, name
        assert bound.shares.argmax() == index, name


def test_light_load_is_served_in_full() -> None:
    """With room for everybody the bound is 1, and first come first served is close to it."""
    requests = make_requests(10, 4, rate=0.5)
    requests = replace(requests, ttft_s=np.full(10, 0.5))
    engine = make_engine(capacity_tokens=4096)
    bound = window_bound(requests, engine, slot_s=1.0)
    assert bound.mean_window == pytest.approx(1.0, abs=1e-8)
    assert simulate(requests, engine, FCFS()).qoe_window.mean() > 0.97


def test_rejected_requests_count_zero() -> None:
    """A request that can never fit adds nothing to the sum but counts in the mean."""
    requests = Requests(
        arrival_s=np.array([0.0, 0.0]),
        prompt_tokens=np.array([10, 500]),
        output_tokens=np.array([5, 5]),
        ttft_s=np.array([1.0, 1.0]),
        tds=np.array([5.0, 5.0]),
    )
    bound = window_bound(requests, make_engine(), slot_s=1.0)
    assert bound.rejected.tolist() == [False, True]
    assert bound.mean_window == pytest.approx(0.5, abs=1e-8)
    nothing = window_bound(requests, make_engine(max_context_tokens=5), slot_s=1.0)
    assert nothing.mean_window == 0.0


def test_time_limit_leaves_a_bound() -> None:
    """Out of time, the bound is loose but still a bound."""
    requests, engine = make_requests(40, 5), make_engine()
    hasty = window_bound(requests, engine, slot_s=0.5, time_limit_s=1e-6)
    assert simulate(requests, engine, FCFS()).qoe_window.mean() <= hasty.mean_window <= 1


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"slot_s": 0.0}, "slot_s = 0.0 not understood"),
        ({"cells": 0}, "cells = 0 not understood"),
        ({"time_limit_s": -1.0}, "time_limit_s = -1.0"),
    ],
)
def test_bad_options(options: dict[str, float], complaint: str) -> None:
    """Options out of range are refused in one sentence."""
    with pytest.raises(ValueError, match=complaint):
        window_bound(make_requests(2, 0), make_engine(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("prices", [[-1.0], [math.nan], [[1.0]]])
def test_bad_prices(prices: list[float]) -> None:
    """Prices that are no dual vector are refused: they would prove nothing."""
    with pytest.raises(ValueError, match="prices must be"):
        bound_at_prices(make_requests(2, 0), make_engine(), prices, slot_s=1.0)


def test_no_requests() -> None:
    """The mean over nobody is refused."""
    with pytest.raises(ValueError, match="no requests"):
        window_bound(make_requests(0, 0), make_engine())


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), cells=st.sampled_from([1, 3, 5]))
def test_inner_problem_is_solved(seed: int, cells: int) -> None:
    """The dynamic program equals enumeration of all lateness sequences on its grid."""
    rng = np.random.default_rng(seed)
    n, tds, ttft_s, arrival_s = int(rng.integers(1, 5)), 4.0, 0.5, float(rng.uniform(0, 3))
    work_s = rng.uniform(0.01, 0.3, n)
    earliest_s = np.cumsum(rng.uniform(0.0, 0.5, n))
    prices, slot_s = rng.exponential(2.0, 12), 0.3

    (found,) = dp.most_profits(
        np.array([arrival_s]),
        np.array([ttft_s]),
        np.array([tds]),
        np.array([0, n]),
        work_s,
        earliest_s,
        prices,
        slot_s,
        cells,
    )

    width_s, horizon_s = n / tds / cells, ttft_s + n / tds
    best = 0.0
    for served in range(1, n + 1):
        for lateness in itertools.combinations_with_replacement(range(cells + 1), served):
            profit = 0.0
            for j, cell in enumerate(lateness):
                latest_s = ttft_s + j / tds + cell * width_s
                if latest_s < earliest_s[j]:
                    profit = -math.inf
                    break
                soonest_s = max(ttft_s + j / tds + max(0, cell - 1) * width_s, earliest_s[j])
                first, last = int(arrival_s / slot_s), int((arrival_s + latest_s) / slot_s)
                price = prices[first : last + 1].min() if last < prices.size else 0.0
                value = qoe.token_window_area(horizon_s - soonest_s, tds) * 2 * tds / n**2
                profit += value - price * work_s[j]
            best = max(best, profit)
    assert found == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("preemption", ["swap", "recompute"])
def test_never_below_the_exhaustive_optimum(preemption: Literal["swap", "recompute"]) -> None:
    """
    On tiny instances the bound lies above the best of all schedules, which the simulator
    confirms by carrying it out, and which no random schedule beats. With one or two requests in
    memory at a time, what the relaxation leaves out is at its largest.
    """
    gaps = []
    for seed in range(10):
        requests, engine = tiny_problem(seed, preemption)
        best = optimum(requests, engine)
        run = simulate(requests, engine, Replay(best.actions))
        assert run.qoe_window.mean() == pytest.approx(best.mean_window, abs=1e-9)
        for other in range(5):
            run = simulate(requests, engine, Gambler(other))
            assert run.qoe_window.mean() <= best.mean_window + 1e-9

        bound = window_bound(requests, engine, slot_s=0.02, cells=400).mean_window
        assert bound >= best.mean_window
        gaps.append(bound - best.mean_window)
    assert np.mean(gaps) < 0.25


@pytest.mark.parametrize(
    ("requests", "changes", "complaint"),
    [
        (make_requests(0, 0), {}, "no requests"),
        (make_requests(3, 0), {"capacity_tokens": 16}, "can never fit"),
        (make_requests(3, 0), {"token_budget": 64}, "all of them to fit an iteration"),
        (
            make_requests(3, 0),
            {"preemption": "recompute", "recompute_hit_share": 0.5},
            "knows no prefix cache",
        ),
        (make_requests(3, 0), {"watermark": 0.5}, "fills the KV cache"),
    ],
)
def test_the_search_refuses_what_it_has_no_rules_for(
    requests: Requests, changes: dict[str, object], complaint: str
) -> None:
    """A search under other rules than the engine's would prove nothing."""
    with pytest.raises(ValueError, match=complaint):
        optimum(requests, make_engine(**changes))


def test_what_the_prefix_cache_keeps_is_not_charged() -> None:
    """
    A token that comes out of a short prefill costs no more than that prefill (a bug once: the
    bound charged the whole context, and lay below what such an engine can do).
    """
    latency = LatencyModel(
        base_s=1e-6, per_request_s=0.1, per_context_token_s=0.0, per_prefill_token_s=1e-3
    )
    engine = make_engine(latency=latency, preemption="recompute", recompute_hit_share=0.9)
    requests = Requests(
        arrival_s=np.array([0.0]),
        prompt_tokens=np.array([100]),
        output_tokens=np.array([30]),
        ttft_s=np.array([0.1]),
        tds=np.array([25.0]),
    )

    class Restless:
        """Evicts its only request after each token: restoring it is cheaper than decoding."""

        def decide(self, snapshot: Snapshot) -> Decision:
            first = snapshot.kv_tokens[0] == 0
            action = np.array([Action.SERVE if first else Action.WAIT], dtype=np.int8)
            return Decision(action=action, order=np.arange(1), replan_after=1)

        def finished(self, request_id: int) -> None:
            pass

    result = simulate(requests, engine, Restless())
    stay = simulate(requests, engine, FCFS())
    assert result.qoe_window[0] > stay.qoe_window[0] + 0.2
    for price in (0.0, 0.1, 1.0):
        bound, _ = bound_at_prices(requests, engine, [price] * 40, slot_s=0.1)
        assert result.qoe_window[0] <= bound
