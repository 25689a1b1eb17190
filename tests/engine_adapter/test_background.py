"""A slow policy in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from andes_opt.snapshot import Action
from engine_adapter.background import BackgroundPlanner, LatePlan
from engine_adapter.guard import Events
from engine_adapter.settings import Background

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from andes_opt.snapshot import Snapshot


@pytest.fixture
def start() -> Iterator[Callable[..., tuple[BackgroundPlanner, Events]]]:
    """Planners that are closed in the end."""
    planners: list[BackgroundPlanner] = []

    def make(
        policy: dict[str, Any] | None = None,
        practice: Sequence[Snapshot] = (),
        **options: Any,
    ) -> tuple[BackgroundPlanner, Events]:
        events = Events()
        spec = {"_target_": "live_policies.Sleepy", **(policy or {})}
        planner = BackgroundPlanner(Background(spec, **options), events, practice=practice)
        planners.append(planner)
        return planner, events

    yield make
    for planner in planners:
        planner.close()


def wait_for(condition: Callable[[], Any], limit_s: float = 60.0) -> Any:
    """The first true value of a condition."""
    end_s = time.monotonic() + limit_s
    while time.monotonic() < end_s:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError("nothing happened.")


def plan_for(planner: BackgroundPlanner, snapshot: Snapshot) -> LatePlan:
    """Offer a snapshot, and wait for its plan."""
    wait_for(lambda: planner.wants_snapshot)
    planner.offer(snapshot, [str(i) for i in range(snapshot.num_requests)])
    assert not planner.wants_snapshot
    plan: LatePlan = wait_for(planner.take)
    return plan


def test_plans(start: Any, make_snapshot: Callable[..., Snapshot]) -> None:
    """A plan comes back under the engine's ids, though the policy prints to stdout."""
    planner, events = start({"prints": True}, duty_cycle=1.0)
    for n in (3, 0, 200):
        planner.finished(7)
        late = plan_for(planner, make_snapshot(n, time_s=5.0, max_batch=200))
        assert late.keys == [str(i) for i in range(n)]
        assert late.decision.order.tolist() == list(range(n))[::-1]
        assert (late.decision.action == Action.SERVE).all()
        assert late.snapshot_s == 5.0 and late.newest == n
        assert planner.take() is None
    assert not events.counts


def test_offer_does_not_wait(start: Any, make_snapshot: Callable[..., Snapshot]) -> None:
    """The engine's thread hands over a snapshot in no time, however slow the policy is."""
    planner, _ = start({"sleep_s": 0.3})
    begin_s = time.perf_counter()
    planner.offer(make_snapshot(500), [str(i) for i in range(500)])
    assert time.perf_counter() - begin_s < 0.2
    assert wait_for(planner.take).solve_s >= 0.3


def test_duty_cycle(start: Any, make_snapshot: Callable[..., Snapshot]) -> None:
    """At a duty cycle of 10 %, a plan of 0.05 s is followed by a rest of 0.45 s or more."""
    planner, _ = start({"sleep_s": 0.05}, duty_cycle=0.1)
    plan_for(planner, make_snapshot(3))
    begin_s = time.monotonic()
    wait_for(lambda: planner.wants_snapshot)
    assert time.monotonic() - begin_s >= 0.4


def test_practice(start: Any, make_snapshot: Callable[..., Snapshot]) -> None:
    """
    What a process does once, it does before it is asked for a plan.

    A regression test: the first snapshot was an easy one, the second met a cold solver, missed
    its deadline and cost the process.
    """
    cold = {"_target_": "live_policies.Cold"}
    planner, events = start(cold, [make_snapshot(2)], duty_cycle=1.0, deadline_s=0.5)
    for n in (0, 3):
        assert plan_for(planner, make_snapshot(n)).solve_s < 0.5
    assert not events.counts


def test_ready_before_the_first_request(start: Any) -> None:
    """The process is started without waiting for a snapshot, and asks for one when it is there."""
    planner, events = start()
    assert not planner.wants_snapshot
    wait_for(lambda: planner.wants_snapshot)
    assert planner._worker is not None  # noqa: SLF001
    assert not events.counts


