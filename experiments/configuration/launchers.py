"""Where the runs of a sweep are made: the launchers there are, and how a remote worker starts."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from experiments.configuration.errors import UsageError, not_installed, not_understood
from experiments.configuration.threads import limit_threads

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Commands whose runs share a server or a machine's full attention.
ONE_AT_A_TIME = ("bench", "live")

#: Variable of a remote worker that holds the folder of the process that started the sweep.
_FOLDER = "ANDES_OPT_FOLDER"


@dataclass(frozen=True, slots=True)
class Launcher:
    """A value of ``hydra/launcher=``: what it is, and the extra and the module it needs."""

    meaning: str
    extra: str | None = None
    module: str | None = None


_SUBMITIT, _RAY = "hydra_plugins.hydra_submitit_launcher", "hydra_plugins.hydra_ray_launcher"

LAUNCHERS = {
    "basic": Launcher("one run after the other, in this process"),
    "joblib": Launcher("all cores of this machine, one thread each: simulate's default"),
    "slurm": Launcher("a Slurm cluster: an array job, one core for each run", "slurm", _SUBMITIT),
    "submitit_local": Launcher("submitit's processes on this machine", "slurm", _SUBMITIT),
    "submitit_slurm": Launcher("Slurm by submitit's own defaults", "slurm", _SUBMITIT),
    "ray_cluster": Launcher("a Ray cluster, running or started here", "ray", _RAY),
    "ray": Launcher("Ray by the plug-in's own defaults, on this machine", "ray", _RAY),
}

#: Names of exceptions by which launchers say that a run's process is gone, not that it failed.
_DEATHS = ("TerminatedWorkerError", "WorkerCrashedError", "OutOfMemoryError", "UncompletedJobError")


def check_launcher(command: str, name: str, others: Iterable[str] = ()) -> None:
    """
    Check the value of ``hydra/launcher=`` before Hydra sees it.

    Parameters
    ----------
    command
        The command that is to be swept.
    name
        The launcher.
    others
        Names of launchers that the user has brought along.

    Raises
    ------
    UsageError
        If there is no such launcher, the extra that it needs is not installed, or the
        command's runs must not be made in parallel.
    """
    if command in ONE_AT_A_TIME and name != "basic":
        raise UsageError(
            f"hydra/launcher={name} not understood: runs of {command} are never parallel, "
            "need basic."
        )
    others = set(others)
    if name in others:
        return
    if name not in LAUNCHERS:
        raise not_understood("hydra/launcher", name, [*LAUNCHERS, *sorted(others)])
    launcher = LAUNCHERS[name]
    if launcher.module is not None and not _installed(launcher.module):
        raise not_installed(f"what hydra/launcher={name} needs", str(launcher.extra))


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the parent
        return False


def lost_process(error: BaseException) -> bool:
    """Return whether a launcher says that a run's process died: killed, or out of memory."""
    return type(error).__name__ in _DEATHS


def enter_worker() -> None:
    """
    Make a remote worker like the process that started the sweep.

    Relative paths of a configuration count from the folder in ``ANDES_OPT_FOLDER``, which the
    cluster's machines must share; and numerical libraries get one thread.
    """
    limit_threads()
    folder = os.environ.get(_FOLDER)
    if folder:
        os.chdir(folder)
        sys.path.append(folder)  # as compose.see_current_folder, without Hydra
