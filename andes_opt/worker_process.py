"""
A worker: a process of its own that answers messages, under deadlines, and ends with its parent.

The parent holds a :class:`WorkerProcess` and names a function. The worker calls it with the first
message; what it returns answers the further ones.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import math
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import time
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

#: For a worker's environment: its numeric libraries do not start a thread per core each.
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}

_LENGTH = struct.Struct("!Q")
_MOST_AT_ONCE = 2**20  # bytes per read
_PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from andes_opt.worker_process import answer_parent
answer_parent(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
"""


class WorkerError(Exception):
    """
    The worker answered with an error.

    Parameters
    ----------
    kind
        Name of the exception's type.
    sentence
        Its message.
    """

    def __init__(self, kind: str, sentence: str) -> None:
        super().__init__(f"{kind}: {sentence}")
        self.kind = kind
        self.sentence = sentence


class MessageUnreadable(WorkerError):
    """The worker could not unpickle a message: it lacks a class of this process, say."""


class Channel:
    """
    Messages over a socket, each under a deadline.

    A connection of :mod:`multiprocessing` would wait without limit for a reader that has stopped,
    and for the rest of a message that has come in part. Here that rest may come in a later call.

    Parameters
    ----------
    connected
        A stream socket. Deadlines are on the clock of ``time.perf_counter``.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._data = bytearray()

    def send(self, message: bytes, deadline: float = math.inf) -> None:
        """Send a message: TimeoutError at the deadline, OSError if the other side is gone."""
        self._limit(deadline)
        self._socket.sendall(_LENGTH.pack(len(message)) + message)

    def receive(self, deadline: float = math.inf) -> memoryview:
        """Receive a message; errors as in :meth:`send`, and EOFError if the other side is gone."""
        self._fill(_LENGTH.size, deadline)
        (length,) = _LENGTH.unpack_from(self._data)
        self._fill(_LENGTH.size + length, deadline)
        message, self._data = self._data, bytearray()
        return memoryview(message)[_LENGTH.size :]

    def _fill(self, size: int, deadline: float) -> None:
        while len(self._data) < size:
            self._limit(deadline)
            part = self._socket.recv(min(size - len(self._data), _MOST_AT_ONCE))
            if not part:
                raise EOFError("the other side is gone.")
            self._data += part

    def _limit(self, deadline: float) -> None:
        left_s = deadline - time.perf_counter()
        if left_s <= 0:
            raise TimeoutError("timed out")
        self._socket.settimeout(None if left_s == math.inf else left_s)


class WorkerProcess:
    """
    A worker, started at once.

    It is a fresh interpreter: nothing is forked and the main module is not imported again. It ends
    with :meth:`end`, with this object, and with this process, however that ends.

    Parameters
    ----------
    build
        ``"module:function"``. The worker calls it with the first message; it returns what
        :meth:`ready` returns, and a function that answers each message of :meth:`ask`.
    message
        The first message.
    environment
        The worker's variables.
    output
        File descriptor for what the worker prints, or ``subprocess.DEVNULL``.

    Attributes
    ----------
    process
        The process.
    """

    def __init__(
        self, build: str, message: object, *, environment: Mapping[str, str], output: int = 2
    ) -> None:
        ours, theirs = socket.socketpair()
        lifeline, ours_only = os.pipe()
        passed = (theirs.fileno(), lifeline)
        self._owner = os.getpid()
        self._channel = Channel(ours)
        self._started: tuple[Any] | None = None
        try:
            # Not multiprocessing: that imports the main module again (in vLLM: the server),
            # and refuses to start children from daemon processes, where engines run.
            self.process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, json.dumps(sys.path), build, *map(str, passed)],
                pass_fds=passed,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a group to kill, and no Ctrl-C from the terminal
                env=dict(environment),
            )
        finally:
            theirs.close()
            os.close(lifeline)
        self._end = weakref.finalize(self, _end, self.process, ours, ours_only, self._owner)
        with contextlib.suppress(OSError):  # if it is dead, `ready` will say so
            self._channel.send(pickled(message))

    def is_ours(self) -> bool:
        """Returns whether this process started the worker, rather than the one it was forked of."""
        return self._owner == os.getpid()

    def ready(self, deadline: float) -> Any:
        """
        Wait until the worker is built; raises as :meth:`ask`.

        Returns
        -------
        Any
            What ``build`` said, also in later calls.
        """
        if self._started is None:
            self._started = (self._answer(deadline),)
        return self._started[0]

    def ask(self, message: bytes, deadline: float) -> Any:
        """
        Send a message and wait for its answer.

        Parameters
        ----------
        message
            As :func:`pickled` makes it.
        deadline
            When to give up, on the clock of ``time.perf_counter``. The answer may still come
            later: end the worker then.

        Raises
        ------
        TimeoutError
            At the deadline.
        EOFError, OSError
            If the worker is dead.
        WorkerError
            If the worker answered with an error.
        """
        self._channel.send(message, deadline)
        return self._answer(deadline)

    def end(self) -> int | None:
        """Kill the worker and its children; returns its exit status."""
        self._end()
        return self.process.returncode

    def _answer(self, deadline: float) -> Any:
        error, *content = pickle.loads(self._channel.receive(deadline))
        if error is not None:
            raise error(*content)
        return content[0]


def _end(
    process: subprocess.Popen[bytes], connected: socket.socket, lifeline: int, owner: int
) -> None:
    """Kill and reap a worker; in a forked child only let go of it."""
    if owner == os.getpid() and process.returncode is None:
        # The group also where the worker is dead already: it may have left a child (CBC).
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
    connected.close()
    with contextlib.suppress(OSError):
        os.close(lifeline)


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
    Returns a message as bytes, for :meth:`WorkerProcess.ask`.

    Parameters
    ----------
    message
        What to send. Read-only arrays arrive read-only.
    """
    file = io.BytesIO()
    _Pickler(file, protocol=pickle.HIGHEST_PROTOCOL).dump(message)
    return file.getvalue()


def answer_parent(build: str, socket_fd: int, lifeline_fd: int) -> None:
    """Answer a parent until it goes away: what a :class:`WorkerProcess` runs."""
    _die_with_parent(lifeline_fd)
    channel = Channel(socket.socket(fileno=socket_fd))
    module, _, name = build.partition(":")
    answer: Callable[[Any], Any]

    def start(message: Any) -> Any:
        nonlocal answer
        started, answer = getattr(importlib.import_module(module), name)(message)
        return started

    answer = start
    with contextlib.suppress(EOFError, OSError):  # the parent is gone, or done with us
        while True:
            channel.send(_reply(answer, channel.receive()))


def _reply(answer: Callable[[Any], Any], message: memoryview) -> bytes:
    error: type[WorkerError] = MessageUnreadable
    try:
        content = pickle.loads(message)
        error = WorkerError
        return pickled((None, answer(content)))
    except Exception as raised:
        # NumPy's MemoryError has a name of its own.
        kind = "MemoryError" if isinstance(raised, MemoryError) else type(raised).__name__
        return pickled((error, kind, str(raised)))


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
