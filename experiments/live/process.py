"""Processes that end in order: a child's whole group with its block, this one by an exception."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


#: How long a server may take to end by itself before it is ended.
GRACE_S = 20.0


@contextlib.contextmanager
def process_group(
    command: Sequence[str], *, grace_s: float | None = GRACE_S, **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """
    Run a command in a process group of its own, which ends with the block, whatever happens.

    The command is asked to end as by Ctrl-C; what is left of its group after ``grace_s`` is
    killed. On Linux it is asked to end, too, if this process is killed itself.

    Parameters
    ----------
    command
        Program and arguments.
    grace_s
        Seconds to end by itself; None for as long as it takes, or until this process is told
        again to end.
    **options
        For :class:`subprocess.Popen`.
    """
    process: subprocess.Popen[bytes] = subprocess.Popen(
        list(command), start_new_session=True, preexec_fn=_end_with_parent(), **options
    )
    try:
        yield process
    finally:
        try:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(grace_s)
        finally:
            # Also after a second Ctrl-C while waiting, and for workers that outlived the server.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def exit_on_signals() -> Iterator[None]:
    """Turn what ends this process into an exception, so that its blocks are left in order."""

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    old = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _end_with_parent() -> Callable[[], None] | None:
    """What a child of this process runs first, to be ended with it; None where there is no way."""
    if sys.platform != "linux":
        return None
    import ctypes

    # Loaded before the fork: little is safe after it.
    libc = ctypes.CDLL(None)
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
    return lambda: libc.prctl(set_parent_death_signal, signal.SIGTERM)
