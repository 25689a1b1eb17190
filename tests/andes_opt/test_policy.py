"""Policies: what they decide on hand-made snapshots, and what they are worth end to end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andes_opt import metrics
from andes_opt.engine import EngineProfile
from andes_opt.latency import LatencyModel
from andes_opt.objective import AverageQoE
from andes_opt.plan import Plan, make_plan
from andes_opt.policy import FCFS, Andes, RoundRobin
from andes_opt.policy.andes import calm_iterations
from andes_opt.policy.packing import fits_in_order, limit_evictions
from andes_opt.simulator import simulate
from andes_opt.snapshot import NEVER, Action, Decision, Snapshot, State
from andes_opt.workload import Poisson

if TYPE_CHECKING:
    from andes_opt.instance import Instance

ENGINE = EngineProfile(
    name="opt_66b_4xa100",
    latency=LatencyModel(0.035, 3e-4, 4e-7, 1.2e-4),
    capacity_tokens=60_000,
    swap_s_per_token=2.95e-5,
)


class Densest:
    """Packs by density; stands in for a solver, which this package must not import."""

    exact = False

    def solve(self, instance: Instance, *, time_limit_s: float | None = None) -> Plan:
        batch_size = instance.max_batch
        gains = instance.gains_at(batch_size)
        order = np.argsort(-gains / instance.weights, kind="stable")
        serve = fits_in_order(order, instance.weights, instance.capacity, batch_size)
        return make_plan(instance, serve & (gains > 0), batch_size)


def snapshot(**changes: object) -> Snapshot:
    """Four requests, the first two running, in a cache with room for three."""
    n = 4
    fields = {
        "time_s": 10.0,
        "request_id": np.arange(n),
        "arrival_s": np.array([0.0, 2.0, 6.0, 9.0]),
        "prompt_tokens": np.full(n, 40),
        "generated_tokens": np.array([30, 20, 0, 0]),
        "kv_tokens": np.array([80, 64, 0, 0]),
        "need_tokens": np.array([96, 80, 64, 64]),
        "state": np.array([State.RUNNING, State.RUNNING, State.WAITING, State.WAITING], np.int8),
        "ttft_s": np.ones(n),
        "tds": np.full(n, 5.0),
        "digested": np.array([30.0, 20.0, 0.0, 0.0]),
        "area": np.array([130.0, 60.0, 0.0, 0.0]),
        "preemptions": np.zeros(n, dtype=np.int64),
        "restore_s": np.array([0.0, 0.0, 0.01, 0.01]),
        "capacity_tokens": 240,
        "block_tokens": 16,
        "max_batch": 8,
        "token_budget": 2048,
        "latency": ENGINE.latency,
        "requests_seen": 4,
        "preemptions_seen": 0,
    }
    return Snapshot(**(fields | changes))  # type: ignore[arg-type]


def test_fcfs_passes_through_for_good() -> None:
    """FCFS leaves everything to the engine and is never asked again."""
    decision = FCFS().decide(snapshot())
    assert decision.action is None
    assert decision.replan_after == NEVER


def test_andes_passes_through_without_pressure() -> None:
    """With room for everybody, selective triggering does not solve."""
    decision = Andes(Densest(), AverageQoE()).decide(snapshot(capacity_tokens=4000))
    assert decision.action is None and decision.plan is None
    always = Andes(Densest(), AverageQoE(), selective=False)
    assert always.decide(snapshot(capacity_tokens=4000)).plan is not None


def test_andes_serves_the_plan() -> None:
    """Under pressure the plan is served, the most urgent first, and nothing is overfull."""
    shot = snapshot()
    decision = Andes(Densest(), AverageQoE()).decide(shot)
    assert decision.plan is not None and decision.action is not None
    served = decision.action == Action.SERVE
    assert (served == decision.plan.serve).all()
    assert shot.need_tokens[served].sum() <= shot.capacity_tokens
    assert sorted(decision.order.tolist()) == [0, 1, 2, 3]


def test_preemption_cap_keeps_residents() -> None:
    """With the cap used up, nobody who is on the GPU is evicted."""
    shot = snapshot(preemptions_seen=4)
    decision = Andes(Densest(), AverageQoE(), preemption_cap=1.0).decide(shot)
    assert decision.action is not None
    assert (decision.action[:2] == Action.SERVE).all()
    free = Andes(Densest(), AverageQoE(), preemption_cap=None).decide(shot)
    assert free.action is not None and (free.action[:2] == Action.WAIT).any()


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_limited_evictions(data: st.DataObject) -> None:
    """The changed plan evicts no more than allowed, nobody new comes in, and it fits if it did."""
    n = data.draw(st.integers(1, 12))
    rng = np.random.default_rng(data.draw(st.integers(0, 9999)))
    weights = rng.integers(1, 10, n)
    resident = rng.random(n) < 0.5
    capacity = int(weights[resident].sum() + rng.integers(0, 10))
    slots = int(resident.sum() + rng.integers(0, 3))
    urgency = rng.permutation(n)
    serve = fits_in_order(rng.permutation(n), weights, capacity, slots)
    allowed = data.draw(st.integers(0, n))

    kept = limit_evictions(serve, resident, urgency, weights, capacity, slots, allowed)
    assert (resident & ~kept).sum() <= max(allowed, 0)
    assert not (kept & ~serve & ~resident).any()
    assert weights[kept].sum() <= capacity and kept.sum() <= slots
    if (resident & ~serve).sum() <= allowed:
        assert (kept == serve).all()


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10_000), capacity=st.integers(400, 4000))
def test_calm_lasts_as_long_as_it_says(seed: int, capacity: int) -> None:
    """No growth by one token an iteration reaches the pressure limit before the calm ends."""
    rng = np.random.default_rng(seed)
    generated = rng.integers(1, 60, 4)

    def at(iterations: int) -> Snapshot:
        context = 40 + generated + iterations
        need = (-(-context // 16) + 1) * 16
        return snapshot(
            generated_tokens=generated + iterations, need_tokens=need, capacity_tokens=capacity
        )

    calm = calm_iterations(at(0), 0.9)
    for iterations in range(1, calm):
        assert calm_iterations(at(iterations), 0.9) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_pressure": 0.0}, "kv_pressure = 0.0"),
        ({"preemption_cap": -1.0}, "preemption_cap = -1.0"),
        ({"replan_every": 0}, "replan_every = 0"),
        ({"time_limit_s": 0.0}, "time_limit_s = 0.0"),
    ],
)
def test_bad_options_are_refused(options: dict[str, float], message: str) -> None:
    """Options out of range get one sentence with the value."""
    with pytest.raises(ValueError, match=message):
        Andes(Densest(), AverageQoE(), **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="quantum_tokens = 0"):
        RoundRobin(quantum_tokens=0)


def test_andes_beats_fcfs_under_load() -> None:
    """At 1.4 times FCFS's capacity, Andes' readers are far happier, by all three scores."""
    requests = Poisson(rate=5.2, requests=600).generate(seed=1)
    fcfs = metrics.summarise(simulate(requests, ENGINE, FCFS()))
    andes = metrics.summarise(simulate(requests, ENGINE, Andes(Densest(), AverageQoE())))
    for name in ("qoe_area_mean", "qoe_delay_mean", "qoe_window_mean"):
        assert andes[name] > fcfs[name] + 0.1


def test_policies_agree_when_nothing_is_scarce() -> None:
    """At a quarter of the capacity every policy gives everybody a perfect stream."""
    requests = Poisson(rate=1.0, requests=150).generate(seed=2)
    for policy in (FCFS(), RoundRobin(), Andes(Densest(), AverageQoE())):
        result = simulate(requests, ENGINE, policy)
        assert result.qoe_window.min() > 0.99
        assert result.preemptions.sum() == 0


def test_selective_triggering_changes_only_the_cost() -> None:
    """Skipping the checks while it is calm changes no decision that matters."""

    class EveryIteration(Andes):
        def decide(self, shot: Snapshot) -> Decision:
            decision = super().decide(shot)
            if decision.action is None:
                return Decision(replan_after=1)
            return decision

    requests = Poisson(rate=4.0, requests=300).generate(seed=3)
    calm = simulate(requests, ENGINE, Andes(Densest(), AverageQoE()))
    checked = simulate(requests, ENGINE, EveryIteration(Densest(), AverageQoE()))
    assert calm.decisions < checked.decisions
    np.testing.assert_allclose(calm.qoe_window, checked.qoe_window)
