"""Engines with more than plain text: grammars, LoRA, sessions, KV for others, wide blocks."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from live_clock import StatedClock
from live_policies import Recorder
from live_stepping import reference
from live_traffic import FCFS, ROUND_ROBIN, Traffic, serve, summary

if TYPE_CHECKING:
    from live_stepping import Engine, Start

pytestmark = pytest.mark.live

HOLD = {"_target_": "live_policies.HoldFirst", "after": 5}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_class_fits_the_engine(start: Start, asynchronous: bool) -> None:
    """
    Where vLLM would schedule synchronously, our scheduler is no asynchronous one.

    A regression test: on a pipeline it would have scheduled tokens before they were known.
    """
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    engine = start(FCFS, asynchronous=asynchronous)
    assert isinstance(engine.scheduler, AsyncScheduler) is asynchronous
    assert engine.scheduler.andes is not None


@pytest.mark.parametrize("asynchronous", [False, True])
def test_whoever_waited_for_a_grammar_is_planned(start: Start, asynchronous: bool) -> None:
    """
    A request is the engine's business while its grammar compiles, and the policy's afterwards.

    A regression test: it was hidden from then on, as long as there was a queue.
    """
    from vllm.v1.request import RequestStatus

    engine = start(ROUND_ROBIN, asynchronous=asynchronous, blocks=20)
    requests = engine.scheduler.requests
    ready = SimpleNamespace(grammar=None)

    def forget_the_grammar(_: Any) -> None:
        # Nothing here computes bit masks; only its readiness is of interest.
        if "grammar" in requests and requests["grammar"].status is RequestStatus.RUNNING:
            requests["grammar"].structured_output_request = None

    engine.on_output = forget_the_grammar
    for step in range(600):
        if step % 5 == 0:
            engine.add(str(step), [step % 250] * 60, 30)
        if step == 20:
            engine.add("grammar", [7] * 100, 20)
            request = requests["grammar"]
            request.structured_output_request = ready
            request.status = RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
        if step == 40:
            assert not engine.replies["grammar"]
            ready.grammar = object()
        engine.step()
        if "grammar" in engine.finished:
            break
    assert engine.replies["grammar"] == reference([7] * 100, 20), engine.state()
    assert len(engine.scheduler.waiting) > 5, "nobody had to wait"
    engine.on_output = None
    engine.drain(5_000)
    assert summary(engine)["unfinished"] == 0


def test_a_grammar_that_comes_does_not_block_those_whom_a_plan_serves(start: Start) -> None:
    """Once it can be decided about, a request no longer stands in front of a plan's."""
    from vllm.v1.request import RequestStatus

    batch = {"_target_": "live_policies.Batch", "size": 3}
    engine = start(batch, adapter={"planning_share_limit": 1e-9}, blocks=20)
    requests = engine.scheduler.requests
    engine.add("grammar", [7] * 250, 20)
    request = requests["grammar"]
    request.structured_output_request = SimpleNamespace(grammar=None)
    request.status = RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
    for i in range(12):
        engine.add(str(i), [i] * 60, 10 + i)
    for _ in range(4):
        engine.step()
    request.structured_output_request.grammar = object()
    engine.step()  # the engine sees that it is ready, and that it does not fit
    request.structured_output_request = None
    assert request.status is RequestStatus.WAITING
    before = len(engine.finished)
    for _ in range(40):
        engine.step()
    assert len(engine.finished) > before + 3, engine.state()


def test_a_request_with_lora_is_never_out_of_sight(start: Start) -> None:
    """
    A hold of a request with a LoRA adapter serves it instead.

    A regression test: the engine asserts that it sees no more adapters than it has room for,
    and one that came back could be one too many.
    """
    from vllm.lora.request import LoRARequest

    engine = start(HOLD)
    for key in "ab":
        engine.add(key, [3] * 40, 30)
    engine.scheduler.requests["a"].lora_request = LoRARequest("adapter", 1, "folder")
    for _ in range(20):
        engine.step()
    assert len(engine.replies["a"]) > 15
    assert summary(engine)["held"] == 0
    engine.drain(200)
    assert all(reply == reference([3] * 40, 30) for reply in engine.replies.values())


@pytest.mark.parametrize("asynchronous", [False, True])
def test_evictions_where_the_kv_is_for_another_engine(start: Start, asynchronous: bool) -> None:
    """
    An engine that hands its KV on drops what is in flight of an evicted request.

    A regression test: its last token could arrive and end the request, with no KV to hand on.
    """
    engine = start({"_target_": "live_policies.Storm"}, asynchronous=asynchronous)
    scheduler = engine.scheduler
    scheduler.requires_kv_delivery = True
    preempt = scheduler._preempt_request  # noqa: SLF001
    evicted: dict[str, int] = {}
    dropped = []

    def spy(request: Any, timestamp: float, drop_stale_output: bool = False) -> None:
        evicted[request.request_id] = engine.steps
        dropped.append(drop_stale_output)
        preempt(request, timestamp, drop_stale_output)

    def not_at_once(output: Any) -> None:
        # The step was counted between the eviction and this.
        again = [k for k in output.num_scheduled_tokens if evicted.get(k) == engine.steps - 1]
        assert not again, "resumed in the step in which it was evicted"

    scheduler._preempt_request = spy  # noqa: SLF001
    engine.on_output = not_at_once
    serve(engine, Traffic(5))
    assert len(dropped) > 100 and all(dropped)


