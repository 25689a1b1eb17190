"""Any solver in a process of its own: hard deadline, fallback, and no harm done when it dies."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from andes_opt.instance import GainTable
from andes_opt.plan import InvalidPlan, verify
from andes_opt.worker_process import (
    ONE_THREAD,
    MessageUnreadable,
    WorkerError,
    WorkerProcess,
    pickled,
)
from solvers.isolated_worker import construct, warm_up_solver

if TYPE_CHECKING:
    from andes_opt.instance import Instance
    from andes_opt.plan import Plan
    from andes_opt.solver import Solver

#: A well-behaved solver ends at its time limit; the worker is killed this much later. Half of
#: the lateness that the contract allows, so that the fallback has the other half.
_GRACE_SHARE = 0.1
_GRACE_S = 0.0025
_LONGEST_PAUSE_S = 60.0


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
        self._worker: WorkerProcess | None = self._start()
        warm_up_solver(self.fallback)  # while the worker starts
        try:
            self._exact: bool = self._worker.ready(time.perf_counter() + startup_s)
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
        except WorkerError as error:
            self.close()
            raise _as_builtin(error) from None

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

    def _start(self) -> WorkerProcess:
        described = self.solver if isinstance(self.solver, str) else dict(self.solver)
        return WorkerProcess(
            "solvers.isolated_worker:build_solver",
            (described, self.memory_limit_mb),
            environment={**ONE_THREAD, **os.environ},
        )

    def _ask(self, instance: Instance, limit_s: float | None, deadline: float) -> Plan:
        """The worker's plan, verified; or a _Failure, with a new worker under way."""
        worker = self._current_worker()
        try:
            worker.ready(min(deadline, time.perf_counter() + self.startup_s))
        except TimeoutError:
            raise _Failure("starting", "the worker was not ready in time.") from None
        except (EOFError, OSError, WorkerError) as error:
            self._replace_worker()
            raise _Failure("starting", f"the worker died on starting: {error}") from None

        try:
            asked = time.perf_counter()
            if limit_s is not None:
                limit_s = max(1e-3, min(limit_s, (deadline - asked) / (1 + _GRACE_SHARE)))
            plan = self._answer(worker, instance, limit_s, deadline)
        except TimeoutError:
            self._replace_worker()
            raise _Failure("deadline", f"the worker had no plan after {limit_s} s.") from None
        except (EOFError, OSError):
            status = worker.end()
            self._replace_worker()
            raise _Failure("crash", f"the worker died (exit status {status}).") from None
        except WorkerError as error:
            memory = error.kind == "MemoryError"
            raise _Failure("out_of_memory" if memory else "error", str(error)) from None
        except BaseException:
            # An interrupt, say: an answer to this call may still come, and must not be
            # taken for the answer to the next one.
            self._replace_worker()
            raise

        try:
            verify(instance, plan)
        except InvalidPlan as error:
            raise _Failure("invalid", str(error)) from None
        except Exception as error:  # what came is no plan at all
            raise _Failure("invalid", f"{type(error).__name__}: {error}") from None
        return plan

    def _answer(
        self, worker: WorkerProcess, instance: Instance, limit_s: float | None, deadline: float
    ) -> Plan:
        """The worker's answer; a gain model that it can't read goes as its numbers."""
        plan: Plan
        model = type(instance.gains)
        if model not in self._unreadable:
            try:
                plan = worker.ask(_pickled(instance, limit_s), deadline)
                return plan
            except MessageUnreadable:
                # A class of the main program, say, which the worker has not got.
                self._unreadable.add(model)
        plan = worker.ask(_pickled(_as_numbers(instance), limit_s), deadline)
        return plan

    def _current_worker(self) -> WorkerProcess:
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


def _as_builtin(error: WorkerError) -> Exception:
    """Returns the error that building the solver in this process would have raised."""
    known: dict[str, type[Exception]] = {
        "ImportError": ImportError,
        "ModuleNotFoundError": ImportError,
        "TypeError": ValueError,  # an option that the solver does not have
        "ValueError": ValueError,
    }
    if error.kind in known:
        return known[error.kind](error.sentence)
    return RuntimeError(str(error))


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
