"""Where a result was made: versions, commit, processor, threads, load."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from andes_opt.versions import versions
from experiments import ROOT
from experiments.configuration.threads import THREAD_VARIABLES

if TYPE_CHECKING:
    from collections.abc import Mapping


#: What results are made of. Documents and outputs are not: every result would change them.
_MADE_OF = ("andes_opt", "solvers", "engine_adapter", "experiments", "conf", "benchmarks")


def environment() -> dict[str, Any]:
    """
    Return what ``env.json`` holds.

    Returns
    -------
    dict
        ``started`` (UTC, ISO 8601), ``versions``, ``git`` (``commit``, ``modified``: whether
        code or configuration is; None outside a checkout), ``cpu``, ``cores``,
        ``cores_usable``, ``gpus`` (names of NVIDIA's), ``threads`` (variable -> value), ``load``
        (1, 5, 15 minutes; None where unknown), ``platform``.
    """
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "git": _git(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "cores_usable": usable_cores(),
        "gpus": gpu_names(),
        "threads": {name: os.environ.get(name) for name in THREAD_VARIABLES},
        "load": [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "platform": platform.platform(),
    }


def cpu_model() -> str:
    """Return the processor's name as the system gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.lower().startswith(("model name", "hardware")):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@cache  # a sweep has thousands of runs, and the driver takes its time
def gpu_names() -> tuple[str, ...]:
    """Return the names of NVIDIA's GPUs here, as its driver gives them; empty without one."""
    words = _output(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"])
    return tuple(words.splitlines()) if words else ()


def commit_words(environment: Mapping[str, Any]) -> str:
    """
    Return in words which code made a result.

    Parameters
    ----------
    environment
        As :func:`environment` returns it, or as read from ``env.json``.
    """
    git = environment.get("git")
    if git is None:
        return "outside a checkout"
    return str(git["commit"])[:12] + (" with changes" if git["modified"] else "")


def usable_cores() -> int | None:
    """Return how many processors this process may use; None where unknown."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _git() -> dict[str, Any] | None:
    # Only the project's own repository counts: an installed package may lie in a virtual
    # environment inside somebody else's.
    top = _run_git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != ROOT:
        return None
    commit = _run_git("rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "modified": bool(_run_git("status", "--porcelain", "--", *_MADE_OF))}


def _run_git(*arguments: str) -> str | None:
    return _output(["git", "-C", str(ROOT), *arguments])


def _output(command: list[str]) -> str | None:
    """Return what a short command prints; None where it is not installed or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
