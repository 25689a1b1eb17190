"""
A grid of cells: work done in parallel, each result on disk as soon as it is there.

A cell is a function's name and plain options. Its result is a JSON file named by a hash of
these and of the code they can run, so that a stopped run goes on where it was, and studies
that ask for the same cell share it.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from joblib import Parallel, cpu_count, delayed  # type: ignore[import-untyped]  # it has none

from experiments.runs.code_closure import state_of, targets
from experiments.runs.files import plain, read_json, write_json
from experiments.runs.identity import contents
from experiments.runs.progress import bar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from hydra.conf import HydraConf


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """
    One piece of work.

    Parameters
    ----------
    work
        ``"package.module:function"``; it is called with the options and returns what JSON
        can hold.
    options
        All that the result depends on beside the code, plain and JSON-able.
    label
        What rows say of the result: the study's own names, never part of the identity.
    """

    work: str
    options: Mapping[str, Any]
    label: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Done:
    """
    What a grid did.

    Parameters
    ----------
    results
        Result of each cell, in the order of the cells.
    computed, reused
        Distinct cells computed now, and found on disk.
    seconds
        CPU seconds of computing all the distinct cells, whenever that was.
    """

    results: list[Any]
    computed: int
    reused: int
    seconds: float


class Store:
    """
    Results of cells in a folder, one file each, shared by the processes that work on them.

    Parameters
    ----------
    folder
        The folder; made when the first result is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._states: dict[frozenset[str], str] = {}

    def path(self, cell: Cell) -> Path:
        """Return where the cell's result is, or will be."""
        modules = frozenset({cell.work.partition(":")[0], *targets(cell.options)})
        if modules not in self._states:
            self._states[modules] = state_of(modules)
        identity = [cell.work, contents(cell.options), self._states[modules]]
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return self._folder / f"{digest[:32]}.json"


def finish(
    cells: Sequence[Cell], folder: Path, *, processes: int, description: str = "cells"
) -> Done:
    """
    Return the results of all cells: those on disk, and the others computed now.

    Parameters
    ----------
    cells
        The work. Equal cells are done once.
    folder
        Where results are kept.
    processes
        How many to work at a time; 1 works in this process.
    description
        What the progress bar says.

    Returns
    -------
    Done
        The results in the order of the cells, and what it took.

    Raises
    ------
    Exception
        Whatever a cell raises; results that are there stay.
    """
    store = Store(folder)
    paths = [store.path(cell) for cell in cells]
    known = {path: _read(path) for path in dict.fromkeys(paths)}
    missing = {path: cell for path, cell in zip(paths, cells, strict=True) if known[path] is None}
    folder.mkdir(parents=True, exist_ok=True)
    with bar(len(known), description) as progress:
        progress.update(len(known) - len(missing))
        for path, answer in _computed(missing, processes):
            known[path] = answer
            progress.update()
    answers = {path: answer for path, answer in known.items() if answer is not None}
    return Done(
        results=[answers[path]["result"] for path in paths],
        computed=len(missing),
        reused=len(known) - len(missing),
        seconds=sum(answer["seconds"] for answer in answers.values()),
    )


def processes_of(hydra_config: HydraConf) -> int:
    """
    Return how many processes Hydra's launcher is set to use.

    The joblib launcher's ``n_jobs`` counts as in joblib (-1 for all cores); launchers without
    one, ``hydra/launcher=basic`` say, mean a single process.
    """
    wanted = hydra_config.launcher.get("n_jobs", 1)
    if wanted is None:
        return 1
    return int(wanted) if wanted > 0 else max(1, int(cpu_count()) + 1 + int(wanted))


def _computed(
    missing: Mapping[Path, Cell], processes: int
) -> Iterable[tuple[Path, dict[str, Any]]]:
    work = [(cell.work, dict(cell.options), path) for path, cell in missing.items()]
    if processes == 1 or len(work) < 2:
        yield from (_compute(*item) for item in work)
        return
    pool = Parallel(n_jobs=processes, batch_size=1, return_as="generator_unordered")
    yield from pool(delayed(_compute)(*item) for item in work)


def _compute(work: str, options: dict[str, Any], path: Path) -> tuple[Path, dict[str, Any]]:
    """Do the work and write the result down, in the process that did it."""
    module, _, name = work.partition(":")
    started = time.process_time()
    result = plain(getattr(import_module(module), name)(**options))
    answer = {"seconds": time.process_time() - started, "result": result}
    write_json(path, answer, indent=None)
    return path, answer


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = read_json(path)
    except (FileNotFoundError, ValueError):
        return None
    return found if {"seconds", "result"} <= found.keys() else None
