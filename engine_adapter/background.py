"""
A slow policy beside the engine: a snapshot goes out, a plan comes back when it is ready.

The engine's thread never waits: a courier thread starts the process
(:mod:`engine_adapter.background_worker`) before the first request comes, talks to it, gives up on
a decision at its deadline, replaces a process that died, and keeps to the duty cycle.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine_adapter.background_worker import receive, send
from engine_adapter.guard import check_decision

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from andes_opt.snapshot import Decision, Snapshot
    from engine_adapter.guard import Events
    from engine_adapter.settings import Background

#: Time for a process to start and practise. Nobody waits for it, and it may compile for a minute.
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
    """

    decision: Decision
    keys: list[str]
    newest: int
    snapshot_s: float
    solve_s: float


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
        Seconds, monotonic.
    practice
        Snapshots that a policy of its own decides about in every new process: back-ends are
        imported and code is compiled before plans have a deadline.
    """

    def __init__(
        self,
        settings: Background,
        events: Events,
        clock: Callable[[], float] = time.monotonic,
        practice: Sequence[Snapshot] = (),
    ) -> None:
        self._settings = settings
        self._events = events
        self._clock = clock
        self._practice = practice
        self._process: subprocess.Popen[bytes] | None = None
        self._job: tuple[Snapshot, list[str], list[int]] | None = None
        self._result: LatePlan | None = None
        self._finished: list[int] = []
        self._told = 0  # number of the latest arrival that the process has heard of
        self._ready = False
        self._next_s = -float("inf")
        self._failures = 0
        self._wake = threading.Condition()
        self._closed = False
        # Daemon: an engine that ends must not wait for a plan.
        threading.Thread(target=self._carry, name="andes-courier", daemon=True).start()

    @property
    def wants_snapshot(self) -> bool:
        """True if the policy is there and idle, and its duty cycle allows another plan."""
        return (
            self._ready and not self._closed and self._job is None and self._clock() >= self._next_s
        )

    def offer(self, snapshot: Snapshot, keys: list[str]) -> None:
        """Start a plan; only when :attr:`wants_snapshot`."""
        with self._wake:
            self._job = (snapshot, keys, self._finished)
            self._finished = []
            self._told = snapshot.requests_seen
            self._wake.notify()

    def take(self) -> LatePlan | None:
        """A plan that arrived since the last call, if any."""
        result, self._result = self._result, None
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
            self._wake.notify()
        self._kill()

    def _carry(self) -> None:
        while not self._closed and self._failures < _MAX_FAILURES:
            try:
                self._serve(self._start())
            except Exception as error:
                # Includes a broken pipe: the process crashed.
                if not self._closed:
                    self._rest(str(error))

    def _serve(self, process: subprocess.Popen[bytes]) -> None:
        """Answer snapshots until closed, or until something fails."""
        self._ready = True
        limit_s = max(_FIRST_PLAN_S, self._settings.deadline_s)
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._job is not None or self._closed)
                job = self._job
            if self._closed or job is None:
                return
            snapshot, keys, finished = job
            decision, solve_s = self._ask(process, snapshot, finished, limit_s)
            self._result = LatePlan(
                decision, keys, snapshot.requests_seen, snapshot.time_s, solve_s
            )
            self._failures = 0
            limit_s = self._settings.deadline_s
            self._next_s = self._clock() + solve_s * (1.0 / self._settings.duty_cycle - 1.0)
            self._job = None

    def _rest(self, reason: str) -> None:
        """Count a failure, and wait so that restarts do not eat a core."""
        self._ready = False
        self._failures += 1
        self._events.record("background planner failed", reason)
        self._kill()
        with self._wake:
            self._job = None
            # The next process knows nobody.
            self._told = 0
            self._finished.clear()
        if self._failures == _MAX_FAILURES:
            self._events.record("background planner given up", f"after {_MAX_FAILURES} failures")
            return
        with self._wake:
            self._wake.wait_for(lambda: self._closed, timeout=2.0**self._failures)

    def _ask(
        self,
        process: subprocess.Popen[bytes],
        snapshot: Snapshot,
        finished: list[int],
        limit_s: float,
    ) -> tuple[Decision, float]:
        assert process.stdin is not None
        start_s = time.perf_counter()
        send(process.stdin, (snapshot, finished))
        answer = self._await(process, limit_s)
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return check_decision(answer, snapshot.num_requests), time.perf_counter() - start_s

    def _start(self) -> subprocess.Popen[bytes]:
        # Not multiprocessing: the engine process is a daemon and may not have such children,
        # and nothing of the engine needs importing there.
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "NUMBA_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "engine_adapter.background_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        self._process = process
        if self._closed:
            self._kill()
            raise RuntimeError("closed.")
        assert process.stdin is not None
        send(process.stdin, (list(sys.path), self._settings.policy, list(self._practice)))
        ready = self._await(process, _START_S)
        if ready != "ready":
            raise RuntimeError(f"its policy can't be built: {ready}")
        return process

    def _await(self, process: subprocess.Popen[bytes], limit_s: float) -> Any:
        assert process.stdout is not None
        if not select.select([process.stdout], [], [], limit_s)[0]:
            raise TimeoutError(f"no answer within {limit_s:g} s.")
        return receive(process.stdout)

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                # What it could not be told any more is flushed again, and fails again.
                with contextlib.suppress(OSError):
                    stream.close()
