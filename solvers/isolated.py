"""Any solver in a process of its own: hard deadline, fallback, and no harm done when it dies."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from andes_opt.instance import GainTable
from andes_opt.plan import InvalidPlan, verify
from solvers.isolated_worker import Inbox, construct, pickled, send, warm_up

if TYPE_CHECKING:
    from andes_opt.instance import Instance
    from andes_opt.plan import Plan
    from andes_opt.solver import Solver

#: A well-behaved solver ends at its time limit; the worker is killed this much later. Half of
#: the lateness that the contract allows, so that the fallback has the other half.
_GRACE_SHARE = 0.1
_GRACE_S = 0.0025
_LONGEST_PAUSE_S = 60.0

_PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[3])
from solvers.isolated_worker import work
work(int(sys.argv[1]), int(sys.argv[2]))
"""
#: What a worker's numeric libraries must not do: start a thread per core each.
_ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


class Isolated:
    """
    Run another solver in a separate process, under a deadline that it can't miss.

    Use it in a live engine for any solver with a third-party back-end, and wherever
    back-ends clash: highspy in a worker and OR-Tools in this process get along. A crash, a hang,
    an exception, an invalid plan or too much memory costs one call: the plan is then the
    fallback's, the failure is counted, and a new worker starts in the background while the
    fallback serves. The worker is a fresh interpreter (nothing is forked, the main module is not
    imported again), keeps its solver between calls, and dies with this process, however that
    ends. Its limits: half a millisecond a call to hand the instance over (20 ms for a gain
    table of 500 x 1,000 numbers); the worker's start, 0.3 to 2 s by what the solver imports,
    and compilation on a machine's first use, are waited for in the constructor; one thread
    may use an object at a time.

    Parameters
    ----------
    solver
        Dotted path of the solver's class, or a mapping with the path as ``_target_`` and the
        constructor's options, as the files of ``conf/solver`` are. It is imported in the
        worker only.
    fallback
        Answers when the worker does not: a solver, or described like ``solver``. It runs in
        this process: take one that can't fail.
    deadline_s
        Limit for a call without one, and cap on one with one, > 0; None for neither.
        The worker is killed 10 % + 2.5 ms after the limit.
    memory_limit_mb
        MB that the worker may map beyond what it has mapped once its solver is built
        (RLIMIT_AS, Linux); None for no limit.
    startup_s
        Longest wait for a worker to start, where no limit is shorter.

    Raises
    ------
    ValueError
        If an option is out of range, or the solver refuses its own.
    ImportError
        If the solver or its back-end can't be imported.
    RuntimeError
        If the first worker does not come up for another reason.
    """

    def __init__(
        self,
        solver: str | Mapping[str, Any],
        fallback: Solver | str | Mapping[str, Any] = "solvers.greedy.GreedySkip",
        *,
        deadline_s: float | None = None,
        memory_limit_mb: int | None = None,
        startup_s: float = 60.0,
    ) -> None:
        target = solver if isinstance(solver, str) else solver.get("_target_")
        if not isinstance(target, str) or "." not in target:
            raise ValueError(f"solver = {solver!r} not understood: need a dotted path.")
        if deadline_s is not None and not deadline_s > 0:
            raise ValueError(f"deadline_s = {deadline_s} <= 0 not understood.")
        if memory_limit_mb is not None and not memory_limit_mb > 0:
            raise ValueError(f"memory_limit_mb = {memory_limit_mb} <= 0 not understood.")
        self.solver = solver
        self.fallback: Solver = (
            construct(fallback) if isinstance(fallback, (str, Mapping)) else fallback
        )
        self.deadline_s = deadline_s
        self.memory_limit_mb = memory_limit_mb
        self.startup_s = startup_s

        self._failures: Counter[str] = Counter()
        self._last_failure: str | None = None
        self._restarts = 0
        self._unreadable: set[type] = set()  # gain models that the worker can't read
        self._failed_in_a_row = 0
        self._start_after = -math.inf
        self._worker: _Worker | None = self._start()
        warm_up(self.fallback)  # while the worker starts
        try:
            self._exact = self._worker.ready(time.perf_counter() + startup_s)
        except TimeoutError:
            self.close()
            raise RuntimeError(
                f"the worker for {target} did not start within {startup_s} s."
            ) from None
        except (EOFError, OSError):
            worker = self._worker
            self.close()
            raise RuntimeError(
                f"the worker for {target} died on starting (exit status "
                f"{worker.process.returncode})."
            ) from None
        except _Refused as refused:
            self.close()
            raise refused.as_builtin() from None

    @property
    def exact(self) -> bool:
        """Whether the isolated solver proves optimality when time suffices."""
        return self._exact

    @property
    def failures(self) -> Mapping[str, int]:
        """
        Failed calls so far, by kind.

        The kinds are crash, deadline, error, out_of_memory, invalid (a plan that
        does not verify) and starting (no worker ready in time).
        """
        return dict(self._failures)

    @property
    def fallbacks(self) -> int:
        """Calls answered by the fallback so far."""
        return self._failures.total()

    @property
    def restarts(self) -> int:
        """Workers started after the first."""
        return self._restarts

    @property
    def last_failure(self) -> str | None:
        """The last failure in a sentence; None if there was none."""
        return self._last_failure

    @property
    def worker_pid(self) -> int | None:
        """Process id of the worker; None if there is none."""
        return None if self._worker is None else self._worker.process.pid

    def solve(self, instance: Instance, *, time_limit_s: float | None = None) -> Plan:
        """Solve an instance; see :class:`andes_opt.solver.Solver`. ``info`` has ``fallback``."""
        started = time.perf_counter()
        limits = [limit for limit in (time_limit_s, self.deadline_s) if limit is not None]
        limit_s = min(limits) if limits else None
        deadline = math.inf
        if limit_s is not None:
            deadline = started + (1 + _GRACE_SHARE) * limit_s + _GRACE_S

        try:
            plan = self._ask(instance, limit_s, deadline)
        except _Failure as failure:
            self._failures[failure.kind] += 1
            self._last_failure = failure.sentence
        else:
            self._failed_in_a_row = 0
            waited_s = time.perf_counter() - started
            transfer_s = max(0.0, waited_s - plan.build_s - plan.solve_s)
            return replace(plan, info={**plan.info, "fallback": 0.0, "transfer_s": transfer_s})

        waited_s = time.perf_counter() - started
        left_s = None
        if limit_s is not None:
            left_s = max(1e-3, (1 + 2 * _GRACE_SHARE) * limit_s + 2 * _GRACE_S - waited_s)
        plan = self.fallback.solve(instance, time_limit_s=left_s)
        return replace(plan, solve_s=plan.solve_s + waited_s, info={**plan.info, "fallback": 1.0})

    def close(self) -> None:
        """End the worker. A later call starts a new one."""
        if self._worker is not None:
            self._worker.end()
            self._worker = None

    def _start(self) -> _Worker:
        return _Worker(self.solver, self.memory_limit_mb)

    def _ask(self, instance: Instance, limit_s: float | None, deadline: float) -> Plan:
        """The worker's plan, verified; or a _Failure, with a new worker under way."""
        worker = self._current_worker()
        try:
            worker.ready(min(deadline, time.perf_counter() + self.startup_s))
        except TimeoutError:
            raise _Failure("starting", "the worker was not ready in time.") from None
        except (EOFError, OSError, _Refused) as error:
            self._replace_worker()
            raise _Failure("starting", f"the worker died on starting: {error}") from None

        try:
            asked = time.perf_counter()
            if limit_s is not None:
                limit_s = max(1e-3, min(limit_s, (deadline - asked) / (1 + _GRACE_SHARE)))
            kind, *content = self._answer(worker, instance, limit_s, deadline)
        except TimeoutError:
            self._replace_worker()
            raise _Failure("deadline", f"the worker had no plan after {limit_s} s.") from None
        except (EOFError, OSError):
            status = worker.end()
            self._replace_worker()
            raise _Failure("crash", f"the worker died (exit status {status}).") from None
        except BaseException:
            # An interrupt, say: an answer to this call may still come, and must not be
            # taken for the answer to the next one.
            self._replace_worker()
            raise

        if kind == "error":
            name, sentence = content
            memory = name == "MemoryError"
            raise _Failure("out_of_memory" if memory else "error", f"{name}: {sentence}")
        plan: Plan = content[0]
        try:
            verify(instance, plan)
        except InvalidPlan as error:
            raise _Failure("invalid", str(error)) from None
        except Exception as error:  # what came is no plan at all
            raise _Failure("invalid", f"{type(error).__name__}: {error}") from None
        return plan

    def _answer(
        self, worker: _Worker, instance: Instance, limit_s: float | None, deadline: float
    ) -> tuple[Any, ...]:
        """The worker's answer; a gain model that it can't read goes as its numbers."""
        model = type(instance.gains)
        if model not in self._unreadable:
            send(worker.channel, _pickled(instance, limit_s), deadline)
            answer: tuple[Any, ...] = worker.inbox.receive(deadline)
            if answer[0] != "unreadable":
                return answer
            # A class of the main program, say, which the worker has not got.
            self._unreadable.add(model)
        send(worker.channel, _pickled(_as_numbers(instance), limit_s), deadline)
        return tuple(worker.inbox.receive(deadline))

    def _current_worker(self) -> _Worker:
        if self._worker is not None and not self._worker.is_ours():
            self._worker = None  # this process was forked: the worker is its parent's
        if self._worker is None:
            if time.perf_counter() < self._start_after:
                raise _Failure("starting", "the worker keeps failing; it is left alone a while.")
            self._worker = self._start()
            self._restarts += 1
        return self._worker

    def _replace_worker(self) -> None:
        """
        End the worker and start the next one, without waiting for it.

        A solver that fails call after call is given pauses of 1, 2, 4 ... seconds, lest
        starting workers becomes what the machine does.
        """
        self.close()
        self._failed_in_a_row += 1
        pause_s = min(_LONGEST_PAUSE_S, 2.0 ** min(self._failed_in_a_row - 2, 30))
        self._start_after = time.perf_counter() + (pause_s if self._failed_in_a_row > 1 else 0.0)
        with contextlib.suppress(_Failure):
            self._current_worker()


