"""A policy that is asked less often, as inside an engine with a planning budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andes_opt.engine import EngineProfile
from andes_opt.latency import LatencyModel
from andes_opt.policy import FCFS, LeastSlack, Paced, RoundRobin
from andes_opt.simulator import simulate
from andes_opt.snapshot import Action, Decision, State
from andes_opt.workload import Requests

if TYPE_CHECKING:
    from collections.abc import Callable

    from andes_opt.snapshot import Snapshot

#: Two dozen requests fit.
ENGINE = EngineProfile("small", LatencyModel(0.01, 5e-4, 3e-6, 5e-4), capacity_tokens=5000)


def crowd(seed: int, rate: float = 4.0, count: int = 60) -> Requests:
    """An overload of short requests."""
    rng = np.random.default_rng(seed)
    return Requests(
        arrival_s=np.cumsum(rng.exponential(1 / rate, count)),
        prompt_tokens=rng.integers(20, 400, count),
        output_tokens=rng.integers(20, 300, count),
        ttft_s=np.full(count, 1.0),
        tds=np.full(count, 4.8),
    )


class Counting:
    """Notes when the policy inside is asked."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy
        self.asked_s: list[float] = []
        self.full: list[bool] = []  # whether residents did not fit any more
        self.gone: list[int] = []

    def decide(self, snapshot: Snapshot) -> Decision:
        self.asked_s.append(snapshot.time_s)
        resident = snapshot.state == State.RUNNING
        need = snapshot.need_tokens[resident].sum()
        self.full.append(not resident.any() or need > snapshot.capacity_tokens)
        decision: Decision = self.policy.decide(snapshot)
        return decision

    def finished(self, request_id: int) -> None:
        self.gone.append(request_id)
        self.policy.finished(request_id)


@pytest.mark.parametrize("make", [RoundRobin, LeastSlack])
def test_the_policy_rests_between_plans(make: Callable[[], Any]) -> None:
    """Plans are a pause apart but where residents do not fit any more, and everybody finishes."""
    often, seldom = Counting(make()), Counting(make())
    simulate(crowd(1), ENGINE, Paced(often, 0.0))
    result = simulate(crowd(1), ENGINE, Paced(seldom, 0.5))
    assert np.isfinite(result.completion_s).all()
    assert len(seldom.asked_s) < len(often.asked_s) / 3
    early = np.diff(seldom.asked_s) < 0.5
    assert np.array(seldom.full)[1:][early].all()
    assert early.mean() < 0.5
    assert len(seldom.gone) == 60


def test_pass_through_stays_pass_through() -> None:
    """First come, first served is the same to the bit, however seldom it is asked."""
    plain = simulate(crowd(2), ENGINE, FCFS())
    paced = simulate(crowd(2), ENGINE, Paced(FCFS(), 5.0))
    np.testing.assert_array_equal(plain.completion_s, paced.completion_s)


@given(seed=st.integers(0, 1000), pause_s=st.sampled_from([0.0, 0.05, 0.3, 2.0]))
@settings(max_examples=25, deadline=None)
def test_everybody_is_served_to_the_end(seed: int, pause_s: float) -> None:
    """No pause leaves a request behind, and tokens come out as without one."""
    requests = crowd(seed, count=30)
    result = simulate(requests, ENGINE, Paced(RoundRobin(), pause_s), record_tokens=True)
    assert result.token_times_s is not None
    assert [times.size for times in result.token_times_s] == requests.output_tokens.tolist()
    assert all((np.diff(times) > 0).all() for times in result.token_times_s)


class Fixed:
    """Serves whom it is told to, in order of arrival."""

    def __init__(self, serve: list[bool], hold: list[bool]) -> None:
        self._action = np.where(hold, Action.HOLD, np.where(serve, Action.SERVE, Action.WAIT))
        self._asked = 0

    def decide(self, snapshot: Snapshot) -> Decision:
        self._asked += 1
        assert self._asked == 1
        return Decision(self._action.astype(np.int8), np.arange(self._action.size), None, 100)

    def finished(self, request_id: int) -> None:
        """Nothing is kept."""


def test_between_plans(make_snapshot: Callable[..., Snapshot]) -> None:
    """Residents stay, one who waited takes a finished one's place, newcomers get what is left."""
    policy = Paced(Fixed([True, True, False, False, False], [False, False, True, False, False]), 9)

    def shot(states: list[State], **fields: Any) -> Snapshot:
        return make_snapshot(
            len(states),
            state=np.array(states, dtype=np.int8),
            need_tokens=np.full(len(states), 96),
            capacity_tokens=960,
            **fields,
        )

    states = [State.RUNNING, State.RUNNING, State.HELD, State.WAITING, State.WAITING]
    first = policy.decide(shot(states, time_s=0.5))
    assert first.action is not None
    assert first.action.tolist() == [1, 1, 2, 0, 0]

    # Request 0 has left, 5 and 6 have come: 3 takes its place, 4 still waits.
    later = shot(
        [State.RUNNING, State.HELD] + 4 * [State.WAITING],
        time_s=1.0,
        request_id=np.arange(1, 7),
        arrival_s=np.linspace(0.1, 0.6, 6),
    )
    decision = policy.decide(later)
    assert decision.action is not None
    assert decision.action.tolist() == [1, 2, 1, 0, 1, 1]
    assert sorted(decision.order.tolist()) == list(range(6))
    assert decision.replan_after == 1


def test_wrong_pause() -> None:
    """A negative pause is one clear sentence."""
    with pytest.raises(ValueError, match="pause_s"):
        Paced(FCFS(), -1.0)
