"""
A slow policy beside the engine: a snapshot goes out, a plan comes back when it is ready.

The engine's thread never waits: a thread of the planner's own starts the process before the first
request comes, talks to it, gives up on a decision at its deadline, replaces a process that died,
and keeps to the duty cycle.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from andes_opt.worker_process import ONE_THREAD, WorkerError, WorkerProcess, pickled
from engine_adapter.clock import SystemClock
from engine_adapter.guard import LOGGER, check_decision
from engine_adapter.settings import instantiate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from andes_opt.snapshot import Decision, Snapshot
    from engine_adapter.clock import Clock
    from engine_adapter.guard import Events
    from engine_adapter.settings import Background

#: Time for a process to start and practise. Nothing waits for it, and it may compile for a minute.
_START_S = 300.0
#: Time for a process's first plan: made-up snapshots may have left something to compile.
_FIRST_PLAN_S = 60.0
#: Failures in a row after which the slow policy is given up.
_MAX_FAILURES = 5


@dataclass(frozen=True, slots=True, eq=False)
class LatePlan:
    """
    What the slow policy decided about a snapshot of the past.

    Parameters
    ----------
    decision
        The decision, checked.
    keys
        The engine's ids of the snapshot's requests.
    newest
        Number of the latest arrival at that time.
    snapshot_s
        When the snapshot was taken, on the engine's clock.
    solve_s
        How long the policy took.
    ready_s
        When it was ready, on the engine's clock.
    """

    decision: Decision
    keys: list[str]
    newest: int
    snapshot_s: float
    solve_s: float
    ready_s: float


class BackgroundPlanner:
    """
    Runs one policy in a process of its own.

    Parameters
    ----------
    settings
        Policy, deadline and duty cycle.
    events
        Where failures are counted.
    clock
        For the deadline, the duty cycle and the age of plans; None for the machine's.
    practice
        Snapshots that a policy of its own decides about in every new process: back-ends are
        imported and code is compiled before plans have a deadline.
    """

    def __init__(
        self,
        settings: Background,
        events: Events,
        clock: Clock | None = None,
        practice: Sequence[Snapshot] = (),
    ) -> None:
        self._settings = settings
        self._events = events
        self._clock: Clock = clock or SystemClock()
        self._practice = practice
        self._worker: WorkerProcess | None = None
        self._job: tuple[Snapshot, list[str], list[int]] | None = None
        self._offered_s = 0.0
        self._result: LatePlan | None = None
        self._finished: list[int] = []
        self._told = 0  # number of the latest arrival that the process has heard of
        self._ready = False
        self._next_s = -float("inf")
        self._failures = 0
        self._wake = threading.Condition()
        self._closed = False
        # Daemon: an engine that ends must not wait for a plan.
        threading.Thread(target=self._run, name="andes-background", daemon=True).start()

    @property
    def wants_snapshot(self) -> bool:
        """True if the policy is there and idle, and its duty cycle allows another plan."""
        self._wait_in_virtual_time(lambda: self._ready)
        return (
            self._ready
            and not self._closed
            and self._job is None
            and self._clock.monotonic_s() >= self._next_s
        )

    def offer(self, snapshot: Snapshot, keys: list[str]) -> None:
        """Start a plan; only when :attr:`wants_snapshot`."""
        with self._wake:
            self._job = (snapshot, keys, self._finished)
            self._finished = []
            self._told = snapshot.requests_seen
            self._offered_s = self._clock.monotonic_s()
            self._wake.notify_all()

    def take(self) -> LatePlan | None:
        """A plan that arrived since the last call, if any."""
        self._wait_in_virtual_time(lambda: self._job is None)
        result = self._result
        if result is None or self._clock.monotonic_s() < result.ready_s:
            return None
        self._result = None
        return result

    def finished(self, request_number: int) -> None:
        """Tell the policy, along with the next snapshot, that a request has left."""
        with self._wake:
            if request_number <= self._told:
                self._finished.append(request_number)

    def close(self) -> None:
        """End the process."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        self._end()

    def _wait_in_virtual_time(self, condition: Callable[[], bool]) -> None:
        """Wait for the process on a clock that stands still while it works; else not at all."""
        if self._clock.waits:
            with self._wake:
                self._wake.wait_for(
                    lambda: condition() or self._closed or self._failures >= _MAX_FAILURES
                )

    def _run(self) -> None:
        while not self._closed and self._failures < _MAX_FAILURES:
            try:
                self._serve(self._start())
            except Exception as error:
                # Includes a broken pipe: the process crashed.
                if not self._closed:
                    self._rest(str(error))

    def _start(self) -> WorkerProcess:
        worker = WorkerProcess(
            "engine_adapter.background:build_policy",
            (self._settings.policy, list(self._practice)),
            environment={**os.environ, **ONE_THREAD, "NUMBA_NUM_THREADS": "1"},
            output=subprocess.DEVNULL,
        )
        self._worker = worker
        if self._closed:
            self._end()
            raise RuntimeError("closed.")
        try:
            begun_s = time.perf_counter()
            worker.ready(begun_s + _START_S)
            LOGGER.info(
                "The background planner is ready: its process took %.0f s to import and to compile",
                time.perf_counter() - begun_s,
            )
        except WorkerError as error:
            raise RuntimeError(f"its policy can't be built: {error}") from error
        return worker

    def _serve(self, worker: WorkerProcess) -> None:
        """Answer snapshots until closed, or until something fails."""
        with self._wake:
            self._ready = True
            self._wake.notify_all()
        first_s = max(_FIRST_PLAN_S, self._settings.deadline_s)
        limit_s = first_s
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._job is not None or self._closed)
                job = self._job
            if self._closed or job is None:
                return
            snapshot, keys, finished = job
            # The process works in real time. On a clock that waits for it, its deadline is
            # what it is charged, and in real time it may only not hang.
            start_s = time.perf_counter()
            real_limit_s = first_s if self._clock.waits else limit_s
            answer = worker.ask(pickled((snapshot, finished)), start_s + real_limit_s)
            decision = check_decision(answer, snapshot)
            solve_s = self._clock.solve_s(time.perf_counter() - start_s)
            if self._clock.waits and solve_s > limit_s:
                raise TimeoutError("timed out")
            ready_s = self._offered_s + solve_s
            limit_s = self._settings.deadline_s
            with self._wake:
                self._result = LatePlan(
                    decision, keys, snapshot.requests_seen, snapshot.time_s, solve_s, ready_s
                )
                self._failures = 0
                self._next_s = ready_s + solve_s * (1.0 / self._settings.duty_cycle - 1.0)
                self._job = None
                self._wake.notify_all()

    def _rest(self, reason: str) -> None:
        """Count a failure, and wait so that restarts do not eat a core."""
        self._events.record("background planner failed", reason)
        self._end()
        with self._wake:
            self._ready = False
            self._failures += 1
            pause_s = 2.0**self._failures
            self._next_s = self._clock.monotonic_s() + pause_s
            self._job = None
            # The next process knows no request.
            self._told = 0
            self._finished.clear()
            self._wake.notify_all()
        if self._failures == _MAX_FAILURES:
            self._events.record("background planner given up", f"after {_MAX_FAILURES} failures")
        elif not self._clock.waits:
            with self._wake:
                self._wake.wait_for(lambda: self._closed, timeout=pause_s)

    def _end(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.end()


def build_policy(
    message: tuple[Any, Sequence[Snapshot]],
) -> tuple[None, Callable[[tuple[Snapshot, Sequence[int]]], Decision]]:
    """
    Build the worker's policy; see :class:`andes_opt.worker_process.WorkerProcess`.

    Parameters
    ----------
    message
        What to instantiate, and snapshots that another such policy decides about first: imports
        and compilation are then over before plans have a deadline.

    Returns
    -------
    tuple[None, Callable]
        Nothing to say, and what answers a snapshot and the numbers of the requests that left.
    """
    spec, practice = message
    os.nice(10)  # the engine comes first
    policy = instantiate(spec)
    if practice:
        practising = instantiate(spec)
        for snapshot in practice:
            with contextlib.suppress(Exception):  # errors come again
                practising.decide(snapshot)

    def answer(asked: tuple[Snapshot, Sequence[int]]) -> Decision:
        snapshot, finished = asked
        for number in finished:
            policy.finished(number)
        decision: Decision = policy.decide(snapshot)
        return decision

    return None, answer
