"""What a policy is shown about requests and readers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andes_opt.latency import LatencyModel
from andes_opt.qoe import QoETarget, area, digestion_start, token_window_area
from andes_opt.snapshot import Snapshot, State
from engine_adapter.tracker import ReaderTracker

LATENCY = LatencyModel(0.03, 1e-4, 4e-7, 1e-3)
TARGET = QoETarget(ttft_s=1.0, tds=5.0)


def look(tracker: ReaderTracker, now_s: float, **options: object) -> tuple[Snapshot, list[str]]:
    """A snapshot with everyday options."""
    values: dict[str, object] = {
        "capacity_tokens": 640,
        "max_batch": 8,
        "token_budget": 128,
        "latency": LATENCY,
        "max_candidates": 1000,
    }
    return tracker.snapshot(now_s, **{**values, **options})  # type: ignore[arg-type]


def read(times: list[float], target: QoETarget, age_s: float) -> tuple[float, float]:
    """Tokens digested by an age and the integral of their number, summed over tokens."""
    start_s, digested, integral = -math.inf, 0.0, 0.0
    for time_s in times:
        start_s = digestion_start(time_s, start_s, target.ttft_s, target.tds)
        digested += min(1.0, max(0.0, target.tds * (age_s - start_s)))
        integral += token_window_area(age_s - start_s, target.tds)
    return digested, integral


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.0, 2.0), st.integers(1, 3), st.booleans()), max_size=20),
    st.floats(0.0, 3.0),
    st.floats(0.5, 20.0),
    st.floats(0.0, 5.0),
)
def test_readers_are_exact(
    steps: list[tuple[float, int, bool]], ttft_s: float, tds: float, arrival_s: float
) -> None:
    """Tokens, digested and area are the sums over tokens that define them, at any time."""
    target = QoETarget(ttft_s, tds)
    tracker = ReaderTracker(16)
    tracker.add("a", arrival_s, 10, 1000, target)
    now_s, count, times = arrival_s, 0, []
    for wait_s, tokens, looked in steps:
        now_s += wait_s
        count += tokens
        assert tracker.delivered(["a"], [count], now_s) == tokens
        times += [now_s - arrival_s] * tokens
        if looked:
            snapshot, _ = look(tracker, now_s + wait_s / 2)
            age_s = now_s + wait_s / 2 - arrival_s
            assert snapshot.generated_tokens.tolist() == [count]
            digested, integral = read(times, target, age_s)
            assert snapshot.digested[0] == pytest.approx(digested, abs=1e-9)
            assert snapshot.area[0] == pytest.approx(integral, abs=1e-9)
            now_s += wait_s / 2
    qoe = tracker.qoe_area("a")
    if times:
        assert qoe == pytest.approx(area(times, target), abs=1e-6)
    else:
        assert qoe is None


def test_numbers_increase() -> None:
    """Requests are numbered and shown in order of arrival, also after others have left."""
    tracker = ReaderTracker(16, room=4)
    for i in range(40):
        assert tracker.add(f"r{i}", float(i), 10, 20, TARGET) == i + 1
        if i >= 3:
            assert tracker.remove(f"r{i - 3}") == i - 2
    snapshot, keys = look(tracker, 50.0)
    assert keys == ["r37", "r38", "r39"]
    assert snapshot.request_id.tolist() == [38, 39, 40]
    assert snapshot.arrival_s.tolist() == [37.0, 38.0, 39.0]
    assert snapshot.requests_seen == tracker.seen == 40
    assert "r36" not in tracker and len(tracker) == 3
    assert tracker.number("r38") == 39


def test_an_id_may_come_again() -> None:
    """An id that is used a second time is a new request with a new reader."""
    tracker = ReaderTracker(16)
    tracker.add("a", 0.0, 10, 20, TARGET)
    tracker.delivered(["a"], [5], 1.0)
    tracker.remove("a")
    assert tracker.add("a", 2.0, 30, 40, TARGET) == 2
    snapshot, keys = look(tracker, 2.0)
    assert keys == ["a"]
    assert snapshot.generated_tokens.tolist() == [0]
    assert snapshot.prompt_tokens.tolist() == [30]


def test_kv_life() -> None:
    """Waiting, prefilling, decoding, held, preempted: blocks, needs and restore times follow."""
    tracker = ReaderTracker(16)
    tracker.add("a", 0.0, 100, 400, TARGET)

    def now() -> tuple[int, int, int, float]:
        s, _ = look(tracker, 1.0)
        return int(s.state[0]), int(s.kv_tokens[0]), int(s.need_tokens[0]), float(s.restore_s[0])

    assert now() == (State.WAITING, 0, 8 * 16, pytest.approx(0.100))
    tracker.resident(["a"], [60], [100], State.RUNNING)
    assert now() == (State.RUNNING, 64, 8 * 16, pytest.approx(0.040))
    tracker.delivered(["a"], [13], 1.0)
    tracker.resident(["a"], [112], [113], State.RUNNING)
    assert now() == (State.RUNNING, 112, 9 * 16, 0.0)
    tracker.resident(["a"], [112], [113], State.HELD)
    assert now() == (State.HELD, 112, 9 * 16, 0.0)
    assert tracker.resident_tokens() == 112
    tracker.preempted("a", 113, 1)
    assert now() == (State.PREEMPTED, 0, 9 * 16, pytest.approx(0.113))
    assert tracker.preemptions_seen == 1
    snapshot, _ = look(tracker, 1.0, cached_share=(0.5, 0.75))
    assert snapshot.restore_s[0] == pytest.approx(0.113 / 4)
    tracker.remove("a")
    assert tracker.resident_tokens() == 0


def test_need_ends_with_the_reply() -> None:
    """Nobody needs more than the longest reply allows, nor more than there is."""
    tracker = ReaderTracker(16)
    tracker.add("short", 0.0, 30, 32, TARGET)
    tracker.add("huge", 0.0, 3000, 4000, TARGET)
    snapshot, _ = look(tracker, 0.0)
    assert snapshot.need_tokens.tolist() == [32, 640]
    assert tracker.need_blocks("short") == 2
    assert tracker.need_blocks("huge") == 189


def test_lookahead_is_reserved() -> None:
    """With speculative decoding, room for the drafts counts."""
    tracker = ReaderTracker(16, lookahead_tokens=5)
    tracker.add("a", 0.0, 30, 400, TARGET)
    snapshot, _ = look(tracker, 0.0)
    assert snapshot.need_tokens.tolist() == [4 * 16]


def test_candidates() -> None:
    """Too many requests: whoever has started is shown, then the first to arrive."""
    tracker = ReaderTracker(16)
    for i in range(20):
        tracker.add(str(i), float(i), 10, 20, TARGET, steerable=i != 0)
    tracker.resident(["19"], [10], [11], State.RUNNING)
    tracker.preempted("10", 10, 1)
    _, keys = look(tracker, 30.0, max_candidates=5)
    assert keys == ["1", "2", "3", "10", "19"]
    _, keys = look(tracker, 30.0, max_candidates=1)
    assert keys == ["10", "19"]
    _, keys = look(tracker, 30.0)
    assert keys == [str(i) for i in range(1, 20)]


def test_nobody() -> None:
    """No requests make a snapshot of size 0."""
    snapshot, keys = look(ReaderTracker(16), 0.0)
    assert snapshot.num_requests == 0 and keys == []


def test_snapshots_stay_as_they_are() -> None:
    """What happens after a snapshot does not change it."""
    tracker = ReaderTracker(16)
    tracker.add("a", 0.0, 10, 20, TARGET)
    snapshot, _ = look(tracker, 0.0)
    tracker.delivered(["a"], [3], 1.0)
    tracker.resident(["a"], [12], [13], State.RUNNING)
    assert snapshot.generated_tokens.tolist() == [0] and snapshot.kv_tokens.tolist() == [0]
    assert snapshot.state.dtype == np.int8
