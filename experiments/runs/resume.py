"""
Sweeps that go on where they were stopped, and whose failed runs stop no other.

A run of a sweep has a folder named by the hash of its configuration (``identity.py``). With
``sweep.resume=true`` it is skipped if that folder is complete and was made by the same code;
what was in flight when a sweep was killed has no ``summary.json`` and is made again.
"""

from __future__ import annotations

import sys
import traceback
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from experiments.configuration.errors import (
    RunRefused,
    RunsFailed,
    UsageError,
    is_user_error,
    one_line,
)
from experiments.configuration.output import careful_output, visible
from experiments.runs.files import ERROR, SUMMARY, printable, read_json, write_json
from experiments.runs.identity import identified, identity
from experiments.runs.records import read_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

#: How many failed runs a message names.
_NAMED = 3


def resumable(
    run: Callable[[DictConfig], dict[str, float]],
) -> Callable[[DictConfig], dict[str, float] | None]:
    """
    Let a command's runs be skipped when a sweep resumes, and record their errors.

    Parameters
    ----------
    run
        Makes one run in Hydra's output folder and returns its summary.

    Returns
    -------
    callable
        Does so too; but in a sweep it skips what is complete, and returns None after an
        error that it wrote to ``error.json``, so that the sweep goes on.
    """

    @wraps(run)
    def recorded(config: DictConfig) -> dict[str, float] | None:
        hydra = HydraConfig.get()
        folder = Path(hydra.runtime.output_dir)
        identification = identity(hydra.job.name, config)
        sweeping = hydra.mode == RunMode.MULTIRUN
        if sweeping and OmegaConf.select(config, "sweep.resume", default=False):
            summary = finished(folder, identification)
            if summary is not None:
                print(f"{printable(folder)} is complete.")
                return summary
        try:
            # Also in a sweep's worker process, which no console script has begun.
            with careful_output(f"andes-opt {hydra.job.name}"), identified(identification):
                return run(config)
        except Exception as error:
            with suppress(OSError):  # a full disk is told by the error itself
                write_json(folder / ERROR, {**_account(error), "run": identification})
            if not sweeping:
                raise
            print(f"{printable(folder)} failed: {one_line(error)}", file=sys.stderr)
            return None

    return recorded


def say(sentence: str, folder: Path) -> None:
    """
    Print what came out of a run, and where it lies.

    In a sweep, whose runs may end in any order, the run's overrides stand before it.

    Parameters
    ----------
    sentence
        What came out.
    folder
        The run's folder.
    """
    hydra = HydraConfig.get()
    overrides = " ".join(word for word in hydra.overrides.task if not word.startswith("sweep."))
    lines = [sentence, str(printable(folder))]
    if hydra.mode == RunMode.MULTIRUN and overrides:
        lines.insert(0, f"{overrides}:")
    # One call, so that processes don't talk into one another.
    print(visible("\n".join(lines)), flush=True)


@contextmanager
def said(sentence: str, folder: Path) -> Iterator[None]:
    """
    Say what came out of a run once the block has written it, or could not: it may be all there is.

    Parameters
    ----------
    sentence, folder
        As for :func:`say`.
    """
    try:
        yield
    finally:
        say(sentence, folder)


def finished(folder: Path, run: Mapping[str, str]) -> dict[str, float] | None:
    """
    Return the summary of a complete run.

    Parameters
    ----------
    folder
        The run's folder.
    run
        What identifies the run, from ``identity.identity``.

    Returns
    -------
    dict or None
        None if the folder holds no complete run, a failed one, or that of another
        configuration or other code.
    """
    if (folder / ERROR).exists():
        return None
    try:
        recorded = read_environment(folder)
        summary: dict[str, float] = read_json(folder / SUMMARY)
    except (OSError, ValueError):
        return None
    return summary if recorded.get("run") == run else None


class SweepCallback(Callback):
    """Hydra calls this before and after a sweep; ``conf/hydra/default.yaml`` names it."""

    def __init__(self) -> None:
        self._before: dict[Path, int] = {}

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """
        Refuse to resume in a folder that is new each time; remember earlier failures.

        Raises
        ------
        RunRefused
            If no folder to resume in is named.
        """
        places: Any = OmegaConf.to_container(config.hydra.sweep, resolve=False)
        if OmegaConf.select(config, "sweep.resume", default=False) and "${now:" in places["dir"]:
            raise RunRefused from UsageError(
                "sweep.resume=true needs hydra.sweep.dir=FOLDER, the sweep to go on with."
            )
        self._before = _failures(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """
        Say which runs failed.

        Raises
        ------
        RunsFailed
            If there is one.
        """
        folder = Path(config.hydra.sweep.dir)
        failed = [
            path.parent
            for path, written in _failures(folder).items()
            if self._before.get(path) != written
        ]
        if failed:
            names = [str(printable(path)) for path in failed[:_NAMED]]
            names += ["..."] if len(failed) > _NAMED else []
            raise RunsFailed(
                f"{len(failed)} run{'s' if len(failed) > 1 else ''} failed; "
                f"{ERROR} says why: {', '.join(names)}"
            )


def _failures(sweep: Path) -> dict[Path, int]:
    """Return the errors recorded below a folder, and when they were written (ns)."""
    return {path: path.stat().st_mtime_ns for path in sorted(sweep.rglob(ERROR))}


def _account(error: Exception) -> dict[str, Any]:
    return {
        "error": type(error).__name__,
        "message": one_line(error),
        "user_error": is_user_error(error),
        "traceback": "".join(traceback.format_exception(error)),
    }
