"""
The simulated engine plays by vLLM's rules: iteration by iteration the same as its own scheduler.

What differs on purpose is listed in docs/live.md, "Where simulator and vLLM differ on purpose".
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from live_differential import Run, VirtualEngine, compare, scenario, simulated

from andes_opt.policy.fcfs import FCFS
from engine_adapter.settings import instantiate
from experiments.live.vllm_command import adapter_settings

if TYPE_CHECKING:
    from andes_opt.engine import EngineProfile
    from andes_opt.workload import Requests

pytestmark = pytest.mark.live

#: Scenarios of each test; a test of 20 takes some seconds.
GROUPS = [range(first, first + 20) for first in range(0, 100, 20)]
POLICIES = {
    "andes": ["policy=andes", "solver=greedy"],
    "thrift": ["policy=thrift", "solver=greedy"],
    "round_robin": ["policy=round_robin", "policy.quantum_tokens=5"],
}


@pytest.fixture(autouse=True)
def _looked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading vLLM's sources takes longer than the rest of a run; other tests do it."""
    monkeypatch.setattr("engine_adapter.scheduler.check_installed", lambda: None)


def in_vllm(
    model: str, requests: Requests, profile: EngineProfile, policy: dict[str, Any] | None = None
) -> Run:
    """vLLM's run, in which the adapter had nothing to complain about."""
    run = VirtualEngine(model, requests, profile, policy).run()
    if policy is not None:
        assert run.counters["events"] == {} and run.counters["rescues"] == 0
    return run


@pytest.mark.parametrize("seeds", GROUPS, ids=str)
def test_fcfs(tiny_model: str, seeds: range) -> None:
    """vLLM's own scheduler and our FCFS: same requests, tokens, blocks, preemptions and times."""
    preemptions = 0
    for seed in seeds:
        requests, profile = scenario(seed)
        vllm = in_vllm(tiny_model, requests, profile)
        compare(simulated(requests, profile, FCFS()), vllm)
        preemptions += int(vllm.preemptions.sum())
    assert preemptions > 0


@pytest.mark.parametrize("seeds", GROUPS, ids=str)
@pytest.mark.parametrize("name", POLICIES)
def test_policies(tiny_model: str, name: str, seeds: range) -> None:
    """A policy sees the same, decides the same and gets the same, in vLLM and in the simulator."""
    spec = adapter_settings(POLICIES[name])["policy"]
    preemptions = 0
    for seed in seeds:
        requests, profile = scenario(seed)
        vllm = in_vllm(tiny_model, requests, profile, spec)
        compare(simulated(requests, profile, instantiate(spec)), vllm)
        preemptions += int(vllm.preemptions.sum())
    assert preemptions > 0


@pytest.mark.parametrize("seeds", GROUPS, ids=str)
def test_holds_and_pass_through(tiny_model: str, seeds: range) -> None:
    """So it is when requests are held, and when a policy changes between plans and pass-through."""
    held = passed = 0
    for seed in seeds:
        requests, profile = scenario(seed)
        spec = {"_target_": "live_policies.Feasible", "seed": seed}
        vllm = in_vllm(tiny_model, requests, profile, spec)
        compare(simulated(requests, profile, instantiate(spec)), vllm)
        held += vllm.counters["held"]
        passed += vllm.counters["passed_through"]
    assert held > 100 and passed > 20


@pytest.mark.parametrize(
    "changes",
    [
        {"token_budget": 41},
        {"block_tokens": 8},
        {"reserve_full_context": False},
        {"watermark": 0.3},
        {"max_batch": 2},
        {"max_context_tokens": 60},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_a_difference_shows(tiny_model: str, changes: dict[str, Any]) -> None:
    """Another rule in one of the two engines is found."""
    requests, profile = scenario(1)
    requests = replace(
        requests,
        arrival_s=0 * requests.arrival_s,
        prompt_tokens=0 * requests.prompt_tokens + 50,
        output_tokens=0 * requests.output_tokens + 20,
    )
    profile = replace(
        profile,
        capacity_tokens=200,
        block_tokens=16,
        max_batch=8,
        token_budget=40,
        max_context_tokens=200,
        reserve_full_context=True,
        watermark=0.0,
    )
    vllm = in_vllm(tiny_model, requests, profile)
    compare(simulated(requests, profile, FCFS()), vllm)
    with pytest.raises(AssertionError, match=r"iteration|decision"):
        compare(simulated(requests, replace(profile, **changes), FCFS()), vllm)
