"""What goes wrong around the scheduler, stepped without a model: requests flow all the same."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from live_stepping import reference
from live_traffic import FCFS, ROUND_ROBIN, Traffic, serve, summary

from experiments.live.vllm_command import adapter_settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from live_stepping import Start

pytestmark = pytest.mark.live

NONSENSE = ["raise", "none", "shape", "nan_action", "value", "twice", "outside", "replan"]


@pytest.mark.parametrize("action", ["WAIT", "HOLD"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_plan_that_moves_nothing(start: Start, asynchronous: bool, action: str) -> None:
    """A policy that serves nobody is overruled, and everybody gets their tokens."""
    policy = {"_target_": "live_policies.Always", "action": action}
    counters = serve(start(policy, asynchronous=asynchronous), Traffic(1, requests=20))
    assert counters["rescues"] > 0
    assert counters["events"]["plan moved nothing"] == counters["rescues"]


@pytest.mark.parametrize("how", NONSENSE)
def test_planner_fails_always(start: Start, how: str) -> None:
    """A planner that never gives a decision leaves vLLM's first come, first served."""
    logs = []
    for policy in (None, {"_target_": "live_policies.Broken", "how": how}):
        engine = start(policy)
        log: list[Any] = []
        engine.on_output = lambda output, log=log: log.append(dict(output.num_scheduled_tokens))
        traffic = Traffic(3, requests=20)
        traffic.play(engine)
        traffic.check(engine)
        logs.append(log)
    assert logs[0] == logs[1]
    assert summary(engine)["events"]["planner failed"] >= 3


