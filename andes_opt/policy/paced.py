"""A wrapper that asks another policy only as often as a live engine's planning budget allows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from andes_opt import checks
from andes_opt.policy.packing import fits_in_order
from andes_opt.snapshot import Action, Decision, State

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from andes_opt.snapshot import Policy, Snapshot


class Paced:
    """
    Ask a policy at most once in ``pause_s`` seconds, and follow its last plan meanwhile.

    The simulator asks a policy whenever something happens; the vLLM adapter may have to wait
    (``planning_share_limit``). This wrapper does in simulation what the adapter does between
    plans: residents stay, the most urgent who had to wait take the places of those who finish,
    and newcomers get what room is left.

    Parameters
    ----------
    policy
        The policy to ask.
    pause_s
        Least simulated time between two plans, s, >= 0.

    Raises
    ------
    ValueError
        If the pause is negative.
    """

    def __init__(self, policy: Policy, pause_s: float) -> None:
        checks.non_negative("pause_s", pause_s)
        self._policy = policy
        self._pause_s = pause_s
        self._next_s = -np.inf
        self._replan_after = 0
        self._iterations = 0
        self._ids: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._ranks: dict[int, int] | None = None  # of the last plan; None for pass-through
        self._size = 0  # how many it served
        self._changed = True

    def decide(self, snapshot: Snapshot) -> Decision:
        """The policy's decision if it is due and may be asked, else its last plan carried on."""
        self._iterations += 1
        self._changed |= not np.array_equal(snapshot.request_id, self._ids)
        self._ids = snapshot.request_id
        due = self._changed or self._iterations >= self._replan_after
        if due and snapshot.time_s >= self._next_s:
            return self._ask(snapshot)
        if self._ranks is None:
            return Decision()
        carried_on = self._carry_on(snapshot, self._ranks)
        return self._ask(snapshot) if carried_on is None else carried_on

    def finished(self, request_id: int) -> None:
        """Tell the policy."""
        self._policy.finished(request_id)

    def _ask(self, snapshot: Snapshot) -> Decision:
        decision = self._policy.decide(snapshot)
        self._next_s = snapshot.time_s + self._pause_s
        self._changed = False
        self._iterations = 0
        self._replan_after = decision.replan_after
        self._ranks = None
        if decision.final:
            return decision
        if decision.action is not None:
            ids = snapshot.request_id[decision.order].tolist()
            self._ranks = {request: rank for rank, request in enumerate(ids)}
            self._size = int((decision.action == Action.SERVE).sum())
        # Asked at every iteration, to carry the plan on.
        return Decision(decision.action, decision.order, decision.plan, replan_after=1)

    def _carry_on(self, snapshot: Snapshot, ranks: dict[int, int]) -> Decision | None:
        """The last plan now; None if it has to be made anew: residents do not fit any more."""
        n = snapshot.num_requests
        newest = len(ranks)
        rank = np.array(
            [ranks.get(request, newest) for request in snapshot.request_id.tolist()],
            dtype=np.int64,
        )
        running = snapshot.state == State.RUNNING
        held = snapshot.state == State.HELD
        room = snapshot.capacity_tokens - int(snapshot.need_tokens[held].sum())
        # Residents first, then the plan's order; newcomers came after it.
        order = np.lexsort((snapshot.arrival_s, rank, ~running))
        inside = order[: int(running.sum())]
        outside = order[inside.size :]
        outside = outside[~held[outside]]
        known = outside[rank[outside] < newest][: max(0, self._size - inside.size)]
        candidates = np.concatenate((inside, known, outside[rank[outside] == newest]))
        places = max(0, snapshot.max_batch - int(held.sum()))  # held requests keep theirs
        serve = fits_in_order(candidates, snapshot.need_tokens, room, places)
        if not serve.any() or not serve[running].all():
            return None
        action = np.full(n, Action.WAIT, dtype=np.int8)
        action[serve] = Action.SERVE
        action[held] = Action.HOLD
        return Decision(action, order, replan_after=1)
