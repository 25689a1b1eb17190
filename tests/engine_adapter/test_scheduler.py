"""The scheduler inside vLLM's own, stepped without a model (see live_stepping)."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from live_policies import Recorder
from live_stepping import reference
from live_traffic import FCFS, ROUND_ROBIN, Traffic, serve, summary

import conf
from experiments.live.vllm_command import adapter_settings

if TYPE_CHECKING:
    from live_stepping import Engine, Start

pytestmark = pytest.mark.live

CONF = Path(conf.__file__).parent


@pytest.mark.parametrize("asynchronous", [False, True])
def test_harness(start: Start, asynchronous: bool) -> None:
    """vLLM's own schedulers give the reference's tokens, preemptions included."""
    traffic = Traffic(seed=0)
    engine = start(asynchronous=asynchronous)
    traffic.play(engine)
    traffic.check(engine)


def test_harness_can_fail(start: Start) -> None:
    """A block that is taken from a running request shows in its tokens."""
    engine = start()
    rng = random.Random(0)
    prompts = {key: [rng.randrange(250) for _ in range(40)] for key in "ab"}
    engine.add("a", prompts["a"], 40)
    engine.step()
    engine.scheduler.kv_cache_manager.free(engine.scheduler.running[0])
    engine.add("b", prompts["b"], 40)
    with pytest.raises((AssertionError, KeyError, ValueError)):
        engine.drain(200)
        assert engine.replies == {key: reference(prompts[key], 40) for key in "ab"}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_pass_through_is_plain_vllm(start: Start, asynchronous: bool) -> None:
    """With a policy that passes through, every iteration is what vLLM's would have been."""
    logs = []
    for policy in (None, FCFS):
        engine = start(policy, asynchronous=asynchronous)
        log: list[Any] = []
        engine.on_output = lambda output, log=log: log.append(dict(output.num_scheduled_tokens))
        traffic = Traffic(seed=3)
        traffic.play(engine)
        traffic.check(engine)
        logs.append(log)
    assert logs[0] == logs[1]
    counters = summary(engine)
    assert counters["engine_preemptions"] > 0
    assert counters["passed_through"] == counters["iterations"] and counters["plans"] == 1


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_random_policy(start: Start, asynchronous: bool, seed: int) -> None:
    """Serving, holding and evicting at random changes no token and loses nobody."""
    counters = serve(
        start({"_target_": "live_policies.Random", "seed": seed}, asynchronous=asynchronous),
        Traffic(seed),
    )
    assert counters["evicted"] > 50 and counters["held"] > 100


@pytest.mark.parametrize(
    "options",
    [
        {"prefix_caching": False},
        {"chunked_prefill": False},
        {"block_tokens": 32, "blocks": 20},
        {"max_batch": 3},
        {"token_budget": 20},
        {"blocks": 12},
    ],
    ids=lambda options: "-".join(options),
)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_engine_options(start: Start, asynchronous: bool, options: dict[str, Any]) -> None:
    """So it is without prefix cache or chunked prefill, with tiny KV, batch or token budget."""
    policy = {"_target_": "live_policies.Random", "seed": 7}
    serve(start(policy, asynchronous=asynchronous, **options), Traffic(11, requests=30))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_preemption_storm(start: Start, asynchronous: bool) -> None:
    """Evicting half of everybody every third iteration changes no token."""
    counters = serve(
        start({"_target_": "live_policies.Storm"}, asynchronous=asynchronous), Traffic(5)
    )
    assert counters["evicted"] > 100


def test_synchronous_class(start: Start) -> None:
    """The class on vLLM's synchronous scheduler does the same."""
    from engine_adapter.scheduler import AndesSyncScheduler

    policy = {"_target_": "live_policies.Random", "seed": 2}
    serve(start(policy, scheduler_class=AndesSyncScheduler), Traffic(2))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_second_model_runner(start: Start, asynchronous: bool) -> None:
    """So it is with the model runner of GPUs, which keeps tokens and forgets evicted requests."""
    policy = {"_target_": "live_policies.Random", "seed": 5}
    engine = start(policy, asynchronous=asynchronous)
    assert isinstance(engine.scheduler.use_v2_model_runner, bool)
    # The configuration refuses it without a GPU; the scheduler only looks at this.
    engine.scheduler.use_v2_model_runner = engine.worker.second = True
    counters = serve(engine, Traffic(5))
    assert counters["evicted"] > 50 and counters["held"] > 100


