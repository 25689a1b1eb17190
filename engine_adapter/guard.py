"""
Whatever goes wrong in planning, the engine keeps serving.

:class:`Guard` stands between the adapter and a policy: it checks every answer, turns
exceptions and nonsense into "no answer", keeps away from a policy that fails again and again,
and counts and logs each kind of event, once.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from andes_opt.snapshot import Action, Decision, check_places
from engine_adapter.clock import SystemClock

if TYPE_CHECKING:
    from andes_opt.snapshot import Policy, Snapshot
    from engine_adapter.clock import Clock

#: Loggers below "vllm" are set up by the engine and print to its log.
LOGGER = logging.getLogger("vllm.andes_opt")


class Events:
    """
    Counts what went wrong, and logs the first of each kind.

    Attributes
    ----------
    counts
        Kind of event to number of times.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def record(self, kind: str, message: str) -> None:
        """
        Count an event; log it if it is the first of its kind.

        Parameters
        ----------
        kind
            A few words, the same for events of the same kind.
        message
            What happened this time.
        """
        self.counts[kind] += 1
        if self.counts[kind] == 1:
            LOGGER.warning("%s: %s (logged once; further ones are counted)", kind, message)


class Guard:
    """
    A policy that can't hurt.

    Parameters
    ----------
    policy
        The policy.
    events
        Where failures are counted.
    slow_s
        A decision that takes longer is counted, > 0.
    max_failures
        Failures in a row after which the policy is left alone for a while, >= 1.
    clock
        Times decisions, and pauses after failures.

    Attributes
    ----------
    decide_s
        Duration of the last decision.
    """

    def __init__(
        self,
        policy: Policy,
        events: Events,
        *,
        slow_s: float = 0.02,
        max_failures: int = 3,
        clock: Clock | None = None,
    ) -> None:
        self._policy = policy
        self._events = events
        self._slow_s = slow_s
        self._max_failures = max_failures
        self._clock: Clock = clock or SystemClock()
        self._failures = 0
        self._retry_s = -math.inf
        self.decide_s = 0.0

    @property
    def available(self) -> bool:
        """False while the policy is left alone after failures."""
        return self._clock.monotonic_s() >= self._retry_s

    def decide(self, snapshot: Snapshot) -> Decision | None:
        """
        Ask the policy.

        Parameters
        ----------
        snapshot
            The engine now.

        Returns
        -------
        Decision | None
            A decision that passes :func:`check_decision`, every request in its order; None
            if there is none.
        """
        start_s = self._clock.cost_s("")
        try:
            decision = check_decision(self._policy.decide(snapshot), snapshot)
        except Exception as error:
            self.decide_s = self._clock.cost_s("decide") - start_s
            self.failed("planner failed", f"{type(error).__name__}: {error}")
            return None
        self.decide_s = self._clock.cost_s("decide") - start_s
        self._failures = 0
        if self.decide_s > self._slow_s:
            self._events.record("planner slow", f"a decision took {self.decide_s:.3f} s")
        return decision

    def finished(self, request_number: int) -> None:
        """Tell the policy that a request has left."""
        try:
            self._policy.finished(request_number)
        except Exception as error:
            self._events.record("planner failed", f"{type(error).__name__}: {error}")

    def failed(self, kind: str, message: str) -> None:
        """Count a failure; after ``max_failures`` in a row wait 1 s, 2 s, ... up to a minute."""
        self._events.record(kind, message)
        self._failures += 1
        excess = self._failures - self._max_failures
        if excess >= 0:
            self._retry_s = self._clock.monotonic_s() + min(60.0, 2.0 ** min(excess, 6))


def check_decision(decision: object, snapshot: Snapshot) -> Decision:
    """
    A decision with nothing left to trust.

    Parameters
    ----------
    decision
        What a policy answered.
    snapshot
        What the policy was shown.

    Returns
    -------
    Decision
        The decision; requests that its order lacks come last.

    Raises
    ------
    ValueError
        If it is no decision, a shape, a type or a value in it is wrong, or it serves and
        holds more requests than the batch has places.
    """
    requests = snapshot.num_requests
    if not isinstance(decision, Decision):
        raise ValueError(f"{type(decision).__name__} is not a Decision.")
    replan_after = decision.replan_after
    if isinstance(replan_after, float) or int(replan_after) < 1:
        raise ValueError(f"replan_after = {replan_after} not understood: need iterations >= 1.")
    if decision.plan is not None and math.isnan(decision.plan.value):
        raise ValueError("the plan's value is NaN.")
    if decision.action is None:
        return decision

    action = np.asarray(decision.action)
    if action.shape != (requests,) or not np.issubdtype(action.dtype, np.integer):
        raise ValueError(
            f"action is {action.dtype}{action.shape}, not an integer for each of "
            f"{requests} requests."
        )
    if requests and not (action.min() >= Action.WAIT and action.max() <= Action.HOLD):
        raise ValueError(
            f"actions from {action.min()} to {action.max()} not understood: need WAIT, SERVE, HOLD."
        )
    check_places(action, snapshot.max_batch)
    order = np.asarray(decision.order)
    if order.size == 0:
        order = np.empty(0, dtype=np.int64)
    if order.ndim != 1 or not np.issubdtype(order.dtype, np.integer):
        raise ValueError(f"order is {order.dtype}{order.shape}, not a list of indices.")
    seen = np.zeros(requests, dtype=np.bool_)
    if order.size:
        if order.min() < 0 or order.max() >= requests:
            raise ValueError(f"order holds an index outside 0 to {requests - 1}.")
        seen[order] = True
        if int(seen.sum()) != order.size:
            raise ValueError("order holds an index twice.")
    if order.size < requests:
        order = np.concatenate([order, np.flatnonzero(~seen)])
    return Decision(
        action=action.astype(np.int8),
        order=order.astype(np.int64),
        plan=decision.plan,
        replan_after=int(replan_after),
    )
