"""All that the adapter knows of time comes from one clock, which an engine in virtual time owns."""

from __future__ import annotations

import ast
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from live_clock import StatedClock
from live_traffic import Traffic, serve, summary

import engine_adapter
from engine_adapter.background import BackgroundPlanner
from engine_adapter.clock import Clock, Stopwatch, SystemClock
from engine_adapter.guard import Events, Guard
from engine_adapter.settings import Background

if TYPE_CHECKING:
    from collections.abc import Callable

    from live_stepping import Start

    from andes_opt.snapshot import Snapshot

#: Beside the clock: a process that works in real time has deadlines in real time.
_ASKS_THE_MACHINE = {"clock.py", "background.py"}


def test_nobody_else_asks_the_machine() -> None:
    """No other module of the adapter imports ``time``; the emulator is an engine of its own."""
    asking = set()
    for path in Path(engine_adapter.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            if {"time", "datetime"} & set(names):
                asking.add(path.name)
    assert asking == _ASKS_THE_MACHINE


def test_the_machines_clock() -> None:
    """In real time work takes as long as it takes, and nobody waits."""
    clock: Clock = SystemClock()
    before_s = clock.time_s(), clock.monotonic_s(), clock.cost_s("")
    time.sleep(0.01)
    after_s = clock.time_s(), clock.monotonic_s(), clock.cost_s("decide")
    assert all(0.009 < b - a < 5.0 for a, b in zip(before_s, after_s, strict=True))
    assert abs(clock.time_s() - time.time()) < 1.0
    assert clock.solve_s(0.25) == 0.25 and not clock.waits


def test_stopwatch() -> None:
    """Every lap goes to its part, once, and what lies between stretches to none."""
    clock = StatedClock({"observe": 1.0, "decide": 5.0})
    spent: dict[str, float] = {}
    watch = Stopwatch(clock, lambda part, s: spent.update({part: spent.get(part, 0.0) + s}))
    watch.start()
    watch.lap("observe")
    clock.spent_s += 100.0
    watch.start()
    watch.lap("apply")
    watch.timed("decide", 7.0)
    watch.lap("observe")
    assert spent == {"observe": 2.0, "apply": 0.0, "decide": 7.0}
    assert watch.total_s == 9.0


def test_a_decision_costs_what_the_clock_states(make_snapshot: Callable[..., Snapshot]) -> None:
    """The guard calls a decision slow by the clock's word, however fast it really was."""
    events = Events()
    guard = Guard(_policy(), events, clock=StatedClock({"decide": 0.5}))
    assert guard.decide(make_snapshot(3)) is not None
    assert guard.decide_s == 0.5 and events.counts == {"planner slow": 1}


def _policy() -> Any:
    from live_policies import Always

    return Always("SERVE")


def _background(clock: Clock, sleep_s: float = 0.0, **options: Any) -> Any:
    events = Events()
    settings = Background({"_target_": "live_policies.Sleepy", "sleep_s": sleep_s}, **options)
    return BackgroundPlanner(settings, events, clock), events


def test_background_in_virtual_time(make_snapshot: Callable[..., Snapshot]) -> None:
    """
    A plan comes after the time that it is stated to take, and the duty cycle's rest follows.

    Nothing depends on how long the process really takes.
    """
    clock = StatedClock(solve_of_s=2.0)
    planner, events = _background(clock, sleep_s=0.1, duty_cycle=0.25, deadline_s=3.0)
    try:
        assert planner.wants_snapshot  # it waits for the process to start
        clock.now_s = 10.0
        planner.offer(make_snapshot(3, time_s=10.0), ["a", "b", "c"])
        for clock.now_s in (10.0, 11.999):
            assert planner.take() is None and not planner.wants_snapshot
        clock.now_s = 12.0
        late = planner.take()
        assert (late.solve_s, late.ready_s, late.snapshot_s) == (2.0, 12.0, 10.0)
        assert planner.take() is None
        clock.now_s = 17.999
        assert not planner.wants_snapshot
        clock.now_s = 18.0
        assert planner.wants_snapshot
        assert not events.counts
    finally:
        planner.close()


def test_background_deadline_in_virtual_time(make_snapshot: Callable[..., Snapshot]) -> None:
    """A plan that is stated to take longer than its deadline is given up; the first may."""
    clock = StatedClock(solve_of_s=70.0)
    planner, events = _background(clock, deadline_s=1.0, duty_cycle=1.0)
    try:
        assert planner.wants_snapshot
        planner.offer(make_snapshot(1), ["a"])
        assert planner.take() is None
        assert events.counts == {"background planner failed": 1}
        clock.now_s = 1.0
        assert not planner.wants_snapshot  # a pause of 2 s
        clock.now_s, clock.solve_of_s = 2.0, 0.5
        assert planner.wants_snapshot
    finally:
        planner.close()


@pytest.mark.live
@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_engine_in_virtual_time(start: Start, asynchronous: bool) -> None:
    """With a clock of its own a run has the same counters, times included, every time."""
    from engine_adapter.scheduler import AndesScheduler, AndesSyncScheduler

    costs = {"observe": 1e-4, "snapshot": 2e-4, "decide": 3e-4, "apply": 4e-4}
    reports = []
    for _ in range(2):
        clock = StatedClock(costs)
        base = AndesScheduler if asynchronous else AndesSyncScheduler
        engine = start(
            {"_target_": "live_policies.Random", "seed": 3},
            scheduler_class=type("Virtual", (base,), {"andes_clock": clock}),
            asynchronous=asynchronous,
            adapter={"planning_share_limit": 0.05},
        )

        def later(_: Any, clock: StatedClock = clock) -> None:
            clock.now_s += 0.03

        engine.on_step = later
        serve(engine, Traffic(3))
        reports.append(summary(engine))
    one, two = reports
    assert one == two
    assert one["plans"] > 5
    # A decision is asked for once a plan; some answers leave the engine alone.
    assert one["decide_s"] == pytest.approx(one["snapshot_s"] * 1.5)
    assert one["planning_s"] / one["engine_s"] < 0.06
    assert one["observe_s"] == pytest.approx(2e-4 * one["iterations"])