def test_hundreds(start: Start) -> None:
    """Four hundred requests with many aborts, asynchronously."""
    policy = {"_target_": "live_policies.Random", "seed": 4, "hold": 0.2}
    traffic = Traffic(8, requests=400, rate=0.7, aborts=0.1)
    serve(start(policy, asynchronous=True, blocks=80, max_batch=32), traffic)
    assert len(traffic.aborted) > 20


@pytest.mark.parametrize("asynchronous", [False, True])
def test_plans_fit(start: Start, asynchronous: bool) -> None:
    """Feasible plans leave the engine nothing to preempt, where its own order had to."""
    counters = serve(start(ROUND_ROBIN, asynchronous=asynchronous), Traffic(3))
    assert counters["evicted"] > 20
    assert counters["engine_preemptions"] == 0


@pytest.mark.parametrize(
    "solver",
    [path.stem for path in sorted(CONF.glob("solver/*.yaml")) if path.stem != "dp_torch"],
)
def test_every_solver(start: Start, solver: str) -> None:
    """The paper's policy and ours serve with each solver of conf/solver; no token changes."""
    for policy in ("andes", "thrift"):
        settings = adapter_settings(
            [f"policy={policy}", f"solver={solver}", "policy.time_limit_s=0.1"]
        )
        # Brute force takes 20 requests at most; 8 arrive. Slow back-ends are asked less often.
        engine = start(
            settings["policy"], asynchronous=True, adapter={"planning_share_limit": 0.2}, blocks=14
        )
        counters = serve(engine, Traffic(13, requests=8, rate=0.5, aborts=0.0))
        assert counters["plans"] > 0 and counters["decide_s"] > 0
        assert counters["events"].get("planner failed", 0) == 0


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    "policy",
    # The oracle's lengths are not to be had from a live engine.
    [path.stem for path in sorted(CONF.glob("policy/*.yaml")) if path.stem != "srpt_oracle"],
)
def test_every_policy(start: Start, policy: str, asynchronous: bool) -> None:
    """Each policy of conf/policy serves requests that hang up and come in bursts."""
    settings = adapter_settings([f"policy={policy}", "solver=greedy"])
    engine = start(settings["policy"], asynchronous=asynchronous)
    counters = serve(engine, Traffic(21, requests=40, rate=0.8))
    assert counters["plans"] > 0
    assert counters["events"].get("planner failed", 0) == 0


def test_targets_reach_the_policy(start: Start) -> None:
    """What a request asks for is what the policy sees; the others have the default."""
    engine = start(
        {"_target_": "live_policies.Recorder"}, adapter={"target": {"ttft_s": 3.0, "tds": 2.0}}
    )
    engine.add("a", [1, 2, 3], 3, ttft_s=0.25, tds=9)
    engine.add("b", [1, 2, 3], 3)
    engine.step()
    snapshot = Recorder.snapshots[-1]
    assert snapshot.ttft_s.tolist() == [0.25, 3.0]
    assert snapshot.tds.tolist() == [9.0, 2.0]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_snapshots_are_true(start: Start, asynchronous: bool) -> None:
    """At every decision the snapshot agrees with the engine: KV, tokens, order, states."""
    engine = start({"_target_": "live_policies.Recorder", "seed": 3}, asynchronous=asynchronous)
    scheduler = engine.scheduler
    checked = [0]

    def check(snapshot: Any) -> None:
        n = snapshot.num_requests
        assert n == len(scheduler.requests)
        requests = list(scheduler.requests.values())
        assert (np.diff(snapshot.request_id) > 0).all()
        assert (snapshot.arrival_s <= snapshot.time_s).all()
        manager = scheduler.kv_cache_manager
        for i, request in enumerate(requests):
            blocks = len(manager.get_block_ids(request.request_id)[0])
            assert snapshot.kv_tokens[i] == blocks * scheduler.block_size, request.request_id
            assert snapshot.prompt_tokens[i] == request.num_prompt_tokens
            assert snapshot.generated_tokens[i] == len(engine.replies[request.request_id])
            assert snapshot.preemptions[i] == request.num_preemptions
            assert (snapshot.state[i] in (1, 3)) == (request in scheduler.running)
            assert snapshot.need_tokens[i] <= snapshot.capacity_tokens
            assert snapshot.need_tokens[i] * 2 >= snapshot.kv_tokens[i]
        assert snapshot.capacity_tokens < engine.worker.blocks * scheduler.block_size
        checked[0] += 1

    Recorder.on_decide = check
    try:
        serve(engine, Traffic(6))
    finally:
        Recorder.on_decide = None
    assert checked[0] > 100


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_hold_keeps_the_kv(start: Start, asynchronous: bool) -> None:
    """A held request gets no token, keeps its blocks, and goes on where it was."""
    engine = start({"_target_": "live_policies.HoldFirst", "after": 5}, asynchronous=asynchronous)
    prompts = {"a": [1] * 40, "b": [2] * 40}
    for key, prompt in prompts.items():
        engine.add(key, prompt, 30)
    lengths, blocks = [], []
    for _ in range(29):
        engine.step()
        lengths.append(len(engine.replies["a"]))
        blocks.append(len(engine.scheduler.kv_cache_manager.get_block_ids("a")[0]))
    held_at = lengths[10]
    assert 0 < held_at < 10 and lengths[28] == held_at and len(engine.replies["b"]) > 23
    assert len(set(blocks[10:])) == 1 and blocks[10] >= 3
    engine.drain(200)
    assert engine.replies == {key: reference(prompt, 30) for key, prompt in prompts.items()}
    assert summary(engine)["preemptions"] == 0


