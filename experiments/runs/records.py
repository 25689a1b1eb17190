"""
What a run leaves behind: ``rows.parquet``, ``env.json`` and, last, ``summary.json``.

A folder with a ``summary.json`` is complete: it is written when everything else is in
place, and an old one is removed before a run starts. Each file appears whole or not at all.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from experiments.configuration.errors import RunRefused, is_user_error
from experiments.runs.columns import COLUMNS, SCHEMA
from experiments.runs.environment import environment
from experiments.runs.files import (
    ENVIRONMENT,
    ERROR,
    MEASURED,
    ROWS,
    SUMMARY,
    read_json,
    read_table,
    write_atomically,
    write_json,
)
from experiments.runs.identity import current, register_run_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


# Every command that records runs imports this module, in a sweep's worker processes too.
register_run_id()


@dataclass(frozen=True, slots=True)
class Run:
    """A run's output folder."""

    folder: Path
    environment: Mapping[str, Any]

    def keep(self, rows: pl.DataFrame) -> None:
        """Write ``rows.parquet``: first of all, since what is drawn and said of it may fail."""
        write_atomically(self.folder / ROWS, rows.write_parquet)

    @contextmanager
    def keeping(self, rows: Callable[[], pl.DataFrame | None]) -> Iterator[None]:
        """
        Keep what there is of the rows, if the block is left by an error or an interrupt.

        Parameters
        ----------
        rows
            Returns the rows so far, or None if there are none.
        """
        try:
            yield
        except BaseException:
            if (found := rows()) is not None:
                self.keep(found)
            raise

    def finish(self, rows: pl.DataFrame | None, summary: Mapping[str, float]) -> None:
        """
        Write ``rows.parquet``, ``env.json`` and, last, ``summary.json``.

        Parameters
        ----------
        rows
            Made by :func:`~experiments.runs.columns.frame`; None for a command that makes none.
        summary
            Metric name -> number.
        """
        if rows is not None:
            self.keep(rows)
        write_json(self.folder / ENVIRONMENT, self.environment)
        write_json(self.folder / SUMMARY, summary)


@contextmanager
def recorded_run(folder: Path) -> Iterator[Run]:
    """
    Open an output folder for a run.

    If a run ends with a user error, what Hydra wrote for it is removed again, so that no
    folder without results is left behind; unless it is one of a sweep, which records it.

    Parameters
    ----------
    folder
        The folder; Hydra has made it already.

    Raises
    ------
    RunRefused
        In place of a user error, unless the run is one of a sweep.
    """
    for name in (SUMMARY, ERROR):
        (folder / name).unlink(missing_ok=True)
    # What an earlier run measured must not stand beside what this one does.
    for pattern in MEASURED:
        for path in folder.glob(pattern):
            path.unlink()
    _remove_partials(folder)
    try:
        yield Run(folder, {"schema": SCHEMA, "run": current(), **environment()})
    except Exception as error:
        if not is_user_error(error) or HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        _remove_empty_run(folder)
        raise RunRefused from error


def _remove_partials(folder: Path) -> None:
    """Remove what a killed process was writing; of a live one it would be missed."""
    for path in folder.glob(".*.partial*"):
        process = path.name.split(".partial")[0].rpartition(".")[2]
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except (ValueError, OSError):
            continue  # not one of ours, or another user's process


def _remove_empty_run(folder: Path) -> None:
    """Remove Hydra's files from a folder that holds nothing else, and empty parents."""
    hydra = folder / ".hydra"
    if {path.name for path in folder.iterdir()} != {hydra.name}:
        return
    for path in hydra.iterdir():
        path.unlink()
    try:
        hydra.rmdir()
        for parent in (folder, *folder.parents):
            if parent == Path.cwd():
                break
            parent.rmdir()
    except OSError:
        return  # a folder that holds something else stays


def complete_runs(*folders: Path) -> list[Path]:
    """
    Return the folders of the complete runs below some folders, each once.

    Raises
    ------
    FileNotFoundError
        If there is none below them, or one of them does not exist.
    """
    for folder in folders:
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"{folder} is no folder.")
    found = {
        path.parent.resolve(): path.parent
        for folder in folders
        for path in sorted(Path(folder).rglob(SUMMARY))
        if (path.parent / ROWS).exists() and not (path.parent / ERROR).exists()
    }
    if not found:
        names = ", ".join(str(folder) for folder in folders)
        raise FileNotFoundError(
            f"no complete run (a folder with {ROWS} and {SUMMARY}) below {names}."
        )
    return list(found.values())


def read_environment(folder: Path) -> dict[str, Any]:
    """
    Return a run's ``env.json``: see :func:`experiments.runs.environment.environment`.

    Raises
    ------
    FileNotFoundError, ValueError
        As :func:`experiments.runs.files.read_json`.
    """
    recorded = read_json(folder / ENVIRONMENT)
    for name, needed in (("run", ()), ("git", ("commit", "modified"))):
        part = recorded.get(name)
        if part is not None and not (isinstance(part, dict) and all(key in part for key in needed)):
            raise ValueError(f"{folder / ENVIRONMENT} can't be read: its {name!r} is {part!r}.")
    return recorded


def read_run(folder: Path, name: str = ROWS) -> pl.DataFrame:
    """
    Return the rows of one complete run, checked against the documented schema.

    Parameters
    ----------
    folder
        The run's folder.
    name
        The file of rows; a command may write more than one.

    Raises
    ------
    ValueError
        If the rows can't be read, or were written under another version of the schema.
    """
    recorded = read_environment(folder)
    schema = recorded.get("schema", SCHEMA)
    rows = read_table(folder / name)
    strange = [
        column
        for column, dtype in rows.schema.items()
        if column not in COLUMNS or COLUMNS[column].dtype != dtype
    ]
    if schema != SCHEMA or strange:
        what = f"schema {schema}" if schema != SCHEMA else f"another schema (column {strange[0]})"
        raise ValueError(
            f"{folder / name} has rows of {what}, this version reads schema {SCHEMA}: "
            "leave it out, or run it again."
        )
    return rows


def read_rows(*folders: Path) -> pl.DataFrame:
    """
    Return all rows of all complete runs below some folders, as one table.

    Raises
    ------
    FileNotFoundError
        If there is no complete run below them.
    ValueError
        If rows were written under another version of the schema.
    """
    return pl.concat([read_run(folder) for folder in complete_runs(*folders)], how="diagonal")
