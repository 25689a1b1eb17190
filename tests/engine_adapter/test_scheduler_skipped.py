"""Requests that the engine passes over do not count as served: others run in their place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock

import pytest
from live_stepping import reference
from live_traffic import summary

if TYPE_CHECKING:
    from live_stepping import Engine, Start

pytestmark = pytest.mark.live


def deferring(engine: Engine) -> set[str]:
    """A connector that puts off its lookup of these ids, which the test may change."""
    away: set[str] = set()
    connector = MagicMock()

    def matched(request: Any, _: int) -> tuple[int | None, bool]:
        return (None if request.request_id in away else 0), False

    connector.get_num_new_matched_tokens = matched
    connector.request_finished.return_value = (False, None)
    connector.take_events.return_value = ()
    connector.requires_piecewise_for_cudagraph = False
    connector.get_finished_count.return_value = None
    connector.build_connector_meta.return_value = None
    connector.has_pending_push_work.return_value = False
    connector.has_pending_block_frees.return_value = False
    connector.get_loaded_kv_cache_group_ids.return_value = ()
    connector.get_kv_connector_stats.return_value = None
    engine.scheduler.connector = connector
    return away


def watch(engine: Engine) -> list[set[str]]:
    """Who ran in each iteration in which anybody was there."""
    ran: list[set[str]] = []

    def look(output: Any) -> None:
        if engine.scheduler.requests:
            ran.append(set(output.num_scheduled_tokens))

    engine.on_output = look
    return ran


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_deferred_lookup(start: Start, size: int, asynchronous: bool) -> None:
    """
    While a connector puts off the requests that a plan serves, as many others run, without rescue.

    A regression test: the plan's places were kept for them, and vLLM reached the others only
    after an empty iteration, by its own order.
    """
    policy = {"_target_": "live_policies.Batch", "size": size}  # the last to come first
    engine = start(policy, asynchronous=asynchronous, prefix_caching=False)
    away, ran = deferring(engine), watch(engine)
    keys = [str(i) for i in range(6)]
    away |= {"4", "5"}
    for key in keys:
        engine.add(key, [int(key)] * 20, 12)
    for _ in range(10):
        engine.step()
    assert all(len(batch) == size for batch in ran), ran
    assert not any(batch & away for batch in ran)
    assert ran[0] == set(keys[4 - size : 4])  # the next in the plan's order
    away.clear()
    engine.drain(300)
    assert engine.replies == {key: reference([int(key)] * 20, 12) for key in keys}
    assert summary(engine)["rescues"] == 0
    assert summary(engine)["events"] == {}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_it_runs_as_soon_as_it_can(start: Start, asynchronous: bool) -> None:
    """Once its lookup is done, a request that a plan serves gets the place that it was given."""
    engine = start(
        {"_target_": "live_policies.Batch", "size": 2},
        asynchronous=asynchronous,
        prefix_caching=False,
    )
    away, ran = deferring(engine), watch(engine)
    away.add("2")
    for i in range(3):
        engine.add(str(i), [i] * 20, 30)
    for _ in range(4):
        engine.step()
    assert ran[-1] == {"0", "1"}
    away.clear()
    for _ in range(3):
        engine.step()
    assert "2" in ran[-1] and len(ran[-1]) == 2
    engine.drain(300)
    assert summary(engine)["rescues"] == 0


def test_random_deferrals(start: Start) -> None:
    """Under random plans that hold, with lookups put off at random, nobody is lost or starves."""
    engine = start(
        {
            "_target_": "live_policies.Random",
            "seed": 4,
            "serves_one": True,
            "pass_through": 0.0,
        },
        prefix_caching=False,
        max_batch=4,
    )
    away, ran = deferring(engine), watch(engine)
    keys = [str(i) for i in range(30)]
    for key in keys:
        engine.add(key, [int(key)] * 20, 15)

    def change(engine: Engine) -> None:
        away.clear()
        away.update(key for key in engine.scheduler.requests if (int(key) + engine.steps) % 3)

    engine.on_step = change
    engine.drain(3000)
    assert engine.replies == {key: reference([int(key)] * 20, 15) for key in keys}
    assert all(len(batch) <= 4 for batch in ran)
    assert summary(engine)["events"].get("adapter failed", 0) == 0