def test_an_id_comes_again(start: Start) -> None:
    """A client may hang up and come back under the same id between two iterations."""
    engine = start(ROUND_ROBIN)
    engine.add("a", [1] * 20, 30)
    for _ in range(5):
        engine.step()
    engine.abort("a")
    engine.add("a", [2] * 20, 30)
    engine.drain(100)
    assert engine.replies["a"] == reference([2] * 20, 30)
    assert summary(engine)["requests"] == 2


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_owner_pauses(start: Start, asynchronous: bool) -> None:
    """While the engine is paused nothing runs; afterwards everything goes on."""
    from vllm.v1.core.sched.interface import PauseState

    engine = start({"_target_": "live_policies.Random", "seed": 1}, asynchronous=asynchronous)
    for i in range(10):
        engine.add(str(i), [i] * 30, 20)
    for _ in range(6):
        engine.step()
    engine.scheduler.set_pause_state(PauseState.PAUSED_ALL)
    for _ in range(3):
        engine.step()
    before = {key: len(reply) for key, reply in engine.replies.items()}
    for _ in range(5):
        engine.step()
    assert {key: len(reply) for key, reply in engine.replies.items()} == before
    engine.scheduler.set_pause_state(PauseState.UNPAUSED)
    engine.drain(1000)
    assert all(engine.replies[str(i)] == reference([i] * 30, 20) for i in range(10))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_prefix_cache_is_reset(start: Start, asynchronous: bool) -> None:
    """Preempting everybody from outside, as a change of weights does, loses nobody."""
    engine = start({"_target_": "live_policies.Random", "seed": 1}, asynchronous=asynchronous)
    traffic = Traffic(9, requests=30, aborts=0.0)

    def reset(engine: Engine) -> None:
        if engine.steps % 17 == 0:
            engine.scheduler.reset_prefix_cache(reset_running_requests=True)

    engine.on_step = reset
    serve(engine, traffic)


def test_places_are_filled_between_plans(start: Start) -> None:
    """While planning pauses, whoever is next in the plan's order takes the places that get free."""
    policy = {"_target_": "live_policies.Batch", "size": 4}
    engine = start(policy, adapter={"planning_share_limit": 1e-9})
    for i in range(40):
        engine.add(str(i), [i] * 10, 3 + i % 7)
    batches = []
    engine.on_output = lambda output: batches.append(len(output.num_scheduled_tokens))
    for _ in range(30):
        engine.step()
    assert set(batches) == {4}
    assert len(engine.finished) > 15
    # Last come, first served, as the policy said.
    assert min(int(key) for key in engine.finished) > 15
    engine.drain(100)
    assert all(engine.replies[str(i)] == reference([i] * 10, 3 + i % 7) for i in range(40))


def test_report_is_written(start: Start, tmp_path: Path) -> None:
    """The counters are on disk while the engine runs and after it ends."""
    path = tmp_path / "adapter.json"
    engine = start(ROUND_ROBIN, adapter={"report_path": str(path)})
    serve(engine, Traffic(1, requests=10))
    assert json.loads(path.read_text())["iterations"] >= 1
    engine.scheduler.shutdown()
    report = json.loads(path.read_text())
    assert report["iterations"] == summary(engine)["iterations"]
    assert report["latency"]["samples"] > 10
