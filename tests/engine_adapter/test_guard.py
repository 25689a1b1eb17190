"""Nothing that a policy does reaches the engine."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from live_clock import StatedClock
from live_policies import Broken

from andes_opt.snapshot import Action, Decision
from engine_adapter.guard import Events, Guard, check_decision

if TYPE_CHECKING:
    from collections.abc import Callable

    from andes_opt.snapshot import Snapshot

NONSENSE = ["raise", "none", "shape", "nan_action", "value", "twice", "outside", "replan"]


@pytest.mark.parametrize("how", NONSENSE)
def test_nonsense(how: str, make_snapshot: Callable[..., Snapshot]) -> None:
    """An exception or a malformed decision becomes no decision, and is counted."""
    events = Events()
    guard = Guard(Broken(how), events)
    assert guard.decide(make_snapshot(5)) is None
    assert events.counts == {"planner failed": 1}


def test_logged_once(
    make_snapshot: Callable[..., Snapshot], caplog: pytest.LogCaptureFixture
) -> None:
    """However often a planner fails, there is one line in the log."""
    events = Events()
    guard = Guard(Broken("raise"), events)
    logging.getLogger("vllm").propagate = True
    with caplog.at_level(logging.WARNING, logger="vllm.andes_opt"):
        for _ in range(10):
            guard.decide(make_snapshot(2))
            guard.finished(1)
    assert events.counts["planner failed"] == 20
    assert len(caplog.records) == 1
    assert "the back-end crashed" in caplog.text


def test_backs_off(make_snapshot: Callable[..., Snapshot]) -> None:
    """A policy that fails three times in a row is left alone for 1 s, then for 2 s, ..."""
    clock = StatedClock()
    guard = Guard(Broken("raise"), Events(), max_failures=3, clock=clock)
    for _ in range(2):
        guard.decide(make_snapshot(1))
        assert guard.available
    pauses = []
    for _ in range(8):
        guard.decide(make_snapshot(1))
        assert not guard.available
        start = clock.now_s
        while not guard.available:
            clock.now_s += 0.5
        pauses.append(clock.now_s - start)
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]


def test_recovers(make_snapshot: Callable[..., Snapshot]) -> None:
    """One good decision and the failures before it are forgotten."""
    guard = Guard(Broken("raise", every=2), Events(), max_failures=2)
    decisions = [guard.decide(make_snapshot(3)) for _ in range(20)]
    assert [d is None for d in decisions] == [False, True] * 10
    assert guard.available


def test_slow_is_counted(make_snapshot: Callable[..., Snapshot]) -> None:
    """A decision that takes too long counts, but is used."""
    events = Events()
    guard = Guard(Broken("slow"), events, slow_s=0.01)
    assert guard.decide(make_snapshot(3)) is not None
    assert events.counts == {"planner slow": 1}
    assert guard.decide_s > 0.01


def test_order_is_completed(make_snapshot: Callable[..., Snapshot]) -> None:
    """Requests that an order does not name come last, in order of arrival."""
    decision = check_decision(
        Decision(action=np.array([1, 0, 1, 2], dtype=np.int8), order=np.array([2])),
        make_snapshot(4),
    )
    assert decision.order.tolist() == [2, 0, 1, 3]


def test_lists_are_understood(make_snapshot: Callable[..., Snapshot]) -> None:
    """Plain lists of integers do."""
    decision = check_decision(
        Decision(action=[1, 0], order=[1, 0]),  # type: ignore[arg-type]
        make_snapshot(2),
    )
    assert decision.action is not None and decision.action.dtype == np.int8
    assert decision.action.tolist() == [Action.SERVE, Action.WAIT]


@pytest.mark.parametrize("answer", [Decision(), Decision(replan_after=2**62)])
def test_pass_through(answer: Any, make_snapshot: Callable[..., Snapshot]) -> None:
    """Passing through needs no arrays, whatever the number of requests."""
    assert check_decision(answer, make_snapshot(100)) is answer


@pytest.mark.parametrize("action", [[1, 1, 1, 0], [1, 1, 2, 0], [2, 2, 2, 0]])
def test_held_requests_keep_their_places(
    action: list[int], make_snapshot: Callable[..., Snapshot]
) -> None:
    """Served and held requests together have at most max_batch places, as in vLLM."""
    decision = Decision(np.array(action, dtype=np.int8), np.arange(4))
    assert check_decision(decision, make_snapshot(4, max_batch=3)).action is not None
    with pytest.raises(ValueError, match=r"serves \d and holds \d requests, with 2 places"):
        check_decision(decision, make_snapshot(4, max_batch=2))
