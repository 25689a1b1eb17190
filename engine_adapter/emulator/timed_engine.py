"""
One engine in virtual time: what its thread and its GPU do when.

The thread schedules, the GPU runs. An iteration starts when the GPU is free and its schedule is
there, and takes what the engine's profile says. With asynchronous scheduling the thread schedules
iteration k + 1 while k runs, and processes k's tokens at its end. So a request that arrives in
the middle of an iteration waits for the rest of it, for one that is dispatched already, and for
its own.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any

from andes_opt.engine_loop import MAX_IDLE_STEPS
from andes_opt.snapshot import Starved
from engine_adapter.emulator.engine_core import EngineCore, depth_of
from engine_adapter.emulator.runner import OneTokenRunner, Prefills

if TYPE_CHECKING:
    from andes_opt.latency import LatencyModel
    from engine_adapter.emulator.engine_core import Worker
    from engine_adapter.emulator.virtual_clock import VirtualClock

#: How long vLLM's engine core sleeps after a step without work while requests are there.
_IDLE_S = 0.001


class TimedEngine(EngineCore):
    """
    A scheduler in virtual time.

    Parameters
    ----------
    scheduler
        A vLLM scheduler, constructed.
    latency
        How long an iteration takes.
    clock
        Shared by all engines, and by the adapter in the scheduler.
    worker
        Runs the iterations; None for one that answers with one and the same token.
    record_timeline
        Whether to keep a row per iteration.

    Attributes
    ----------
    thread_s, gpu_s, sent_s
        When the thread and the GPU are free, and when the last outputs went out.
    iterations, busy_s
        Iterations so far, and the time that the GPU has worked.
    cached_tokens
        Tokens of admitted requests that the prefix cache had.
    charged_s
        What the adapter's work took of the thread.
    timeline
        A row per iteration: :data:`andes_opt.simulator.TIMELINE_COLUMNS`.
    """

    def __init__(
        self,
        scheduler: Any,
        latency: LatencyModel,
        clock: VirtualClock,
        worker: Worker | None = None,
        record_timeline: bool = False,
    ) -> None:
        self._prefills = Prefills(scheduler)
        super().__init__(scheduler, worker or OneTokenRunner(self._prefills), depth_of(scheduler))
        self._latency = latency
        self._clock = clock
        self._adapter = getattr(scheduler, "andes", None)
        self._ends: deque[float] = deque()  # of the iterations in flight
        self._left: set[str] = set()
        self._idle_steps = 0
        self.thread_s = self.gpu_s = self.sent_s = 0.0
        self.iterations = 0
        self.busy_s = 0.0
        self.cached_tokens = 0
        self.charged_s = 0.0
        self.timeline: list[tuple[float, ...]] | None = [] if record_timeline else None

    @property
    def next_s(self) -> float:
        """When the engine's thread does something next; infinite if it waits for requests."""
        if self.queue or self.scheduler.has_requests():
            return self.thread_s
        return math.inf

    def add(self, request: Any, now_s: float) -> None:
        """Let a request arrive; it is seen when the thread turns to its queue."""
        self.thread_s = max(self.thread_s, now_s)
        self.scheduler.add_request(request)

    def step(self) -> list[Any]:
        """
        One turn of the thread: schedule, and process the oldest output if it has to.

        Returns
        -------
        list
            vLLM's outputs for clients, which go out at :attr:`sent_s`.
        """
        scheduler = self.scheduler
        worked = False
        if scheduler.has_requests():
            self._clock.now_s = self.thread_s
            output = self.dispatch()
            worked = output.total_num_scheduled_tokens > 0
            if self.goes_on(output):
                self._rest(worked)
                return []
        items: list[Any] = []
        if self.queue:
            self.thread_s = max(self.thread_s, self._ends.popleft())
            self._clock.now_s = self.sent_s = self.thread_s
            items = self.collect()
        self._rest(worked)
        return items

    def dispatch(self) -> Any:
        """Schedule an iteration, and say when it ends."""
        adapter = self._adapter
        before_s, held = (adapter.report.adapter_s, adapter.report.held) if adapter else (0.0, 0)
        output = super().dispatch()
        if adapter is not None:
            held = adapter.report.held - held
            charge_s = adapter.report.adapter_s - before_s
            self.thread_s += charge_s
            self.charged_s += charge_s
        work = self._work
        end_s = self.thread_s
        if output.total_num_scheduled_tokens:
            took_s = self._latency.iteration_s(
                work.decoding, work.context_tokens, work.prefill_tokens
            )
            self.gpu_s = end_s = max(self.gpu_s, self.thread_s) + took_s
            self.iterations += 1
            self.busy_s += took_s
            self.cached_tokens += work.cached_tokens
            if self.timeline is not None:
                self._sample(end_s, held)
        self._ends.append(end_s)
        return output

    def scheduled(self, output: Any) -> None:
        """Look at what an iteration computes, and at the requests that have left."""
        self._work = self._prefills.look(output)
        self._left |= output.finished_req_ids

    def take_left(self) -> set[str]:
        """Returns the requests that the scheduler let go since the last call."""
        left, self._left = self._left, set()
        return left

    def _rest(self, worked: bool) -> None:
        """Sleep as vLLM does if nothing was scheduled though requests are there."""
        if worked or not self.scheduler.has_requests():
            self._idle_steps = 0
            return
        self._idle_steps += 1
        self.thread_s += _IDLE_S

    def check_progress(self) -> None:
        """
        Refuse to go on for ever.

        Raises
        ------
        Starved
            If the scheduler has not scheduled anything for 10,000 steps.
        """
        if self._idle_steps >= MAX_IDLE_STEPS:
            raise Starved(
                f"{type(self.scheduler).__name__} scheduled nothing for {MAX_IDLE_STEPS} steps in "
                f"a row while {len(self.scheduler.requests)} requests waited."
            )

    def _sample(self, end_s: float, held: int) -> None:
        scheduler = self.scheduler
        pool = scheduler.kv_cache_manager.block_pool
        used = pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()
        assert self.timeline is not None
        self.timeline.append(
            (
                end_s,
                self._work.decoding,
                self._work.prefill_tokens,
                used * scheduler.block_size,
                len(scheduler.requests) - len(scheduler.running),
                held,
            )
        )
