"""
A sweep that is killed again and again: a script for ``test_resume.py``.

It imports and compiles once and forks a process for each attempt, which dies by SIGKILL as
described in ``KILLS``, at a file that it writes or at a moment. Prints how each one ended.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

#: (launcher, where the process dies). A number: before (-k) or after (k) the k-th file that
#: it moves into place, of three a run; "summary": when one more run is complete; "moment": at
#: some time after the first run has begun.
KILLS = [
    ("joblib", "summary"),
    *(("basic", kill) for kill in (-1, 2, 3, "moment")),
]


def die_at(kill):
    """Let this process end itself at the given file."""
    replace, count = Path.replace, 0

    def replace_or_die(path, target):
        nonlocal count
        count += 1
        if count == -kill:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(path, target)
        if count == kill:
            os.kill(os.getpid(), signal.SIGKILL)

    Path.replace = replace_or_die


def attempt(arguments, folder, kill):
    """Start the sweep in a process group of its own, and see it die."""
    before = newest(folder, "summary.json"), newest(folder, "config.yaml")
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(kill, int):
            die_at(kill)
        os._exit(main(arguments))
    if kill == "summary":
        wait_for(lambda: newest(folder, "summary.json") != before[0])
        os.killpg(pid, signal.SIGKILL)
    elif kill == "moment":
        wait_for(lambda: newest(folder, "config.yaml") != before[1])
        time.sleep(random.uniform(0.0, 0.5))
        os.killpg(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def newest(folder, name):
    """When a file of this name was last written somewhere below a folder."""
    times = [0]
    for path in folder.rglob(name):
        with suppress(FileNotFoundError):
            times.append(path.stat().st_mtime_ns)
    return max(times)


def wait_for(happened):
    """Look again and again, for a while."""
    deadline = time.monotonic() + 120
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.002)


if __name__ == "__main__":
    from experiments.cli import main
    from experiments.configuration.compose import load
    from experiments.runs.simulation import run_simulation

    folder, *arguments = sys.argv[1:]
    run_simulation(
        load("simulate", ["policy=fcfs", "workload.requests=4"])
    )  # the forks inherit the JIT's work
    for launcher, kill in KILLS:
        status = attempt([*arguments, f"hydra/launcher={launcher}"], Path(folder), kill)
        complete = len(list(Path(folder).glob("*/summary.json")))
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print(launcher, kill, "killed" if killed else "ended", complete)
