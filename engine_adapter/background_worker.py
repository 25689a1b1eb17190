"""
The process that a slow policy lives in: ``python -m engine_adapter.background_worker``.

Pickled messages come in on stdin and go out on what was stdout: first ``(sys.path, policy
specification, snapshots to practise on)``, answered with "ready" or an error; then ``(snapshot,
numbers of finished requests)``, answered with a decision or an error. It ends when stdin does, and
by itself if its parent is gone or a decision takes far too long.
"""

from __future__ import annotations

import os
import pickle
import struct
import sys
import threading
import time
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_HEADER = struct.Struct("<Q")


def send(stream: IO[bytes], message: Any) -> None:
    """Write one message."""
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(_HEADER.pack(len(data)) + data)
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """Read one message; EOFError if the other side is gone."""
    (size,) = _HEADER.unpack(_exactly(stream, _HEADER.size))
    return pickle.loads(_exactly(stream, size))


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if data is None or len(data) < size:
        raise EOFError("the other side is gone.")
    return data


def main() -> None:
    """Serve decisions until stdin ends."""
    source = sys.stdin.buffer
    # Solvers print; whatever they print must not end up between our messages.
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    os.nice(10)  # the engine comes first

    path, spec, practice = receive(source)
    sys.path[:] = path
    started_s = _watch(os.getppid())
    try:
        from engine_adapter.settings import instantiate

        policy = instantiate(spec)
        beginner = instantiate(spec) if practice else None
    except Exception as error:
        send(sink, f"{type(error).__name__}: {error}")
        return
    for snapshot in practice:
        # By another one than the real policy, whose state is left alone; errors come again.
        _answer(beginner, snapshot, [])
    send(sink, "ready")

    while True:
        try:
            snapshot, finished = receive(source)
        except EOFError:
            return
        started_s(time.monotonic())
        send(sink, _answer(policy, snapshot, finished))
        started_s(None)


def _answer(policy: Any, snapshot: Any, finished: list[int]) -> Any:
    try:
        for number in finished:
            policy.finished(number)
        return policy.decide(snapshot)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _watch(parent: int, longest_s: float = 600.0) -> Callable[[float | None], None]:
    """End this process when its parent is gone, even in the middle of a solve."""
    since: list[float | None] = [None]

    def watch() -> None:
        while True:
            time.sleep(1.0)
            stuck = since[0] is not None and time.monotonic() - since[0] > longest_s
            if stuck or os.getppid() != parent:
                os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

    def started_s(time_s: float | None) -> None:
        since[0] = time_s

    return started_s


if __name__ == "__main__":
    main()
