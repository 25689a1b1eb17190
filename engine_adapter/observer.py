"""What the adapter learns from an engine between and during its iterations."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

from andes_opt.snapshot import State
from engine_adapter.iteration_log import IterationLog
from engine_adapter.targets import read_target
from engine_adapter.tracker import ReaderTracker

if TYPE_CHECKING:
    from collections.abc import Callable

    from andes_opt.snapshot import Snapshot
    from engine_adapter.clock import Clock
    from engine_adapter.guard import Events
    from engine_adapter.internals import EngineView
    from engine_adapter.latency_learning import LatencyLearner
    from engine_adapter.report import Report
    from engine_adapter.settings import Settings

#: Arrivals on the wall clock further back than this are taken for a wrong clock.
_OLDEST_S = 60.0
#: What takes longer than this is no iteration: the engine was paused or asleep.
_LONGEST_S = 60.0
#: Weight of a new sample in the prefix cache's share of hits.
_HIT_GAIN = 0.05


class Observer:
    """
    Follows requests, readers and iteration times of one engine.

    Parameters
    ----------
    engine
        The engine.
    settings
        The adapter's options.
    learner
        The latency model.
    report
        Counts readers and the engine's time.
    events
        Where targets that are not understood are counted.
    clock
        Tells how old a request is when it arrives.

    Attributes
    ----------
    tracker
        The requests.
    headroom_blocks
        Blocks that plans leave free.
    longest_prompt
        Tokens of the longest prompt so far.
    unblocked
        True once a request of an earlier iteration has become steerable; planning resets it.
    iteration
        Number of the engine's iteration, a clock.
    """

    def __init__(
        self,
        engine: EngineView,
        settings: Settings,
        learner: LatencyLearner,
        report: Report,
        events: Events,
        clock: Clock,
    ) -> None:
        self._clock = clock
        self._engine = engine
        self._settings = settings
        self._learner = learner
        self._report = report
        self._events = events
        self.tracker = ReaderTracker(engine.block_tokens, engine.lookahead_tokens)
        self.longest_prompt = 0
        headroom = settings.headroom_blocks
        if headroom is None:
            headroom = max(1, engine.num_blocks // 100)
        headroom = max(headroom, engine.watermark_blocks)
        self._usable_blocks = max(1, engine.num_blocks - headroom)
        self.headroom_blocks = engine.num_blocks - self._usable_blocks

        self.iteration = 0
        self._blocked: list[Any] = []  # no policy may decide about them yet
        self.unblocked = False
        self._ran: list[Any] = []
        self._draining: list[tuple[int, Any]] = []  # last iteration to look at it, request
        self._last_start_s: float | None = None
        self._in_flight: deque[tuple[int, int, int] | None] = deque(maxlen=engine.depth)
        self._prompt_tokens = 0  # that the next iteration may compute of prompts under way
        self._cached_share = [0.0, 0.0]  # of new requests, of preempted ones
        path = settings.iterations_path
        self._log = None if path is None else IterationLog(path)

    def iteration_starts(self, now_s: float) -> tuple[int, list[int], bool]:
        """
        Look at what happened since the last iteration.

        Parameters
        ----------
        now_s
            Now, on the engine's clock.

        Returns
        -------
        tuple[int, list[int], bool]
            Tokens that reached clients, numbers of the requests that left, and whether
            a request became steerable, or no longer is, or lost its KV.
        """
        self._time_iteration(now_s)
        tokens = self._deliver(now_s)
        left = [self._left(key) for key in self._engine.finished_ids() if key in self.tracker]
        # The engine's owner may have preempted all requests, as for a change of weights.
        changed = not self._engine.running and self.note_lost(self._ran) > 0
        changed |= self._unblock() | self._block()
        changed |= self._arrivals(now_s)
        return tokens, left, changed

    def resync(self) -> list[int]:
        """After an error: forget requests that left unnoticed; their numbers come back."""
        return [self._left(key) for key in self.tracker if self._engine.find(key) is None]

    def close(self) -> None:
        """Close the file of iterations."""
        log, self._log = self._log, None
        if log is not None:
            self._written(log.close)

    def lost(self, request: Any) -> None:
        """Note that a request's KV was taken away; its last tokens may still be on their way."""
        self.tracker.preempted(request.request_id, request.num_tokens, request.num_preemptions)
        self._draining.append((self.iteration + self._engine.depth, request))

    def note_lost(self, requests: list[Any]) -> int:
        """Note which of the requests the engine has preempted; returns how many."""
        lost = [
            request
            for request in requests
            if request.request_id in self.tracker and self._engine.is_preempted(request)
        ]
        for request in lost:
            self.lost(request)
        return len(lost)

    def iteration_scheduled(
        self, running: list[Any], admitted: list[Any], scheduled: dict[str, int]
    ) -> None:
        """
        Learn from what the engine scheduled.

        Parameters
        ----------
        running
            Requests with KV now.
        admitted
            Those of them that were admitted in this iteration.
        scheduled
            Request id to tokens computed.
        """
        self._ran = running
        for request in admitted:
            tokens = scheduled.get(request.request_id, 0)
            if tokens and request.num_tokens:
                cached = max(0, request.num_computed_tokens - tokens)
                share = cached / request.num_tokens
                kind = int(request.num_preemptions > 0)
                if kind:
                    self._report.resumed_tokens += request.num_tokens
                    self._report.resumed_cached_tokens += cached
                self._cached_share[kind] += _HIT_GAIN * (share - self._cached_share[kind])
        self._in_flight.append(self._features(scheduled))
        self.iteration += 1

    def snapshot(self, now_s: float, held: set[str]) -> tuple[Snapshot, list[str]]:
        """
        The engine as a policy sees it.

        Parameters
        ----------
        now_s
            Now, on the engine's clock.
        held
            Ids of the requests that are held.

        Returns
        -------
        tuple[Snapshot, list[str]]
            The snapshot, and the engine's id of each of its requests.
        """
        engine = self._engine
        self.refresh(held)
        return self.tracker.snapshot(
            now_s,
            capacity_tokens=self.capacity_blocks() * engine.block_tokens,
            max_batch=self.places(),
            token_budget=engine.token_budget,
            latency=self._learner.model,
            max_candidates=self._settings.max_candidates,
            cached_share=(self._cached_share[0], self._cached_share[1]),
        )

    def places(self) -> int:
        """Returns the places in the batch for plans: all but those that other requests keep."""
        engine = self._engine
        not_ours = sum(not engine.steerable(request) for request in engine.running)
        return max(0, engine.max_batch - not_ours - engine.parked)

    def refresh(self, held: set[str]) -> None:
        """Look how far the resident requests are."""
        engine = self._engine
        ours = [request for request in engine.running if engine.steerable(request)]
        groups = [(State.RUNNING, ours)]
        if held:
            groups = [
                (State.RUNNING, [r for r in ours if r.request_id not in held]),
                (State.HELD, [r for r in ours if r.request_id in held]),
            ]
        for state, group in groups:
            self.tracker.resident(
                [request.request_id for request in group],
                engine.computed_tokens(group),
                engine.context_tokens(group),
                state,
            )

    def capacity_blocks(self) -> int:
        """Returns the blocks for plans: all but the head-room and what other requests hold."""
        engine = self._engine
        used = engine.num_blocks - engine.free_blocks()
        ours = self.tracker.resident_tokens() // engine.block_tokens
        return max(1, self._usable_blocks - max(0, used - ours))

    def room_blocks(self) -> int:
        """Returns the free blocks beyond the head-room."""
        engine = self._engine
        return engine.free_blocks() - self.headroom_blocks

    def short_of_blocks(self, hold: set[str]) -> bool:
        """Returns whether the next iteration, without the requests on hold, would preempt."""
        engine = self._engine
        free = engine.free_blocks()
        running = engine.running
        # A request that decodes takes one block at most; only prompts under way may take more.
        if free >= len(running) + self._prompt_tokens // engine.block_tokens:
            return False
        if hold:
            running = [request for request in running if request.request_id not in hold]
        block = engine.block_tokens
        if not self._prompt_tokens and not engine.lookahead_tokens:
            return sum(done % block == 0 for done in engine.computed_tokens(running)) > free
        need, budget = 0, engine.token_budget
        for done, context in zip(
            engine.computed_tokens(running), engine.context_tokens(running), strict=True
        ):
            if budget <= 0:
                break
            chunk = max(1, min(context - done, budget))
            budget -= chunk
            need += -(-(done + chunk + engine.lookahead_tokens) // block) - -(-done // block)
        return need > free

    def _time_iteration(self, now_s: float) -> None:
        in_flight = self._in_flight
        if self._last_start_s is not None and in_flight and in_flight[-1] is not None:
            duration_s = now_s - self._last_start_s
            if duration_s <= _LONGEST_S:
                self._count_iteration(duration_s)
        self._last_start_s = now_s

    def _count_iteration(self, duration_s: float) -> None:
        self._report.engine_s += duration_s
        # With several iterations in flight the engine waits for the oldest of them.
        oldest = self._in_flight[0]
        if oldest is not None and len(self._in_flight) == self._engine.depth:
            self._learner.observe(duration_s, *oldest)
            if self._log is not None:
                self._written(partial(self._log.add, duration_s, *oldest))

    def _written(self, write: Callable[[], None]) -> None:
        """Write to the file of iterations; a full disk ends that file and nothing else."""
        try:
            write()
        except OSError as error:
            self._log = None
            self._events.record("iterations not written", str(error))

    def _deliver(self, now_s: float) -> int:
        ran = self._ran
        if self._draining:
            ran = [*ran, *(request for _, request in self._draining)]
            self._draining = [item for item in self._draining if item[0] > self.iteration]
        keys = [request.request_id for request in ran]
        return self.tracker.delivered(keys, self._engine.output_tokens(ran), now_s)

    def _left(self, key: str) -> int:
        qoe = self.tracker.qoe_area(key)
        if qoe is not None:
            self._report.add_reader(qoe)
        return self.tracker.remove(key)

    def _arrivals(self, now_s: float) -> bool:
        engine, tracker = self._engine, self.tracker
        new = []
        for request in engine.newest_first():
            if request.request_id in tracker:
                break
            new.append(request)
        wall_s = self._clock.time_s()
        for request in reversed(new):
            # The request carries the wall clock of its front-end.
            age_s = wall_s - request.arrival_time
            age_s = age_s if 0.0 <= age_s <= _OLDEST_S else 0.0
            target, complaint = read_target(engine.extra_args(request), self._settings.target)
            if complaint is not None:
                self._events.record("target not understood", complaint)
            self.longest_prompt = max(self.longest_prompt, request.num_prompt_tokens)
            steerable = engine.steerable(request)
            if not steerable:
                self._blocked.append(request)
            tracker.add(
                request.request_id,
                now_s - age_s,
                request.num_prompt_tokens,
                request.num_prompt_tokens + request.max_tokens,
                target,
                steerable=steerable,
            )
        return bool(new)

    def _block(self) -> bool:
        """Take requests out of the policies' sight that the engine has passed over."""
        new = [
            request
            for request in self._engine.passed_over()
            if request.request_id in self.tracker
            and not self._engine.steerable(request)
            and self.tracker.mark_steerable(request.request_id, steerable=False)
        ]
        self._blocked += new
        return bool(new)

    def _unblock(self) -> bool:
        """Let policies see requests that no longer wait for a grammar or for KV from elsewhere."""
        if not self._blocked:
            return False
        engine = self._engine
        here = [request for request in self._blocked if engine.find(request.request_id) is request]
        freed = [request for request in here if engine.steerable(request)]
        for request in freed:
            self.tracker.mark_steerable(request.request_id)
        self._blocked = [request for request in here if not engine.steerable(request)]
        self.unblocked |= bool(freed)
        return bool(freed)

    def _features(self, scheduled: dict[str, int]) -> tuple[int, int, int] | None:
        """Returns requests that decode, their context, and prompt tokens; None for no work."""
        if not scheduled:
            return None
        most = 1 + self._engine.lookahead_tokens
        prompts = {key: tokens for key, tokens in scheduled.items() if tokens > most}
        decoding = [
            request
            for request in self._ran
            if request.request_id in scheduled and request.request_id not in prompts
        ]
        context = sum(self._engine.computed_tokens(decoding))
        self._prompt_tokens = self._engine.token_budget if prompts else 0
        return len(decoding), context, sum(prompts.values())