class _Failure(Exception):
    """A call that the worker did not answer with a valid plan."""

    def __init__(self, kind: str, sentence: str) -> None:
        super().__init__(sentence)
        self.kind = kind
        self.sentence = sentence


class _Refused(Exception):
    """The solver could not be built in the worker."""

    def __init__(self, name: str, sentence: str) -> None:
        super().__init__(sentence)
        self.name = name
        self.sentence = sentence

    def as_builtin(self) -> Exception:
        """The error that building the solver in this process would have raised."""
        known: dict[str, type[Exception]] = {
            "ImportError": ImportError,
            "ModuleNotFoundError": ImportError,
            "TypeError": ValueError,  # an option that the solver does not have
            "ValueError": ValueError,
        }
        if self.name in known:
            return known[self.name](self.sentence)
        return RuntimeError(f"{self.name}: {self.sentence}")


class _Worker:
    """One worker process and the socket to it."""

    def __init__(self, solver: str | Mapping[str, Any], memory_limit_mb: int | None) -> None:
        ours, theirs = socket.socketpair()
        lifeline, ours_only = os.pipe()
        environment = {**_ONE_THREAD, **os.environ}
        self._owner = os.getpid()
        self._exact: bool | None = None
        self.channel = ours
        self.inbox = Inbox(ours)
        try:
            # Not multiprocessing: that imports the main module again (in vLLM: the server),
            # and refuses to start children from daemon processes, where engines run.
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    _PROGRAM,
                    str(theirs.fileno()),
                    str(lifeline),
                    json.dumps(sys.path),
                ],
                pass_fds=(theirs.fileno(), lifeline),
                stdin=subprocess.DEVNULL,
                stdout=2,  # chatter of back-ends must not end up among our results
                start_new_session=True,  # a group to kill, and no Ctrl-C from the terminal
                env=environment,
            )
        finally:
            theirs.close()
            os.close(lifeline)
        self._end = weakref.finalize(self, _end, self.process, ours, ours_only, self._owner)
        with contextlib.suppress(OSError):  # if it is dead, `ready` will say so
            described = solver if isinstance(solver, str) else dict(solver)
            send(ours, (described, memory_limit_mb), math.inf)

    def is_ours(self) -> bool:
        """Whether this process started the worker."""
        return self._owner == os.getpid()

    def ready(self, deadline: float) -> bool:
        """Wait until the solver is built; whether it is exact. Raises as :class:`Inbox`."""
        if self._exact is None:
            kind, *content = self.inbox.receive(deadline)
            if kind == "error":
                raise _Refused(*content)
            self._exact = bool(content[0])
        return self._exact

    def end(self) -> int | None:
        """Kill the worker's process group; its exit status."""
        self._end()
        return self.process.returncode


def _end(
    process: subprocess.Popen[bytes], channel: socket.socket, lifeline: int, owner: int
) -> None:
    """Kill and reap a worker; in a forked child only let go of it."""
    if owner == os.getpid() and process.returncode is None:
        # The group also where the worker is dead already: it may have left a child (CBC).
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
    channel.close()
    with contextlib.suppress(OSError):
        os.close(lifeline)


def _pickled(instance: Instance, limit_s: float | None) -> bytes:
    """The message to the worker; a gain model that can't be pickled goes as its numbers."""
    try:
        return pickled((instance, limit_s))
    except Exception:
        return pickled((_as_numbers(instance), limit_s))


def _as_numbers(instance: Instance) -> Instance:
    """The instance with the table of its gains in place of their model."""
    first, last = instance.min_batch, instance.max_batch
    table = instance.gain_table(first, last)
    concave = instance.gains.concave_in_rate
    return replace(instance, gains=GainTable(table, first, concave_in_rate=concave))
