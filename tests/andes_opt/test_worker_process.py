"""A worker: messages under deadlines. How it ends is shown by those who use it."""

from __future__ import annotations

import math
import os
import pickle
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from andes_opt.worker_process import (
    Channel,
    MessageUnreadable,
    WorkerError,
    WorkerProcess,
    pickled,
)


@pytest.fixture
def start(monkeypatch):
    """Starts workers whose functions are in this file, and ends them."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    workers = []

    def make(message):
        workers.append(WorkerProcess("test_worker_process:adder", message, environment=os.environ))
        return workers[-1]

    yield make
    for worker in workers:
        worker.end()


def adder(first):
    """Adds the first message to each other one; a negative one is refused."""
    if first < 0:
        raise ValueError(f"first = {first} not understood.")
    return "ready", lambda message: message + first


def test_questions_and_answers(start):
    """Arrays come back, read-only ones read-only; an error of the worker's leaves it alive."""
    worker = start(2)
    assert worker.ready(math.inf) == worker.ready(math.inf) == "ready"
    frozen = np.arange(3)
    frozen.flags.writeable = False
    assert worker.ask(pickled(frozen), math.inf).tolist() == [2, 3, 4]
    assert not pickle.loads(pickled(frozen)).flags.writeable
    with pytest.raises(WorkerError, match="TypeError: "):
        worker.ask(pickled("text"), math.inf)
    with pytest.raises(MessageUnreadable, match="UnpicklingError"):
        worker.ask(b"no pickle", math.inf)
    assert worker.ask(pickled(3), math.inf) == 5


def test_a_worker_that_cannot_be_built(start):
    """The error of the worker's function is told by ``ready``."""
    with pytest.raises(WorkerError, match="ValueError: first = -1 not understood"):
        start(-1).ready(math.inf)


def test_a_dead_worker(start):
    """Its exit status is told, and asking it is an error."""
    worker = start(0)
    worker.ready(math.inf)
    assert worker.end() == -9
    with pytest.raises(OSError):
        worker.ask(pickled(1), math.inf)


def test_a_message_that_comes_in_parts_survives_a_deadline() -> None:
    """
    Time may run out between a message's length and the rest.

    A regression test: what followed was taken for the length of the next message.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        channel = Channel(ours)
        first, second = b"first", b"second"
        data = len(first).to_bytes(8, "big") + first + len(second).to_bytes(8, "big") + second
        for part in (data[:3], data[3:8], data[8:12]):
            theirs.sendall(part)
            with pytest.raises(TimeoutError):
                channel.receive(time.perf_counter() + 0.02)
        theirs.sendall(data[12:])
        assert channel.receive(time.perf_counter() + 1.0) == first
        assert channel.receive(time.perf_counter() + 1.0) == second
