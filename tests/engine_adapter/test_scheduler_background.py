"""Plans from the background process, applied by a scheduler that is stepped without a model."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from live_traffic import FCFS, ROUND_ROBIN, Traffic, serve, summary

from experiments.live.vllm_command import adapter_settings

if TYPE_CHECKING:
    from live_stepping import Start

pytestmark = pytest.mark.live


@pytest.mark.parametrize("solver", ["cp_sat", "pulp_cbc"])
def test_a_slow_solver_serves_from_the_background(start: Start, solver: str) -> None:
    """CP-SAT and CBC plan in their process; their plans' age is told, and no step waits."""
    settings = adapter_settings(["live=background", f"solver={solver}"])
    settings["background"]["duty_cycle"] = 1.0
    engine = start(
        settings["policy"], asynchronous=True, adapter={"background": settings["background"]}
    )
    engine.on_step = lambda _: time.sleep(0.002)
    end_s, rounds = time.monotonic() + 90, 0
    while summary(engine)["late_plans"] < 3:
        traffic = Traffic(rounds, requests=30, rate=0.8)
        traffic.want = {f"{rounds}-{key}": value for key, value in traffic.want.items()}
        traffic.play(engine, most_steps=10**9)
        traffic.check(engine)
        rounds += 1
        assert time.monotonic() < end_s, summary(engine)
    counters = summary(engine)
    assert 0 < counters["late_age_s_max"] <= 2.0
    assert not counters["events"].get("background planner failed")


def test_background(start: Start) -> None:
    """Plans from another process are applied to the survivors, and their age is reported."""
    background = {
        "policy": {"_target_": "live_policies.Sleepy", "sleep_s": 0.002},
        "duty_cycle": 1.0,
        "max_age_s": 0.5,
    }
    engine = start(FCFS, asynchronous=True, adapter={"background": background})
    traffic = Traffic(10, requests=80, rate=0.3, aborts=0.05)
    engine.on_step = lambda _: time.sleep(0.002)
    rounds = 0
    while not summary(engine)["late_plans"]:
        # The process takes its time to start.
        engine.add(f"warm{rounds}", [1, 2, 3], 50)
        engine.add(f"more{rounds}", [1] * 500, 10)
        engine.drain(1000)
        rounds += 1
        assert rounds < 200
    counters = serve(engine, traffic)
    assert counters["late_plans"] > 5
    assert 0 < counters["late_age_s_max"] <= 0.5
    assert counters["late_age_s_sum"] > 0
    assert not counters["events"].get("background planner failed")


def test_newcomers_do_not_wait_for_the_background(start: Start) -> None:
    """
    While a plan of the background is followed, the fast policy lets newcomers in.

    A regression test: they waited for the next such plan, which with CBC cost a second.
    """
    newest = "live_policies.NewestFirst"
    background = {
        "policy": {"_target_": newest, "sleep_s": 0.5},
        "deadline_s": 5.0,
        "duty_cycle": 1.0,
        "max_age_s": 60.0,
    }
    engine = start({"_target_": newest}, adapter={"background": background})
    engine.on_step = lambda _: time.sleep(0.05)
    end_s, rounds = time.monotonic() + 60, 0
    while not summary(engine)["late_plans"]:
        if not engine.scheduler.has_requests():
            for _ in range(3):
                rounds += 1
                engine.add(f"old{rounds}", [rounds] * 200, 250)  # no prefix is shared
        engine.step()
        assert time.monotonic() < end_s, summary(engine)
    late_plans = summary(engine)["late_plans"]
    engine.add("new", [9, 8, 7] * 70, 20)
    for _ in range(6):
        engine.step()
    assert engine.replies["new"], engine.state()
    assert summary(engine)["late_plans"] == late_plans
    engine.on_step = None
    engine.drain(10**6)


def test_background_crashes(start: Start) -> None:
    """A background process that dies at every plan harms nobody."""
    background = {"policy": {"_target_": "live_policies.Sleepy", "dies": True}, "duty_cycle": 1.0}
    engine = start(ROUND_ROBIN, adapter={"background": background})
    engine.on_step = lambda _: time.sleep(0.001)
    end_s = time.monotonic() + 60
    rounds = 0
    while not summary(engine)["events"].get("background planner failed"):
        traffic = Traffic(rounds, requests=10)
        traffic.want = {f"{rounds}-{key}": value for key, value in traffic.want.items()}
        traffic.play(engine, most_steps=10**9)
        traffic.check(engine)
        rounds += 1
        assert time.monotonic() < end_s
    assert summary(engine)["late_plans"] == 0
