"""Policies that are hard on an engine."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from andes_opt.snapshot import Action, Decision

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from andes_opt.snapshot import Snapshot


def placed(action: NDArray[np.int8], order: NDArray[np.int64], snapshot: Snapshot) -> Decision:
    """A decision that lets the last of the order wait, so that the batch has places for all."""
    taken = np.cumsum(action[order] != Action.WAIT)
    action[order[taken > snapshot.max_batch]] = Action.WAIT
    return Decision(action=action, order=order)


class Random:
    """Serve, hold and evict at random; sometimes pass through."""

    def __init__(
        self,
        seed: int,
        serve: float = 0.5,
        hold: float = 0.3,
        pass_through: float = 0.1,
        replan_within: int = 4,
        serves_one: bool = False,
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self._shares = [1.0 - serve - hold, serve, hold]
        self._pass_through = pass_through
        self._replan_within = replan_within
        self._serves_one = serves_one

    def decide(self, snapshot: Snapshot) -> Decision:
        """Anything at all."""
        rng, n = self._rng, snapshot.num_requests
        replan_after = int(rng.integers(1, self._replan_within + 1))
        if rng.random() < self._pass_through:
            return Decision(replan_after=replan_after)
        action = rng.choice(3, size=n, p=self._shares).astype(np.int8)
        order = rng.permutation(n)
        if self._serves_one and n:
            action[order[0]] = Action.SERVE
        return replace(placed(action, order, snapshot), replan_after=replan_after)

    def finished(self, request_id: int) -> None:
        """Nothing is kept."""


class Feasible:
    """
    Priorities at random that change now and then; serves and holds what fits by them.

    At least one request is served if any can be, so that an engine never has to step in.
    """

    def __init__(self, seed: int = 0, pass_through: float = 0.1, replan_within: int = 4) -> None:
        self._rng = np.random.default_rng(seed)
        self._pass_through = pass_through
        self._replan_within = replan_within
        self._priority: dict[int, float] = {}

    def decide(self, snapshot: Snapshot) -> Decision:
        """Go through the requests by priority while places and KV last."""
        rng = self._rng
        replan_after = int(rng.integers(1, self._replan_within + 1))
        if rng.random() < self._pass_through:
            return Decision(replan_after=replan_after)
        for number in snapshot.request_id.tolist():
            if number not in self._priority or rng.random() < 0.03:
                self._priority[number] = rng.random()
        order = np.argsort([self._priority[i] for i in snapshot.request_id.tolist()], kind="stable")
        action = np.full(snapshot.num_requests, Action.WAIT, dtype=np.int8)
        places, room = snapshot.max_batch, snapshot.capacity_tokens
        for i in order:
            if places == 0 or snapshot.need_tokens[i] > room:
                continue
            resident = snapshot.kv_tokens[i] > 0
            hold = places < snapshot.max_batch and resident and rng.random() < 0.3
            action[i] = Action.HOLD if hold else Action.SERVE
            places -= 1
            room -= snapshot.need_tokens[i]
        return Decision(action=action, order=order, replan_after=replan_after)

    def finished(self, request_id: int) -> None:
        """Forget the request."""
        self._priority.pop(request_id, None)


class Always:
    """The same action for everybody."""

    def __init__(self, action: str) -> None:
        self._action = Action[action]

    def decide(self, snapshot: Snapshot) -> Decision:
        """One action."""
        n = snapshot.num_requests
        return placed(np.full(n, self._action, dtype=np.int8), np.arange(n), snapshot)

    def finished(self, request_id: int) -> None:
        """Nothing is kept."""


class Storm:
    """Serve the oldest half and evict the rest, then the other way round."""

    def __init__(self) -> None:
        self._turn = 0

    def decide(self, snapshot: Snapshot) -> Decision:
        """Everybody resident is evicted every time."""
        n = snapshot.num_requests
        self._turn += 1
        action = np.full(n, Action.WAIT, dtype=np.int8)
        action[self._turn % 2 :: 2] = Action.SERVE
        return replace(placed(action, np.arange(n), snapshot), replan_after=3)

    def finished(self, request_id: int) -> None:
        """Nothing is kept."""


class Broken:
    """Fails in a chosen way, always or now and then."""

    def __init__(self, how: str, every: int = 1) -> None:
        self._how = how
        self._every = every
        self._calls = 0

    def decide(self, snapshot: Snapshot) -> Decision:
        """Nonsense of the chosen kind."""
        n = snapshot.num_requests
        order = np.arange(n)
        serve = np.full(n, Action.SERVE, dtype=np.int8)
        self._calls += 1
        if self._calls % self._every:
            return Decision(action=serve, order=order)
        if self._how == "raise":
            raise RuntimeError("the back-end crashed")
        if self._how == "slow":
            time.sleep(0.03)
            return Decision(action=serve, order=order)
        if self._how == "none":
            return None  # type: ignore[return-value]
        if self._how == "shape":
            return Decision(action=serve[:-1], order=order)
        if self._how == "nan_action":
            return Decision(action=np.full(n, np.nan), order=order)  # type: ignore[arg-type]
        if self._how == "value":
            return Decision(action=np.full(n, 7, dtype=np.int8), order=order)
        if self._how == "twice":
            return Decision(action=serve, order=np.zeros(n + 1, dtype=np.int64))
        if self._how == "outside":
            return Decision(action=serve, order=order + 1)
        if self._how == "replan":
            return Decision(action=serve, order=order, replan_after=0)
        raise ValueError(f"how = {self._how!r} not understood.")

    def finished(self, request_id: int) -> None:
        """Fails as well."""
        if self._how == "raise":
            raise RuntimeError("the back-end crashed")


class Sleepy:
    """Serves everybody in reverse order of arrival, after a sleep; may die or hang."""

    def __init__(self, sleep_s: float = 0.0, dies: bool = False, prints: bool = False) -> None:
        self._sleep_s = sleep_s
        self._dies = dies
        self._prints = prints

    def decide(self, snapshot: Snapshot) -> Decision:
        """Last come, first served."""
        import os

        if self._prints:
            print("solver banner")
        time.sleep(self._sleep_s)
        if self._dies:
            os._exit(1)
        n = snapshot.num_requests
        return placed(np.full(n, Action.SERVE, dtype=np.int8), np.arange(n)[::-1].copy(), snapshot)

    def finished(self, request_id: int) -> None:
        """Nothing is kept."""


class NewestFirst:
    """Serves from the latest arrival on whoever fits, after a sleep."""

    def __init__(self, sleep_s: float = 0.0) -> None:
        self._sleep_s = sleep_s

    def decide(self, snapshot: Snapshot) -> Decision:
        """The newest that fit together."""
        time.sleep(self._sleep_s)
        order = np.argsort(-snapshot.request_id, kind="stable")
        held = np.cumsum(snapshot.need_tokens[order])
        action = np.full(snapshot.num_requests, Action.WAIT, dtype=np.int8)
        action[order[held <= snapshot.capacity_tokens]] = Action.SERVE
        return placed(action, order, snapshot)

    def finished(self, request_id: int) -> None:
        """Nothing is kept."""


class Cold(Sleepy):
    """The first decision of a process that is about anybody takes long, as if it compiled."""

    warm: ClassVar[bool] = False

    def decide(self, snapshot: Snapshot) -> Decision:
        """Last come, first served."""
        if snapshot.num_requests and not Cold.warm:
            time.sleep(1.5)
            Cold.warm = True
        return super().decide(snapshot)


class Recorder(Random):
    """Random, and shows every snapshot to the test."""

    snapshots: ClassVar[list[Snapshot]] = []
    on_decide: ClassVar[Callable[[Snapshot], None] | None] = None

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        type(self).snapshots.clear()

    def decide(self, snapshot: Snapshot) -> Decision:
        """Random actions."""
        type(self).snapshots.append(snapshot)
        check = type(self).on_decide
        if check is not None:
            check(snapshot)
        return super().decide(snapshot)


class HoldFirst:
    """Serves everybody, but holds the first arrival once it has some tokens."""

    def __init__(self, after: int) -> None:
        self._after = after

    def decide(self, snapshot: Snapshot) -> Decision:
        """Hold while there are others."""
        n = snapshot.num_requests
        action = np.full(n, Action.SERVE, dtype=np.int8)
        if n > 1 and snapshot.generated_tokens[0] >= self._after:
            action[0] = Action.HOLD
        return placed(action, np.arange(n), snapshot)

    def finished(self, request_id: int) -> None:
        """Nothing is kept."""


class Batch:
    """Serves the last arrivals, so many at once; asked seldom."""

    def __init__(self, size: int) -> None:
        self._size = size

    def decide(self, snapshot: Snapshot) -> Decision:
        """Last come, first served."""
        n = snapshot.num_requests
        order = np.arange(n)[::-1].copy()
        action = np.full(n, Action.WAIT, dtype=np.int8)
        action[order[: self._size]] = Action.SERVE
        return replace(placed(action, order, snapshot), replan_after=1000)

    def finished(self, request_id: int) -> None:
        """Nothing is kept."""
