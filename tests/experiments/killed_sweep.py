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
from pathlib import Path

#: (launcher, where the process dies). A number: before (-k) or after (k) the k-th file that
#: it moves into place, of three a run; "summary": when one more run is complete; "moment": at
#: some time.
KILLS = [
    ("joblib", "summary"),
    *(("basic", kill) for kill in (-1, 1, 2, 3, "moment")),
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
    complete = len(list(folder.glob("*/summary.json")))
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(kill, int):
            die_at(kill)
        os._exit(main(arguments))
    if kill == "summary":
        deadline = time.monotonic() + 60
        while len(list(folder.glob("*/summary.json"))) == complete:
            if time.monotonic() > deadline:
                break
            time.sleep(0.002)
        os.killpg(pid, signal.SIGKILL)
    elif kill == "moment":
        time.sleep(random.uniform(0.05, 1.0))
        os.killpg(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


if __name__ == "__main__":
    from experiments.cli import main
    from experiments.configuration import load
    from experiments.simulate import simulate

    folder, *arguments = sys.argv[1:]
    simulate(
        load("simulate", ["policy=fcfs", "workload.requests=4"])
    )  # the forks inherit the JIT's work
    for launcher, kill in KILLS:
        status = attempt([*arguments, f"hydra/launcher={launcher}"], Path(folder), kill)
        complete = len(list(Path(folder).glob("*/summary.json")))
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print(launcher, kill, "killed" if killed else "ended", complete)
