"""The share of time that goes into prompts, as snapshots show it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from stand_ins import Densest

from andes_opt import metrics
from andes_opt.engine import EngineProfile
from andes_opt.latency import LatencyModel
from andes_opt.objective import AverageQoE
from andes_opt.policy import Andes, RollingHorizon, Thrift
from andes_opt.policy.prefill_share import PrefillShare
from andes_opt.simulator import simulate
from andes_opt.snapshot import Decision, State
from andes_opt.workload import Requests
from experiments.configuration import build, load

if TYPE_CHECKING:
    from collections.abc import Callable

    from andes_opt.snapshot import Policy, Snapshot

LATENCY = LatencyModel(0.04, 2e-4, 4e-7, 2.5e-4)
ENGINE = EngineProfile("batch_bound", LATENCY, 10**6, max_batch=40, swap_s_per_token=4e-6)


def chat(n: int, rate: float, seed: int = 0) -> Requests:
    """Long prompts and short replies, as in chats with a history."""
    rng = np.random.default_rng(seed)
    return Requests(
        np.cumsum(rng.exponential(1 / rate, n)),
        rng.integers(200, 2000, n),
        rng.integers(50, 400, n),
        np.ones(n),
        np.full(n, 4.8),
    )


class Measured:
    """Pass-through that measures the share, asked every so many iterations."""

    def __init__(self, every: int) -> None:
        self.prefill_share = PrefillShare(memory_s=1e9)
        self._every = every

    def decide(self, snapshot: Snapshot) -> Decision:
        self.prefill_share.slowed(snapshot)
        return Decision(replan_after=self._every)

    def finished(self, request_id: int) -> None:
        """Nothing is kept."""


@pytest.mark.parametrize("every", [1, 7])
@pytest.mark.parametrize("preemption", ["swap", "recompute"])
@pytest.mark.parametrize("token_budget", [256, 4096])
def test_the_share_is_what_the_engine_spent(every: int, preemption: str, token_budget: int) -> None:
    """Over a whole run it is the time of prompts over that of all iterations, within a tenth."""
    engine = replace(
        ENGINE, capacity_tokens=20_000, preemption=preemption, token_budget=token_budget
    )
    policy = Measured(every)
    result = simulate(chat(150, 3.0), engine, policy, record_timeline=True)
    assert result.timeline is not None
    prompts_s = LATENCY.per_prefill_token_s * result.timeline[:, 2].sum()
    share = prompts_s / (result.makespan_s - float(result.arrival_s[0]))
    assert share > 0.2
    assert policy.prefill_share.share == pytest.approx(share, rel=0.1)


def test_decoding_gets_the_rest_of_the_time(make_snapshot: Callable[..., Snapshot]) -> None:
    """
    By hand: 0.5 s of prompts in a second leave half of the time, and iterations twice as long.

    What still waits does not count, though less is believed to be left of it: the latency model was
    learned anew.
    """
    states = np.array([State.RUNNING, State.WAITING, State.WAITING], dtype=np.int8)
    before = make_snapshot(
        3, time_s=10.0, state=states, restore_s=np.array([0.2, 0.3, 0.9]), latency=LATENCY
    )
    states = np.array([State.RUNNING, State.RUNNING, State.WAITING], dtype=np.int8)
    after = make_snapshot(
        3, time_s=11.0, state=states, restore_s=np.array([0.0, 0.0, 0.1]), latency=LATENCY
    )
    measured = PrefillShare()
    assert measured.slowed(before) is before
    seen = measured.slowed(after)
    assert measured.share == pytest.approx(0.5)
    assert seen.latency.iteration_s(10, 5000) == pytest.approx(2 * LATENCY.iteration_s(10, 5000))
    assert seen.latency.per_prefill_token_s == LATENCY.per_prefill_token_s
    # Two seconds without prompts, with a memory of ten.
    later = make_snapshot(3, time_s=13.0, state=states, restore_s=np.array([0, 0, 0.1]))
    measured.slowed(later)
    kept = np.exp(-0.2)
    assert measured.share == pytest.approx(0.5 * kept / (kept + 2.0))


def test_who_gives_up_in_the_queue_was_not_computed(make_snapshot: Callable[..., Snapshot]) -> None:
    """Requests that leave while they wait are no prompts computed; those that ran are."""
    measured = PrefillShare()
    states = np.array([State.WAITING, State.RUNNING, State.RUNNING], dtype=np.int8)
    measured.slowed(
        make_snapshot(3, time_s=1.0, state=states, restore_s=np.array([5.0, 0.25, 0.0]))
    )
    left = make_snapshot(
        1,
        time_s=2.0,
        request_id=np.array([2]),
        state=np.array([State.RUNNING], dtype=np.int8),
        restore_s=np.zeros(1),
    )
    measured.slowed(left)
    assert measured.share == pytest.approx(0.25)


MAKERS: dict[str, Callable[[bool], Policy]] = {
    "andes": lambda share: Andes(Densest(), AverageQoE(), prefill_share=share),
    "rolling_horizon": lambda share: RollingHorizon(slots=2, prefill_share=share),
    "thrift": lambda share: Thrift(Densest(), prefill_share=share),
}


def test_policies_that_know_the_share_serve_more_readers_in_time() -> None:
    """
    Llama-2-70B under chat prompts, of which it has half of its time to compute.

    There the batch that latency(B) finds fast enough is not, and everybody reads too slowly.
    """
    options = ["engine=llama2_70b_4xa100", "lengths=azure", "solver=exact"]
    config = load("simulate", [*options, "workload.rate=2", "workload.requests=800"])
    requests = build(config, "workload").generate(seed=1)
    for name in ("andes", "thrift"):
        unaware, aware = (
            metrics.summarise(simulate(requests, build(config, "engine"), build(policy, "policy")))
            for policy in (
                load("simulate", [*options, f"policy={name}", f"policy.prefill_share={share}"])
                for share in ("false", "true")
            )
        )
        assert aware["qoe_window_mean"] > unaware["qoe_window_mean"] + 0.1
        assert aware["qoe_area_mean"] > unaware["qoe_area_mean"] + 0.03


@pytest.mark.parametrize("name", MAKERS)
def test_without_prompts_nothing_changes(name: str, make_snapshot: Callable[..., Snapshot]) -> None:
    """As long as no prompt has been computed, decisions are those without the option."""
    unaware, aware = MAKERS[name](False), MAKERS[name](True)
    for seed in range(3):
        shot = make_snapshot(30, seed, time_s=100.0 + seed, restore_s=np.zeros(30))
        one, two = unaware.decide(shot), aware.decide(shot)
        assert one.action is not None and two.action is not None
        np.testing.assert_array_equal(one.action, two.action)


def test_refuses_no_memory() -> None:
    """A memory of no time is one clear sentence."""
    with pytest.raises(ValueError, match=r"memory_s = 0\.0"):
        PrefillShare(0.0)
