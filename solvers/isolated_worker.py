"""
The worker's side of :mod:`solvers.isolated`: build a solver, answer instances, die with the parent.

Imports little, so that a worker starts in a fraction of a second; the solver's own imports are
what it pays for.
"""

from __future__ import annotations

import importlib
import io
import os
import pickle
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from andes_opt.instance import GainTable, Instance

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from andes_opt.solver import Solver

_LENGTH = struct.Struct("!Q")
_MOST_AT_ONCE = 2**20  # bytes per read


def send(channel: socket.socket, message: object, deadline: float) -> None:
    """
    Send a message.

    Parameters
    ----------
    channel
        A stream socket.
    message
        Anything that can be pickled, or bytes that have been.
    deadline
        When to give up, on the clock of ``time.perf_counter``; inf for never.

    Raises
    ------
    TimeoutError
        At the deadline.
    OSError
        If the other side is gone.
    """
    data = message if isinstance(message, bytes) else pickled(message)
    _limit(channel, deadline)
    channel.sendall(_LENGTH.pack(len(data)) + data)


class _Pickler(pickle.Pickler):
    """
    Keeps read-only arrays read-only.

    NumPy forgets that flag, and to compiled code the two are different types: a solver
    would be compiled all over again for what arrives in the worker.
    """

    def reducer_override(self, obj: object) -> Any:
        if type(obj) is np.ndarray and not obj.flags.writeable and obj.size:
            return _frozen, (obj.copy(),)
        return NotImplemented


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array


def pickled(message: object) -> bytes:
    """
    A message as bytes, for :func:`send`.

    Parameters
    ----------
    message
        What to send. Read-only arrays arrive read-only.
    """
    file = io.BytesIO()
    _Pickler(file, protocol=pickle.HIGHEST_PROTOCOL).dump(message)
    return file.getvalue()


class Inbox:
    """
    Messages from a socket. One that had come in part when time ran out is completed later.

    Parameters
    ----------
    channel
        The socket.
    """

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._data = bytearray()

    def receive(self, deadline: float) -> Any:
        """
        Receive a message; parameters and errors as :func:`send`.

        Raises
        ------
        EOFError
            If the other side is gone.
        """
        self._fill(_LENGTH.size, deadline)
        (length,) = _LENGTH.unpack_from(self._data)
        self._fill(_LENGTH.size + length, deadline)
        message, self._data = self._data, bytearray()
        return pickle.loads(memoryview(message)[_LENGTH.size :])

    def _fill(self, size: int, deadline: float) -> None:
        while len(self._data) < size:
            _limit(self._channel, deadline)
            part = self._channel.recv(min(size - len(self._data), _MOST_AT_ONCE))
            if not part:
                raise EOFError("the other side is gone.")
            self._data += part


def _limit(channel: socket.socket, deadline: float) -> None:
    if deadline == float("inf"):
        channel.settimeout(None)
        return
    left_s = deadline - time.perf_counter()
    if left_s <= 0:
        raise TimeoutError
    channel.settimeout(left_s)


def construct(described: str | Mapping[str, Any]) -> Solver:
    """
    Build a solver from its description.

    Parameters
    ----------
    described
        Dotted path of its class, or a mapping with the path as ``_target_`` and the
        constructor's options, as the files of ``conf/solver`` are.

    Raises
    ------
    ImportError
        If there is no such class.
    """
    options = {"_target_": described} if isinstance(described, str) else dict(described)
    module, _, name = str(options.pop("_target_")).rpartition(".")
    try:
        solver_class = getattr(importlib.import_module(module), name)
    except AttributeError as error:
        raise ImportError(f"{module} has no {name}.") from error
    solver: Solver = solver_class(**options)
    return solver


def work(channel_fd: int, lifeline_fd: int) -> None:
    """
    Serve one parent until it goes away. The worker's main function.

    Parameters
    ----------
    channel_fd
        File descriptor of the socket to the parent. Its first message is (solver, as for
        :func:`construct`, memory limit in MB or None), each further one (instance, time limit);
        the answers are ("ready", exact), ("plan", plan), ("error", exception type, sentence) and
        ("unreadable", exception type, sentence).
    lifeline_fd
        Read end of a pipe whose write end only the parent holds.
    """
    _die_with_parent(lifeline_fd)
    channel = socket.socket(fileno=channel_fd)
    forever = float("inf")
    try:
        inbox = Inbox(channel)
        described, memory_limit_mb = inbox.receive(forever)
        try:
            solver = construct(described)
            warm_up(solver)
            if memory_limit_mb is not None:
                _limit_memory(memory_limit_mb)
        except Exception as error:
            send(channel, ("error", type(error).__name__, str(error)), forever)
            return
        send(channel, ("ready", bool(solver.exact)), forever)

        while True:
            answer: tuple[object, ...]
            try:
                instance, time_limit_s = inbox.receive(forever)
            except (EOFError, OSError):
                raise
            except Exception as error:
                send(channel, ("unreadable", type(error).__name__, str(error)), forever)
                continue
            try:
                answer = ("plan", solver.solve(instance, time_limit_s=time_limit_s))
            except Exception as error:
                kind = "MemoryError" if isinstance(error, MemoryError) else type(error).__name__
                answer = ("error", kind, str(error))
            send(channel, answer, forever)
            del instance, answer
    except (EOFError, OSError):
        return  # the parent is gone, or done with us


def _die_with_parent(lifeline_fd: int) -> None:
    """
    Have the kernel end this process and its children when the parent's end of a pipe closes.

    A parent that is killed can't tell its workers to stop, and a solver deep in native code
    would not listen. The signal's default action needs no cooperation. Elsewhere than on
    Linux an idle worker notices at its next read, a busy one when it has finished.
    """
    try:
        import fcntl

        fcntl.fcntl(lifeline_fd, fcntl.F_SETOWN, -os.getpgrp())  # the group: CBC's process too
        flags = fcntl.fcntl(lifeline_fd, fcntl.F_GETFL)
        fcntl.fcntl(lifeline_fd, fcntl.F_SETFL, flags | os.O_ASYNC | os.O_NONBLOCK)
    except (ImportError, AttributeError, OSError):
        return
    try:
        gone = os.read(lifeline_fd, 1) == b""
    except BlockingIOError:
        gone = False
    if gone:  # before the signal was armed
        os._exit(1)


def warm_up(solver: Solver) -> None:
    """
    Solve two tiny instances, so that compilation is over before the first deadline runs.

    Parameters
    ----------
    solver
        The solver. What it raises is ignored: the first real call will tell.
    """
    for exactly in (False, True):
        gains = GainTable([[1.0, 2.0, 1.5], [0.9, 1.8, 1.4]], 1)
        weights = np.array([3, 5, 4], dtype=np.int64)
        try:
            solver.solve(Instance(weights, 8, 1, 2, gains, exactly=exactly), time_limit_s=None)
        except Exception:
            continue


def _limit_memory(limit_mb: int) -> None:
    """Refuse allocations beyond what the process has mapped already plus the limit."""
    import resource

    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    limit = mapped + limit_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
