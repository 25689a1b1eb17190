"""Served and held requests have a place in the batch each, whatever the policy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andes_opt.engine import EngineProfile
from andes_opt.latency import LatencyModel
from andes_opt.policy import Paced
from andes_opt.simulator import simulate
from andes_opt.snapshot import Action, Decision, State, check_places
from andes_opt.workload import Requests
from experiments.configuration import CONF_DIR, build, load

if TYPE_CHECKING:
    from collections.abc import Callable

    from andes_opt.snapshot import Policy, Snapshot

POLICIES = sorted(path.stem for path in (CONF_DIR / "policy").glob("*.yaml"))


def policy_of(name: str, pause_s: float | None = None) -> Policy:
    """A policy as its file in conf/policy has it, asked with pauses or whenever it is due."""
    policy: Policy = build(load("simulate", [f"policy={name}"]), "policy")
    return policy if pause_s is None else Paced(policy, pause_s)


def test_every_policy_is_tried() -> None:
    """The files are found."""
    assert {"andes", "andes_released", "fcfs", "rolling_horizon", "thrift"} <= set(POLICIES)


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(0, 25),
    places=st.sampled_from([1, 4, 8]),
    roomy=st.booleans(),
    paced=st.booleans(),
    capped=st.booleans(),
)
def test_no_decision_needs_more_places_than_there_are(
    name: str,
    seed: int,
    n: int,
    places: int,
    roomy: bool,
    paced: bool,
    capped: bool,
    make_snapshot: Callable[..., Snapshot],
) -> None:
    """
    serve + hold <= max_batch on any snapshots, with KV for all or for few.

    Some have more residents than places: in vLLM, requests that the policy does not see may take
    places away.
    """
    policy = policy_of(name, 5.0 if paced else None)
    rng = np.random.default_rng(seed)
    for k in range(4):
        fields: dict[str, object] = {"capacity_tokens": 10**6} if roomy else {}
        shot = make_snapshot(
            n,
            seed + k,
            time_s=100.0 + k,
            max_batch=places,
            preemptions_seen=10**6 if capped else 0,
            oracle_output_tokens=rng.integers(300, 900, n),
            **fields,
        )
        decision = policy.decide(shot)
        if decision.action is not None:
            check_places(decision.action, places)


@pytest.mark.parametrize("paced", [False, True])
@pytest.mark.parametrize("places", [1, 4, 8])
@pytest.mark.parametrize("name", POLICIES)
def test_plans_can_be_played(name: str, places: int, paced: bool) -> None:
    """
    Where places bind and KV is roomy, whom a policy serves is served, and everybody finishes.

    The readers are as fast as the engine, so that compute binds, too, and requests are held.
    """
    engine = EngineProfile(
        "few_places",
        LatencyModel(0.05, 0.02, 0.0, 1e-4),
        capacity_tokens=10**5,
        max_batch=places,
        swap_s_per_token=1e-4,
    )
    n = 16
    rng = np.random.default_rng(places)
    requests = Requests(
        arrival_s=np.sort(rng.uniform(0.0, 5.0, n)),
        prompt_tokens=rng.integers(10, 200, n),
        output_tokens=rng.integers(10, 60, n),
        ttft_s=np.ones(n),
        tds=rng.uniform(3.0, 9.0, n),
    )
    shots: list[tuple[Snapshot, Decision]] = []
    result = simulate(
        requests,
        engine,
        policy_of(name, 0.4 if paced else None),
        oracle=True,
        capture=lambda shot, decision: shots.append((shot, decision)),
        record_timeline=True,
    )
    assert np.isfinite(result.completion_s).all()
    assert result.timeline is not None
    served = [
        (decision.action == Action.SERVE).any()
        for _, decision in shots
        if decision.action is not None
    ]
    assert all(served)
    # No step goes by in which somebody waits and nobody computes.
    assert (result.timeline[:, 1] + result.timeline[:, 2] > 0).all()
    assert result.makespan_s - result.busy_s < 5.0


class Watched:
    """A policy that is asked in every iteration, and looks whether its last decision was played."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._served: set[int] = set()
        self.plans = 0
        self.unplayed = 0

    def decide(self, snapshot: Snapshot) -> Decision:
        running = snapshot.request_id[snapshot.state == State.RUNNING].tolist()
        here = self._served & set(snapshot.request_id.tolist())
        self.unplayed += len(here - set(running))
        decision = self._policy.decide(snapshot)
        self._served = set()
        if decision.action is not None:
            self.plans += 1
            served = decision.action == Action.SERVE
            if snapshot.need_tokens[decision.action > 0].sum() <= snapshot.capacity_tokens:
                self._served = set(snapshot.request_id[served].tolist())
            else:
                # Andes' preemption cap: residents stay though they have grown; nobody comes in.
                assert (snapshot.kv_tokens[served] > 0).all()
        return Decision(decision.action, decision.order, decision.plan)

    def finished(self, request_id: int) -> None:
        self._policy.finished(request_id)


@pytest.mark.parametrize("watermark", [0.0, 0.2])
@pytest.mark.parametrize("preemption", ["swap", "recompute"])
@pytest.mark.parametrize("name", [name for name in POLICIES if name != "fcfs"])
def test_whom_a_plan_serves_the_engine_lets_in(
    name: str, preemption: str, watermark: float
) -> None:
    """
    Where KV is scarce: what the snapshot says fits, the engine admits in the same iteration.

    Its rule is vLLM's, the whole context and a watermark.
    """
    engine = EngineProfile(
        "little_memory",
        LatencyModel(0.05, 2e-3, 0.0, 1e-4),
        capacity_tokens=2000,
        token_budget=10**5,
        preemption=preemption,
        swap_s_per_token=1e-4,
        recompute_hit_share=0.5,
        watermark=watermark,
    )
    n = 30
    rng = np.random.default_rng(8)
    requests = Requests(
        arrival_s=np.sort(rng.uniform(0.0, 10.0, n)),
        prompt_tokens=rng.integers(10, 500, n),
        output_tokens=rng.integers(10, 120, n),
        ttft_s=np.ones(n),
        tds=rng.uniform(3.0, 9.0, n),
    )
    policy = Watched(policy_of(name))
    result = simulate(requests, engine, policy, oracle=True)
    assert np.isfinite(result.completion_s).all()
    assert policy.plans > 20
    assert policy.unplayed == 0