def test_crash(start: Any, make_snapshot: Callable[..., Snapshot]) -> None:
    """A back-end that takes its process down is counted and started again later."""
    planner, events = start({"dies": True}, duty_cycle=1.0)
    planner.offer(make_snapshot(3), ["a", "b", "c"])
    wait_for(lambda: events.counts["background planner failed"] == 1)
    assert planner.take() is None
    assert not planner.wants_snapshot, "a pause comes first"
    wait_for(lambda: planner.wants_snapshot)


def test_a_process_that_ends_while_idle_is_replaced(
    start: Any, make_snapshot: Callable[..., Snapshot]
) -> None:
    """
    If the process is killed between two plans, the next snapshot finds out, and another starts.

    A regression test: closing the pipe failed again, and the planner's thread ended for good.
    """
    planner, events = start({}, duty_cycle=1.0)
    plan_for(planner, make_snapshot(3))
    process = planner._worker.process  # noqa: SLF001
    process.kill()
    process.wait()
    planner.offer(make_snapshot(3), ["a", "b", "c"])
    wait_for(lambda: events.counts["background planner failed"] == 1)
    plan_for(planner, make_snapshot(3))


def test_only_those_whom_the_policy_knows_are_remembered(
    start: Any, make_snapshot: Callable[..., Snapshot]
) -> None:
    """
    Requests that come and leave between two snapshots are no news for the policy.

    A regression test: without a queue there are no snapshots, and the list grew for ever.
    """
    planner, _ = start({}, duty_cycle=1.0)
    for number in range(1, 1001):
        planner.finished(number)
    assert not planner._finished  # noqa: SLF001
    plan_for(planner, make_snapshot(3))
    for number in range(1, 1001):
        planner.finished(number)
    assert planner._finished == [1, 2, 3]  # noqa: SLF001


def test_deadline(start: Any, make_snapshot: Callable[..., Snapshot]) -> None:
    """A decision that misses its deadline is given up, and its process is gone."""
    planner, events = start({"sleep_s": 0.0}, duty_cycle=1.0, deadline_s=0.2)
    plan_for(planner, make_snapshot(3))  # starts the process
    process = planner._worker.process  # noqa: SLF001
    os.kill(process.pid, signal.SIGSTOP)  # a solver that hangs
    wait_for(lambda: planner.wants_snapshot)
    planner.offer(make_snapshot(3), ["a", "b", "c"])
    wait_for(lambda: events.counts["background planner failed"] == 1)
    wait_for(lambda: process.poll() is not None)


def test_unbuildable(start: Any, make_snapshot: Callable[..., Snapshot]) -> None:
    """A policy that can't be built is an event, not an exception."""
    planner, events = start({"no_such_option": 1})
    planner.offer(make_snapshot(3), ["a", "b", "c"])
    wait_for(lambda: events.counts["background planner failed"] == 1)


PARENT = """
import sys, time
sys.path.insert(0, sys.argv[1])
from engine_adapter.background import BackgroundPlanner
from engine_adapter.guard import Events
from engine_adapter.settings import Background

policy = {"_target_": "live_policies.Sleepy"}
planner = BackgroundPlanner(Background(policy), Events())
while not planner.wants_snapshot:
    time.sleep(0.01)
print(planner._worker.process.pid, flush=True)
time.sleep(3600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="relies on signals from closed pipes")
def test_no_orphan_when_the_engine_is_killed() -> None:
    """SIGKILL to the engine's process ends the policy's process too."""
    command = [sys.executable, "-c", PARENT, str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        process = Path("/proc") / parent.stdout.readline().strip()
        assert "State:\tZ" not in (process / "status").read_text()
        parent.kill()
    wait_for(lambda: not process.exists() or "State:\tZ" in (process / "status").read_text())


def test_close_ends_the_process(start: Any, make_snapshot: Callable[..., Snapshot]) -> None:
    """After closing, even in the middle of a plan, no process is left."""
    planner, events = start({"sleep_s": 30.0})
    planner.offer(make_snapshot(3), ["a", "b", "c"])
    process = wait_for(lambda: planner._worker).process  # noqa: SLF001
    planner.close()
    assert process.wait(timeout=5) is not None
    assert not planner.wants_snapshot
    time.sleep(0.05)
    assert not events.counts
