"""
The portfolio's answers on disk: a line per (solver, instance), there as soon as it is known.

A run that is stopped, killed even, loses the call it was in. The next one reads what is
there and goes on. An answer is used again only in the state that it was made in: the same
code, versions, processor, options and limits.

One file of lines, not a file for each result as in :mod:`experiments.runs.cells`: there are some
ten thousand small answers, and their infinite values and bounds have no words in strict JSON.
"""

from __future__ import annotations

import json
import os
from functools import cache
from typing import TYPE_CHECKING, Any

from experiments.runs.code_closure import modules_of, state_of
from experiments.runs.files import plain

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@cache
def code_state() -> str:
    """
    Return a hash of what answers and times depend on: solvers, versions, processor.

    Taken once per process, since code that changes later is not the code that runs.
    """
    return state_of(modules_of("andes_opt", "solvers"))


class AnswerStore:
    """
    Answers by (source, instance, solver), each written to a file before it counts.

    Parameters
    ----------
    path
        A file of JSON lines; made if missing. A half-written last line is dropped.

    Attributes
    ----------
    reused
        Answers of earlier runs that were asked for.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cells: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.reused = 0
        if path.exists():
            self._cells = {_key(cell): cell for cell in _read(path)}
            self._end_the_last_line()

    def get(self, source: str, instance: str, solver: str, state: str) -> dict[str, Any] | None:
        """Return the answer made in this state; None if there is none."""
        cell = self._cells.get((source, instance, solver))
        if cell is None or cell["state"] != state:
            return None
        self.reused += 1
        return cell

    def add(self, cell: dict[str, Any]) -> None:
        """Write an answer down; it replaces one of another state."""
        line = json.dumps(plain(cell, finite=False)) + "\n"
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._cells[_key(cell)] = cell

    def _end_the_last_line(self) -> None:
        with open(self._path, "rb+") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


def _key(cell: dict[str, Any]) -> tuple[str, str, str]:
    return cell["source"], cell["instance"], cell["solver"]


def _read(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            cell = json.loads(line)
            _key(cell), cell["state"]
        except (ValueError, TypeError, KeyError):
            continue  # the run was killed in the middle of this line
        yield cell
