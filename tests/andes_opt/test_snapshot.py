"""The contract between policies and engines."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest

from andes_opt.snapshot import NEVER, Action, Decision, Policy, Snapshot, State

if TYPE_CHECKING:
    from collections.abc import Callable


class FirstTwo:
    """A policy without a base class: serves the two oldest requests."""

    def decide(self, snapshot: Snapshot) -> Decision:
        action = np.full(snapshot.num_requests, Action.WAIT, dtype=np.int8)
        action[:2] = Action.SERVE
        return Decision(action=action, order=np.arange(snapshot.num_requests), replan_after=5)

    def finished(self, request_id: int) -> None:
        pass


def test_numbers_of_actions_and_states() -> None:
    """Arrays of int8 carry actions and states, so their numbers are part of the contract."""
    assert [int(action) for action in (Action.WAIT, Action.SERVE, Action.HOLD)] == [0, 1, 2]
    states = (State.WAITING, State.RUNNING, State.PREEMPTED, State.HELD)
    assert [int(state) for state in states] == [0, 1, 2, 3]


def test_a_policy_needs_no_base_class(make_snapshot: Callable[..., Snapshot]) -> None:
    """Two methods make a policy; one method does not."""
    policy = FirstTwo()
    assert isinstance(policy, Policy)
    decision = policy.decide(make_snapshot(4))
    assert decision.action is not None
    assert decision.action.tolist() == [1, 1, 0, 0]
    assert not isinstance(object(), Policy)


def test_the_default_decision_is_pass_through() -> None:
    """A decision without arguments leaves the engine to its own order, and is asked again."""
    decision = Decision()
    assert decision.action is None
    assert decision.plan is None
    assert decision.order.size == 0
    assert decision.order.dtype == np.int64
    assert decision.replan_after == 1
    assert NEVER > 10**12


def test_snapshots_and_decisions_are_frozen(make_snapshot: Callable[..., Snapshot]) -> None:
    """Neither side can change what it was given by assignment."""
    snapshot = make_snapshot(3)
    assert snapshot.num_requests == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        snapshot.time_s = 0.0  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Decision().replan_after = 2  # type: ignore[misc]


def test_a_snapshot_holds_nothing_from_the_future(
    make_snapshot: Callable[..., Snapshot],
) -> None:
    """True output lengths are the one look ahead, and absent unless given."""
    assert make_snapshot(3).oracle_output_tokens is None
    ahead = [
        field.name
        for field in dataclasses.fields(Snapshot)
        if "output" in field.name or "oracle" in field.name
    ]
    assert ahead == ["oracle_output_tokens"]
