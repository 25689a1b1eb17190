"""What a plan does to an engine's queues: evict, order, hide, and put back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections import deque

    from engine_adapter.clock import Clock
    from engine_adapter.guard import Events
    from engine_adapter.internals import EngineView
    from engine_adapter.observer import Observer
    from engine_adapter.plan_in_force import PlanInForce
    from engine_adapter.report import Report


class Queues:
    """
    Shows the engine just the requests that a plan wants it to see, one iteration at a time.

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
    clock
        Dates evictions.

    Attributes
    ----------
    visible
        Running requests that the engine saw in this iteration, as they were before it.
    held
        Ids of the running requests that were hidden.
    """

    def __init__(
        self,
        engine: EngineView,
        observer: Observer,
        report: Report,
        events: Events,
        clock: Clock,
    ) -> None:
        self._clock = clock
        self._engine = engine
        self._observer = observer
        self._report = report
        self._events = events
        self.visible: list[Any] = []
        self.held: set[str] = set()
        self._hidden: list[Any] = []
        self._rest: deque[Any] | None = None
        self._front: set[str] = set()  # ids of those in front of the queue, to be seen
        self._outside: set[str] = set()  # those of them that were not steerable
        self._evicted: set[str] = set()  # in this iteration
        self._reordered = False
        self._limited = False

    def arrange(self, plan: PlanInForce) -> None:
        """
        Evict the requests that a new plan lets wait, and put those that it serves in front.

        Parameters
        ----------
        plan
            The plan. Holds of requests without KV become waits, and of those that the engine
            has to see, serves.
        """
        engine = self._engine
        self._evict(plan)
        resident = {request.request_id for request in engine.running}
        plan.wait |= plan.hold - resident
        plan.hold &= resident
        seen = {r.request_id for r in engine.running if not engine.holdable(r)} & plan.hold
        plan.hold -= seen
        plan.serve |= seen
        plan.size += len(seen)
        self._order_running(plan.rank)
        self._order_waiting(plan)
        # Also those that run: if the engine preempts them, they come back to the very front.
        self._front = self._outside | plan.serve | (resident - plan.hold)
        self._reordered = True

    def _order_running(self, rank: dict[str, int]) -> None:
        # The engine computes in this order and preempts from the end. Prompts come last, as the
        # engine has it, so that they do not take the token budget from replies under way.
        engine, running = self._engine, self._engine.running
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

    def _order_resumed(self) -> None:
        """In the engine's own order, who was held comes last: the oldest first, prompts behind."""
        engine, running = self._engine, self._engine.running
        held = [request for request in running if request.request_id in self.held]
        places = [
            (context - computed > 1, self._observer.tracker.number(request.request_id))
            for request, context, computed in zip(
                held, engine.context_tokens(held), engine.computed_tokens(held), strict=True
            )
        ]
        order = sorted(range(len(held)), key=places.__getitem__)
        others = [request for request in running if request.request_id not in self.held]
        engine.running = others + [held[i] for i in order]

    def _order_waiting(self, plan: PlanInForce) -> None:
        engine = self._engine
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
        served.sort(key=lambda r: plan.rank[r.request_id])
        engine.waiting = engine.queue_of([*outside, *served, *rest])
        self._outside = {request.request_id for request in outside}

    def idle(self, plan: PlanInForce | None) -> bool:
        """Returns whether a plan has no request left to serve."""
        if plan is None:
            return False
        engine, waiting = self._engine, self._engine.waiting
        return not (
            (waiting and waiting[0].request_id in self._front)
            or any(r.request_id not in plan.hold and not engine.ending(r) for r in engine.running)
        )

    def newcomers_wait(self, plan: PlanInForce) -> bool:
        """Returns whether a request waits that came after a plan's snapshot."""
        waiting = self._engine.waiting
        return bool(waiting) and self._observer.tracker.number(waiting[-1].request_id) > plan.newest

    def hide(self, plan: PlanInForce | None) -> None:
        """
        Hide the requests that are held or have to wait.

        Parameters
        ----------
        plan
            The plan in force; None for the engine's own order of arrival.
        """
        engine = self._engine
        if plan is None and self.held:
            self._order_resumed()
        # Who is held runs for once if the plan's last requests are about to end: an idle engine
        # is of use to nobody.
        hold = plan.hold if plan is not None and not self.idle(plan) else set()
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
        """Put back everything that is hidden; returns how many running requests that was."""
        engine = self._engine
        if self._rest is not None:
            rest, self._rest = self._rest, None
            rest.extendleft(reversed(engine.waiting))
            engine.waiting = rest
        self._evicted.clear()
        hidden, self._hidden = self._hidden, []
        # At the end, where the engine looks for requests to preempt: these can be spared.
        engine.running.extend(hidden)
        if self._limited:
            self._limited = False
            engine.limit_batch(engine.max_batch)
        return len(hidden)

    def _evict(self, plan: PlanInForce) -> None:
        engine = self._engine
        self._keep_one_busy(plan)
        victims = [request for request in engine.running if request.request_id in plan.wait]
        if not victims:
            return
        engine.running = [r for r in engine.running if r.request_id not in plan.wait]
        now_s = self._clock.monotonic_s()
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

    def _keep_one_busy(self, plan: PlanInForce) -> None:
        """
        Serve the most urgent victim, too, if those that a plan serves are all about to end.

        The policy can't know that their last tokens are being computed. Evicted requests come back
        no sooner than in the next iteration, so that this one would run empty.
        """
        engine = self._engine
        victims, staying = [], False
        for request in engine.running:
            key = request.request_id
            if key in plan.wait:
                victims.append(key)
            else:
                staying |= key not in plan.hold and not engine.ending(request)
        resident = {request.request_id for request in engine.running}
        if victims and not staying and plan.serve and plan.serve <= resident:
            key = min(victims, key=plan.rank.__getitem__)
            plan.wait.discard(key)
            plan.serve.add(key)

    def _hide_running(self, requests: list[Any]) -> None:
        engine = self._engine
        self.held = {request.request_id for request in requests}
        if not requests:
            return
        seen = [r for r in engine.running if r.request_id not in self.held]
        # A hidden request keeps its slot of the batch.
        engine.limit_batch(engine.max_batch - len(requests))
        self._limited = True
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
        """Returns the requests that the engine shall see, and the queue of the others."""
        front, unblocked = self._take_front(queue)
        number = self._observer.tracker.number
        fresh = []
        while queue and number(queue[-1].request_id) > plan.newest:
            fresh.append(queue.pop())

        admitted: list[Any] = []
        engine = self._engine
        running = sum(not engine.ending(request) for request in engine.running)
        places = plan.size - running - sum(engine.steerable(request) for request in front)
        if fresh or (queue and places > 0):
            need = self._observer.tracker.need_blocks
            room = self._observer.room_blocks() - len(engine.running)
            room -= sum(need(request.request_id) for request in front)
            spare, room = self._spare(plan, places, room)
            if spare:
                chosen = {request.request_id: request for request in queue}
                front += [chosen[key] for key in spare if key in chosen]
                queue = engine.queue_of(r for r in queue if r.request_id not in spare)
            admitted = self._admissible(fresh, room)
            front += admitted
            self._front.update(request.request_id for request in front)
        # By place, not by id: an earlier request may have had the same id.
        queue.extend(list(reversed(fresh))[len(admitted) :])
        queue.extendleft(reversed(unblocked))
        if engine.may_skip:
            return self._backed_up(front, queue, plan, running)
        return front, queue

    def _backed_up(
        self, front: list[Any], queue: deque[Any], plan: PlanInForce, running: int
    ) -> tuple[list[Any], deque[Any]]:
        """
        Let the others stand behind those in front, in the plan's order: it may pass over some.

        The limit of the batch lets in no more of them than the plan serves, so that one that is
        passed over does not count as served.
        """
        engine = self._engine
        expected = sum(engine.steerable(request) for request in front)
        if not expected:
            return front, queue
        by_id = {request.request_id: request for request in queue}
        backups = [
            by_id[key]
            for key in plan.spares()
            if key in by_id and key not in self._evicted and engine.waits(by_id[key])
        ]
        limit = len(engine.running) + engine.parked + max(plan.size - running, expected)
        engine.limit_batch(min(limit, engine.max_batch - len(self._hidden)))
        self._limited = True
        chosen = {request.request_id for request in backups}
        rest = engine.queue_of(r for r in queue if r.request_id not in chosen)
        return [*front, *backups], rest

    def _take_front(self, queue: deque[Any]) -> tuple[list[Any], list[Any]]:
        """
        Take off the requests that stand in front to be seen.

        Some had to be seen because they were not steerable (their grammar was not there, say), and
        are by now. They are returned apart: the next plan decides about them, and until then they
        must not stand in the way of requests that this plan serves.
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
        """Returns the next in a plan's order for places that became free, and the room left."""
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
        """Returns the newcomers that the plan's room holds, the first to arrive first."""
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
