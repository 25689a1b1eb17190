"""Arranging an engine's queues: evict, order, take out of sight, and put back."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections import deque

    from engine_adapter.guard import Events
    from engine_adapter.internals import EngineView
    from engine_adapter.observer import Observer
    from engine_adapter.plan_in_force import PlanInForce
    from engine_adapter.report import Report


class Queues:
    """
    Makes the engine see just what a plan wants it to see, one iteration at a time.

    Parameters
    ----------
    engine
        The engine.
    observer
        Knows the requests.
    report
        Counts evictions and holds.
    events
        Where evictions that fail are counted.

    Attributes
    ----------
    visible
        Running requests that the engine saw in this iteration, as they were before it.
    held
        Ids of those that were out of its sight.
    """

    def __init__(
        self, engine: EngineView, observer: Observer, report: Report, events: Events
    ) -> None:
        self._engine = engine
        self._observer = observer
        self._report = report
        self._events = events
        self.visible: list[Any] = []
        self.held: set[str] = set()
        self._hidden: list[Any] = []
        self._rest: deque[Any] | None = None
        self._front: set[str] = set()  # who stands in front of the queue, to be seen
        self._outside: set[str] = set()  # those of them that no policy could decide about
        self._evicted: set[str] = set()  # in this iteration
        self._reordered = False

    def arrange(self, plan: PlanInForce) -> None:
        """
        Evict whom a new plan lets wait, and put whom it serves in front of the queue.

        Parameters
        ----------
        plan
            The plan; holds of requests without KV become waits, and of those that the engine
            has to see, serves.
        """
        engine = self._engine
        self._evict(plan)
        running, rank = engine.running, plan.rank
        resident = {request.request_id for request in running}
        plan.wait |= plan.hold - resident
        plan.hold &= resident
        seen = {r.request_id for r in running if not engine.holdable(r)} & plan.hold
        plan.hold -= seen
        plan.serve |= seen
        plan.size += len(seen)

        # The engine computes in this order and preempts from the end. Prompts come last, as the
        # engine has it, so that they do not take the token budget from replies under way.
        urgency = [
            (context - computed > 1, rank.get(request.request_id, -1))
            for request, context, computed in zip(
                running,
                engine.context_tokens(running),
                engine.computed_tokens(running),
                strict=True,
            )
        ]
        order = sorted(range(len(running)), key=urgency.__getitem__)
        engine.running = [running[i] for i in order]

        outside, served, rest = [], [], []
        for request in engine.waiting:
            if request.request_id in plan.wait:
                rest.append(request)
            elif request.request_id in plan.serve:
                served.append(request)
            elif engine.steerable(request):
                rest.append(request)
            else:
                outside.append(request)
        served.sort(key=lambda r: rank[r.request_id])
        engine.waiting = engine.queue_of([*outside, *served, *rest])
        self._outside = {request.request_id for request in outside}
        # Also who runs: if the engine preempts them, they come back to the very front.
        self._front = self._outside | plan.serve | (resident - plan.hold)
        self._reordered = True

    def idle(self, plan: PlanInForce | None) -> bool:
        """True if a plan has nobody left to serve."""
        if plan is None or any(r.request_id not in plan.hold for r in self._engine.running):
            return False
        waiting = self._engine.waiting
        return not (waiting and waiting[0].request_id in self._front)

    def newcomers_wait(self, plan: PlanInForce) -> bool:
        """True if somebody waits who came after a plan's snapshot."""
        waiting = self._engine.waiting
        return bool(waiting) and self._observer.tracker.number(waiting[-1].request_id) > plan.newest

    def hide(self, plan: PlanInForce | None) -> None:
        """
        Take out of the engine's sight whoever is held or has to wait.

        Parameters
        ----------
        plan
            The plan in force; None for the engine's own order of arrival.
        """
        engine = self._engine
        hold = plan.hold if plan is not None else set()
        if hold or self.held:
            # A token in flight when the hold began must arrive before the request goes on:
            # the engine's workers get its reply anew and would miss it.
            self._hide_running(
                [
                    request
                    for request in engine.running
                    if request.request_id in hold
                    or (request.request_id in self.held and engine.in_flight(request))
                ]
            )
        self.visible = list(engine.running)

        if plan is not None:
            self._hide_waiting(plan)
        elif self._reordered:
            number = self._observer.tracker.number
            engine.waiting = engine.queue_of(
                sorted(engine.waiting, key=lambda r: number(r.request_id))
            )
            self._reordered = False

    def restore(self) -> int:
        """Put back everything that is hidden; how many running requests that was."""
        engine = self._engine
        if self._rest is not None:
            rest, self._rest = self._rest, None
            rest.extendleft(reversed(engine.waiting))
            engine.waiting = rest
        self._evicted.clear()
        hidden, self._hidden = self._hidden, []
        if hidden:
            # At the end, where the engine looks for victims: they are the ones to spare.
            engine.running.extend(hidden)
            engine.limit_batch(engine.max_batch)
        return len(hidden)

    def _evict(self, plan: PlanInForce) -> None:
        engine = self._engine
        victims = [request for request in engine.running if request.request_id in plan.wait]
        if not victims:
            return
        engine.running = [r for r in engine.running if r.request_id not in plan.wait]
        now_s = time.monotonic()
        for request in victims:
            try:
                engine.evict(request, now_s)
            except Exception as error:
                # A request in no queue would be lost.
                engine.running.append(request)
                self._events.record("eviction failed", f"{type(error).__name__}: {error}")
                continue
            self._evicted.add(request.request_id)
            self._observer.lost(request)
            self._report.evicted += 1

    def _hide_running(self, requests: list[Any]) -> None:
        engine = self._engine
        self.held = {request.request_id for request in requests}
        if not requests:
            return
        seen = [r for r in engine.running if r.request_id not in self.held]
        # Whoever is hidden keeps a slot of the batch.
        engine.limit_batch(engine.max_batch - len(requests))
        engine.running, self._hidden = seen, requests
        self._report.held += len(requests)

    def _hide_waiting(self, plan: PlanInForce) -> None:
        engine = self._engine
        everyone = list(engine.waiting)
        try:
            front, rest = self._split(engine.waiting, plan)
        except Exception:
            engine.waiting = engine.queue_of(everyone)
            raise
        engine.waiting, self._rest = engine.queue_of(front), rest

    def _split(self, queue: deque[Any], plan: PlanInForce) -> tuple[list[Any], deque[Any]]:
        """Those at the front whom the engine shall see, whoever else fits, and the rest."""
        front, unblocked = self._take_front(queue)
        number = self._observer.tracker.number
        fresh = []
        while queue and number(queue[-1].request_id) > plan.newest:
            fresh.append(queue.pop())

        admitted: list[Any] = []
        places = plan.size - len(self._engine.running) - len(front)
        if fresh or (queue and places > 0):
            need = self._observer.tracker.need_blocks
            room = self._observer.room_blocks() - len(self._engine.running)
            room -= sum(need(request.request_id) for request in front)
            spare, room = self._spare(plan, places, room)
            if spare:
                chosen = {request.request_id: request for request in queue}
                front += [chosen[key] for key in spare if key in chosen]
                queue = self._engine.queue_of(r for r in queue if r.request_id not in spare)
            admitted = self._admissible(fresh, room)
            front += admitted
            self._front.update(request.request_id for request in front)
        # By place, not by id: an id may be that of one who was seen before.
        queue.extend(list(reversed(fresh))[len(admitted) :])
        queue.extendleft(reversed(unblocked))
        return front, queue

    def _take_front(self, queue: deque[Any]) -> tuple[list[Any], list[Any]]:
        """
        Take off whoever stands in front to be seen.

        Apart from them those who had to be seen because no policy could decide about them (their
        grammar was not there, say) and can be decided about by now: the next plan does that, and
        until then they must not stand in the way of those whom this plan serves.
        """
        front, unblocked = [], []
        while queue and queue[0].request_id in self._front:
            request = queue.popleft()
            if request.request_id in self._outside and self._engine.steerable(request):
                self._front.discard(request.request_id)
                self._outside.discard(request.request_id)
                unblocked.append(request)
            else:
                front.append(request)
        return front, unblocked

    def _spare(self, plan: PlanInForce, places: int, room: int) -> tuple[dict[str, None], int]:
        """The next in a plan's order for the places of those who have left; room after them."""
        need, engine = self._observer.tracker.need_blocks, self._engine
        chosen: dict[str, None] = {}
        later = []
        while places > 0 and (key := plan.next_spare()) is not None:
            request = engine.find(key)
            if request is None or not engine.waits(request):
                continue
            if key in self._evicted:
                # The engine's workers want to hear first that its KV is gone.
                later.append(key)
                continue
            if need(key) > room:
                later.append(key)
                break
            room -= need(key)
            places -= 1
            chosen[key] = None
        for key in reversed(later):
            plan.put_back(key)
        return chosen, room

    def _admissible(self, fresh: list[Any], room: int) -> list[Any]:
        """The first to arrive of those whom the plan does not know, as far as its room goes."""
        need, engine = self._observer.tracker.need_blocks, self._engine
        admitted = []
        for request in reversed(fresh):
            if engine.steerable(request):
                room -= need(request.request_id)
                if room < 0:
                    break
            else:
                self._outside.add(request.request_id)
            admitted.append(request)
        return admitted