@pytest.mark.parametrize("how", ["raise", "value"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_planner_fails_now_and_then(start: Start, asynchronous: bool, how: str) -> None:
    """Between failures the plans count; at a failure the last good one goes on."""
    policy = {"_target_": "live_policies.Broken", "how": how, "every": 3}
    counters = serve(start(policy, asynchronous=asynchronous), Traffic(4))
    assert counters["plans"] > 20 and counters["events"]["planner failed"] > 10


def test_oracle_lengths_are_not_to_be_had(start: Start) -> None:
    """A policy that wants the true lengths fails, is counted, and vLLM's order serves all."""
    settings = adapter_settings(["policy=srpt_oracle"])
    counters = serve(start(settings["policy"]), Traffic(21, requests=10))
    assert counters["plans"] == 0 and counters["events"]["planner failed"] > 0


def test_a_solver_that_runs_out_of_time(start: Start) -> None:
    """With hardly any time, a solver's incumbents serve; nothing is lost."""
    settings = adapter_settings(["policy=andes", "solver=cp_sat", "policy.time_limit_s=1e-4"])
    counters = serve(start(settings["policy"]), Traffic(22, requests=15))
    assert counters["plans"] > 0


def test_a_planner_that_dawdles(start: Start) -> None:
    """Slow decisions are counted, and planning pauses so that it keeps to its share."""
    policy = {"_target_": "live_policies.Broken", "how": "slow"}
    engine = start(policy, adapter={"planning_share_limit": 0.05})
    engine.on_step = lambda _: time.sleep(0.002)
    counters = serve(engine, Traffic(4, requests=20))
    assert counters["events"]["planner slow"] == counters["plans"] > 0
    assert counters["plans"] < 0.2 * counters["iterations"]
    assert counters["decide_s"] < counters["planning_s"] < counters["adapter_s"]


def test_absurd_targets(start: Start) -> None:
    """Requests with absurd targets are served like all others, and counted."""
    engine = start(ROUND_ROBIN)
    absurd = [-1.0, float("nan"), float("inf"), "fast", None, [1], 1e308]
    for i, value in enumerate(absurd):
        engine.add(f"a{i}", [1, 2, 3], 5, ttft_s=value)
        engine.add(f"b{i}", [1, 2, 3], 5, tds=value)
    engine.drain(200)
    assert all(reply == reference([1, 2, 3], 5) for reply in engine.replies.values())
    assert summary(engine)["events"] == {"target not understood": 2 * len(absurd)}


def test_ten_thousand_waiting(start: Start) -> None:
    """
    With 10,000 requests in the queue tokens flow, and the adapter's time stays bounded.

    A regression test: it asked for finished requests, and on a fast machine plans follow each
    other so closely that everybody's turn ends before the reply does.
    """
    engine = start(ROUND_ROBIN, adapter={"planning_share_limit": 0.01}, blocks=200, max_batch=32)
    for i in range(10_000):
        engine.add(str(i), [i % 250] * 20, 20)
    begin_s = time.perf_counter()
    for _ in range(100):
        engine.step()
    assert time.perf_counter() - begin_s < 30.0
    assert sum(map(len, engine.replies.values())) > 2000
    counters = summary(engine)
    assert counters["rescues"] == 0
    assert counters["adapter_s"] / counters["iterations"] < 0.03
    engine.abort(None)
    engine.drain(10)
    assert summary(engine)["unfinished"] == 0


@pytest.mark.parametrize("broken", ["observe", "plan", "hide", "after"])
def test_a_bug_in_the_adapter(start: Start, broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of our own is counted, and vLLM goes on by itself; nothing is lost."""
    from engine_adapter.observer import Observer
    from engine_adapter.queues import Queues

    owner, name = {
        "observe": (Observer, "iteration_starts"),
        "plan": (Observer, "snapshot"),
        "hide": (Queues, "_split"),
        "after": (Observer, "iteration_scheduled"),
    }[broken]
    works: Callable[..., Any] = getattr(owner, name)
    calls = [0]

    def fails_sometimes(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] % 5 == 4:
            raise RuntimeError("a bug")
        return works(*args, **kwargs)

    monkeypatch.setattr(owner, name, fails_sometimes)
    monkeypatch.setattr("engine_adapter.controller._RESCUE_MAX", 5)
    engine = start({"_target_": "live_policies.Random", "seed": 5}, asynchronous=True)
    traffic = Traffic(12)
    traffic.play(engine)
    traffic.check(engine)
    assert summary(engine)["events"]["adapter failed"] == 10, "ten times, then never again"


def test_refuses_or_falls_back(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where vLLM lacks something, the adapter says what, and refuses or falls back as told."""
    from engine_adapter import internals
    from engine_adapter.probe import Requirement

    gone = (*internals.REQUIRED, Requirement("vllm.v1.request", "Request", ("gone",)))
    monkeypatch.setattr(internals, "REQUIRED", gone)
    with pytest.raises(internals.Incompatible, match=r"vLLM 0\.\S+ lacks .*Request\.gone"):
        start(FCFS)
    engine = start(FCFS, adapter={"on_mismatch": "fall_back"})
    assert engine.scheduler.andes is None
    traffic = Traffic(1, requests=10)
    traffic.play(engine)
    traffic.check(engine)


def test_untested_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version in which everything is there but which was never tried is named."""
    from engine_adapter import internals

    assert internals.check_installed() is None
    monkeypatch.setattr(internals, "TESTED_VERSIONS", ("9.9.9",))
    remark = internals.check_installed()
    assert remark is not None and internals.installed_version() in remark


def test_priority_scheduling_is_refused(start: Start) -> None:
    """vLLM's priority queue and a policy would fight over the order."""
    from engine_adapter.internals import EngineView, Incompatible

    scheduler = start(FCFS).scheduler
    scheduler.waiting = [1]
    with pytest.raises(Incompatible, match="needs fcfs"):
        EngineView(scheduler)


def test_an_id_that_was_seen_before_is_not_lost(start: Start) -> None:
    """
    A newcomer who does not fit stays in the queue, whoever had its id before.

    A regression test: as its id had stood in front once, it was in no queue any more.
    """
    engine = start(
        {"_target_": "live_policies.Batch", "size": 2},
        adapter={"planning_share_limit": 1e-9},
        blocks=14,
    )
    prompts = {"c": [3] * 200, "a": [1] * 60, "b": [2] * 60}
    for key, prompt in prompts.items():
        engine.add(key, prompt, 20)
    for _ in range(3):
        engine.step()
    assert engine.replies["a"] and engine.replies["b"]
    engine.abort("a")
    prompts["a"] = [4] * 200
    engine.add("a", prompts["a"], 20)
    for _ in range(4):
        engine.step()  # the harness misses whoever is in no queue
    engine.drain(500)
    assert engine.replies == {key: reference(prompt, 20) for key, prompt in prompts.items()}


def test_a_full_disk_does_not_end_the_planning(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The file of iterations ends where it can't be written; plans go on.

    A regression test: ten such failures switched the adapter off for good.
    """
    from engine_adapter.iteration_log import IterationLog

    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(IterationLog, "add", full)
    engine = start(ROUND_ROBIN, adapter={"iterations_path": str(tmp_path / "iterations.csv")})
    counters = serve(engine, Traffic(4, requests=20))
    assert counters["plans"] > 20
    assert counters["events"]["iterations not written"] == 1