def test_a_request_whose_kv_is_still_being_sent(start: Start) -> None:
    """
    A finished request that the engine keeps is no new one.

    A regression test: it was taken for an arrival, and never left.
    """
    engine = start(ROUND_ROBIN)
    engine.add("sent", [1, 2, 3], 5)
    request = engine.scheduler.requests["sent"]
    engine.drain(50)
    assert "sent" in engine.finished
    engine.scheduler.requests["sent"] = request
    for i in range(3):
        engine.add(str(i), [i] * 20, 10)
        engine.drain(50)
    assert (summary(engine)["requests"], summary(engine)["unfinished"]) == (4, 0)
    del engine.scheduler.requests["sent"]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_everybody_preempted_from_outside_is_noticed(start: Start, asynchronous: bool) -> None:
    """
    After the owner has preempted all, snapshots say that nobody has KV.

    A regression test: they showed KV that was gone until each request came back.
    """
    engine = start({"_target_": "live_policies.Recorder", "seed": 3}, asynchronous=asynchronous)
    scheduler = engine.scheduler
    seen = []

    def check(snapshot: Any) -> None:
        manager = scheduler.kv_cache_manager
        blocks = [len(manager.get_block_ids(key)[0]) for key in scheduler.requests]
        assert snapshot.kv_tokens.tolist() == [n * scheduler.block_size for n in blocks]
        preempted = [request.num_preemptions for request in scheduler.requests.values()]
        assert snapshot.preemptions.tolist() == preempted
        seen.append(sum(blocks))

    def reset(engine: Engine) -> None:
        if engine.steps % 7 == 0:
            scheduler.reset_prefix_cache(reset_running_requests=True)

    engine.on_step = reset
    Recorder.on_decide = check
    try:
        serve(engine, Traffic(9, requests=30, aborts=0.0))
    finally:
        Recorder.on_decide = None
    assert seen.count(0) > 5 and max(seen) > 0


def test_blocks_of_several_ranks(start: Start) -> None:
    """
    With decode context parallelism a block of the pool is a block of a request.

    A regression test: capacity was divided by the number of ranks.
    """
    from engine_adapter.internals import EngineView

    scheduler = start(FCFS).scheduler
    before = EngineView(scheduler)
    ranks = 4
    scheduler.block_size *= ranks
    for manager in scheduler.kv_cache_manager.coordinator.single_type_managers:
        manager.block_size *= ranks
    wide = EngineView(scheduler)
    assert wide.block_tokens == ranks * before.block_tokens
    assert (wide.num_blocks, wide.free_blocks()) == (before.num_blocks, before.free_blocks())
    # A model with two groups takes a block of each.
    scheduler.kv_cache_manager.coordinator.single_type_managers = ()
    scheduler.kv_cache_config.kv_cache_groups *= 2
    scheduler.block_size //= ranks
    assert EngineView(scheduler).num_blocks == before.num_blocks // 2


def test_plans_leave_what_the_engine_keeps_free(start: Start) -> None:
    """Capacity respects vLLM's own watermark, and the batch the places of paused sessions."""
    engine = start({"_target_": "live_policies.Recorder"}, watermark=0.25)
    for i in range(5):
        engine.add(str(i), [i] * 20, 5)
    engine.scheduler.num_waiting_for_streaming_input = 3
    engine.step()
    snapshot = Recorder.snapshots[-1]
    assert snapshot.capacity_tokens == 30 * 16  # of 40 blocks
    assert snapshot.max_batch == 16 - 3
    engine.scheduler.num_waiting_for_streaming_input = 0
    engine.drain(50)


def test_a_pause_is_no_iteration(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes more than a minute counts neither as the engine's time nor for its model."""
    engine = start(FCFS)
    controller = engine.scheduler.andes
    clock = StatedClock()
    monkeypatch.setattr(controller, "_clock", clock)
    engine.add("a", [1] * 20, 40)
    for _ in range(20):
        clock.now_s += 0.03
        engine.step()
    samples = summary(engine)["latency"]["samples"]
    clock.now_s += 1000.0
    engine.step()
    assert summary(engine)["engine_s"] < 60.0
    assert summary(engine)["latency"]["samples"] <= samples + 1
    engine.drain(100)


def test_late_plans_beside_a_session(start: Start) -> None:
    """
    Blocks of a request that is not for policies are counted once when a late plan is checked.

    A regression test: they were counted twice, and such plans were not used.
    """
    background = {
        "policy": {"_target_": "live_policies.Sleepy", "sleep_s": 0.002},
        "duty_cycle": 1.0,
        "max_age_s": 5.0,
    }
    engine = start(FCFS, adapter={"background": background})
    engine.on_step = lambda _: time.sleep(0.002)
    # Half of the 40 blocks and no more than 22: once it always fits, twice it never does, however
    # many steps a busy machine makes before a plan comes.
    engine.add("session", [9] * 320, 150)
    engine.scheduler.requests["session"].resumable = True
    end_s, rounds = time.monotonic() + 60, 0
    while not summary(engine)["late_plans"]:
        if "session" not in engine.scheduler.requests:
            break
        if len(engine.scheduler.requests) < 3:
            rounds += 1
            engine.add(f"r{rounds}", [rounds % 250] * 60, 5)
        if len(engine.replies["session"]) > 20:
            engine.abort("session")
            engine.add("session", [9] * 320, 150)
            engine.scheduler.requests["session"].resumable = True
        engine.step()
        assert time.monotonic() < end_s, summary(engine)
    assert summary(engine)["late_plans"]
    assert not summary(engine)["late_rejected"]
    engine.on_step = None
    engine.abort(None)
    engine.drain(100)
