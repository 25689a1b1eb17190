"""
What a run leaves behind: ``rows.parquet``, ``env.json`` and, last, ``summary.json``.

A folder with a ``summary.json`` is complete: it is written when everything else is in
place, and an old one is removed before a run starts. Each file appears whole or not at all.
"""

from __future__ import annotations

import json
import math
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from experiments.configuration.errors import RunRefused, is_user_error
from experiments.runs.environment import environment
from experiments.runs.identity import current, register_run_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

ROWS, SUMMARY, ENVIRONMENT = "rows.parquet", "summary.json", "env.json"
#: Of some runs: a row per token, and a row per sample of the engine's occupancy.
TOKENS, TIMELINE = "tokens.parquet", "timeline.parquet"
#: Files of a run beside its summary that hold what it measured.
_MEASURED = (f"*{ROWS}", TOKENS, TIMELINE)
#: Why a run failed; a run that has it is not complete.
ERROR = "error.json"

#: Version of the columns below: raised when one changes its name, its unit or its meaning.
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Column:
    """A column of ``rows.parquet``: its type, its unit, what it says."""

    dtype: Any
    unit: str
    meaning: str


#: What made a row; first in every file.
RUN_COLUMNS = {
    "command": Column(pl.String, "", "command that made the row"),
    "policy": Column(pl.String, "", "name in conf/policy, or the class"),
    "solver": Column(pl.String, "", "name in conf/solver, or the class; null if none is used"),
    "objective": Column(pl.String, "", "name in conf/objective; null if none is used"),
    "engine": Column(pl.String, "", "name in conf/engine"),
    "workload": Column(pl.String, "", "name in conf/workload"),
    "lengths": Column(pl.String, "", "name in conf/lengths; null if the workload has its own"),
    "readers": Column(pl.String, "", "name in conf/readers"),
    "rate": Column(pl.Float64, "requests/s", "mean arrival rate; null if the workload sets it"),
    "seed": Column(pl.Int64, "", "seed of the workload"),
    "overrides": Column(pl.String, "", "overrides of the run, separated by spaces"),
}

#: One row per request.
REQUEST_COLUMNS = {
    "request": Column(pl.Int64, "", "number of the request, by arrival"),
    "arrival_s": Column(pl.Float64, "s", "arrival on the engine's clock"),
    "prompt_tokens": Column(pl.Int64, "tokens", "prompt length"),
    "output_tokens": Column(pl.Int64, "tokens", "reply length"),
    "ttft_s": Column(pl.Float64, "s", "the reader's expected time to first token"),
    "tds": Column(pl.Float64, "tokens/s", "the reader's token delivery speed"),
    "rejected": Column(pl.Boolean, "", "it can never fit, or the server refused it; scores 0"),
    "first_token_s": Column(pl.Float64, "s", "first token, since arrival; null if rejected"),
    "completion_s": Column(pl.Float64, "s", "last token, since arrival; null if rejected"),
    "qoe_area": Column(pl.Float64, "", "QoE by the `area` definition"),
    "qoe_delay": Column(pl.Float64, "", "QoE by the `delay` definition"),
    "qoe_window": Column(pl.Float64, "", "QoE by the `window` definition"),
    "preemptions": Column(pl.Int64, "", "times the request was preempted"),
}

#: What only a live client can tell of a request; beside :data:`REQUEST_COLUMNS`.
CLIENT_COLUMNS = {
    "outcome": Column(pl.String, "", "completed, refused, failed, timed out or interrupted"),
    "error": Column(pl.String, "", "why the request did not complete; null if it did"),
    "wanted_tokens": Column(pl.Int64, "tokens", "reply length that was asked for"),
    "send_lag_s": Column(pl.Float64, "s", "from arrival until the client began to send"),
    "connect_s": Column(pl.Float64, "s", "from then until the request was on the wire"),
    "tpot_s": Column(pl.Float64, "s", "mean gap between tokens; null for fewer than two"),
    "itl_max_s": Column(pl.Float64, "s", "longest gap between tokens; null for fewer than two"),
    "idle_s": Column(pl.Float64, "s", "how long the reader waited in all"),
    "fluidity": Column(pl.Float64, "", "Etalon's fluidity index"),
    "smooth_benefit_tokens": Column(pl.Float64, "tokens", "share in smooth goodput"),
    "events": Column(pl.Int64, "", "events of the stream with tokens or text"),
    "estimated": Column(pl.Boolean, "", "token times are estimates"),
}

#: One row per instance and solver. ``solver`` of the run columns is the one that answered.
QUALITY_COLUMNS = {
    "source": Column(pl.String, "", "captured, corpus, or the family's name"),
    "instance": Column(pl.String, "", "name of the instance within its source"),
    "requests": Column(pl.Int64, "", "requests n in the instance"),
    "capacity": Column(pl.Int64, "tokens", "KV capacity"),
    "min_batch": Column(pl.Int64, "", "smallest batch size"),
    "max_batch": Column(pl.Int64, "", "largest batch size"),
    "exactly": Column(pl.Boolean, "", "the plan must fill the batch exactly"),
    "status": Column(pl.String, "", "optimal, feasible, no solution, or refused"),
    "certified": Column(pl.Boolean, "", "the solver proved its plan optimal"),
    "value": Column(pl.Float64, "", "value of the plan, recomputed; null if there is none"),
    "bound": Column(pl.Float64, "", "the solver's proven upper bound; null if none"),
    "batch_size": Column(pl.Int64, "", "batch size of the plan"),
    "served": Column(pl.Int64, "", "requests served"),
    "reference": Column(pl.Float64, "", "certified optimum, else the best proven bound"),
    "reference_certified": Column(pl.Boolean, "", "the reference is the optimum"),
    "gap_percent": Column(pl.Float64, "%", "(reference - value) / |reference|; 100 without a plan"),
    "proven_gap_percent": Column(
        pl.Float64, "%", "(bound - value) / max(1, |value|); null if no bound"
    ),
    "wall_s": Column(pl.Float64, "s", "wall-clock time of the call, median over repeats"),
    "cpu_s": Column(pl.Float64, "s", "processor time of the call, child processes included"),
    "build_s": Column(pl.Float64, "s", "building models, as the solver states it"),
    "solve_s": Column(pl.Float64, "s", "solving, as the solver states it"),
    "time_limit_s": Column(pl.Float64, "s", "limit given to the solver; null if none"),
    "note": Column(pl.String, "", "why a solver refused the instance"),
}

#: What the portfolio's rows have beside those of ``QUALITY_COLUMNS``.
PORTFOLIO_COLUMNS = {
    "core": Column(pl.Boolean, "", "one of the instances that every solver is asked"),
    "backend_s": Column(pl.Float64, "s", "solve_s without our own bounds on batch sizes"),
    "load": Column(pl.Float64, "", "the machine's load over the last minute, before the call"),
}

#: One row per number of a study: what was measured of one simulation.
STUDY_COLUMNS = {
    "variant": Column(pl.String, "", "variant of engine and workload, by the study's name"),
    "arm": Column(pl.String, "", "policy with its options, by the study's name"),
    "relative_load": Column(pl.Float64, "", "rate over the baseline's capacity; null if not set"),
    "jitter_s": Column(pl.Float64, "s", "mean network delay of a token; null without a network"),
    "charged_solve_s": Column(pl.Float64, "s", "simulated time of a solve, where a study sets it"),
    "metric": Column(pl.String, "", "as in docs/metrics.md or experiments/study_cells.py"),
    "part": Column(pl.String, "", "the requests or the percentage it is about; empty for all"),
    "number": Column(pl.Float64, "", "the metric's value, in the unit of its name"),
}

COLUMNS = {
    **RUN_COLUMNS,
    **REQUEST_COLUMNS,
    **CLIENT_COLUMNS,
    **QUALITY_COLUMNS,
    **PORTFOLIO_COLUMNS,
    **STUDY_COLUMNS,
}


# Every command that records runs imports this module, in a sweep's worker processes too.
register_run_id()


def frame(columns: Mapping[str, Any], **constants: Any) -> pl.DataFrame:
    """
    Rows under the documented schema.

    Parameters
    ----------
    columns
        Column name -> values (n,).
    **constants
        Column name -> one value for all rows.

    Returns
    -------
    polars.DataFrame
        NaN and infinities replaced by null, columns in the schema's order.

    Raises
    ------
    ValueError
        If a column is not documented in :data:`COLUMNS`.
    """
    unknown = [name for name in (*columns, *constants) if name not in COLUMNS]
    if unknown:
        raise ValueError(f"column {unknown[0]} is not in experiments.runs.records.COLUMNS.")
    names = [name for name in COLUMNS if name in columns or name in constants]
    series = {name: pl.Series(name, columns[name], COLUMNS[name].dtype) for name in columns}
    rows = pl.DataFrame(series).with_columns(
        pl.lit(value, dtype=COLUMNS[name].dtype).alias(name) for name, value in constants.items()
    )
    floats = [name for name in names if COLUMNS[name].dtype == pl.Float64]
    finite = [pl.when(pl.col(name).is_finite()).then(pl.col(name)).alias(name) for name in floats]
    return rows.with_columns(finite).select(names)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """
    Create a file by writing beside it and moving the result into place.

    Parameters
    ----------
    path
        The file.
    write
        Called with the path to write to.
    """
    # The suffix stays, since matplotlib and polars choose the format by it.
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write strict JSON; NaN and infinities become null."""
    text = json.dumps({key: _plain(value) for key, value in content.items()}, indent=2)
    write_atomically(path, lambda partial: partial.write_text(text + "\n", encoding="utf-8"))


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@dataclass(frozen=True, slots=True)
class Run:
    """A run's output folder."""

    folder: Path
    environment: Mapping[str, Any]

    def finish(self, rows: pl.DataFrame | None, summary: Mapping[str, float]) -> None:
        """
        Write ``rows.parquet``, ``env.json`` and, last, ``summary.json``.

        Parameters
        ----------
        rows
            Made by :func:`frame`; None for a command that makes none.
        summary
            Metric name -> number.
        """
        if rows is not None:
            write_atomically(self.folder / ROWS, rows.write_parquet)
        write_json(self.folder / ENVIRONMENT, self.environment)
        write_json(self.folder / SUMMARY, summary)


def printable(path: Path) -> Path:
    """How a path is printed: relative to the current folder if it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


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
    for pattern in _MEASURED:
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
    Folders of the complete runs below some folders, each once.

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
    """What a run's ``env.json`` holds: see :func:`experiments.runs.environment.environment`."""
    recorded: dict[str, Any] = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))
    return recorded


def read_run(folder: Path, name: str = ROWS) -> pl.DataFrame:
    """
    The rows of one complete run, checked against the documented schema.

    Parameters
    ----------
    folder
        The run's folder.
    name
        The file of rows; a command may write more than one.

    Raises
    ------
    ValueError
        If the rows were written under another version of the schema.
    """
    recorded = read_environment(folder)
    schema = recorded.get("schema", SCHEMA)
    rows = pl.read_parquet(folder / name)
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
    All rows of all complete runs below some folders, as one table.

    Raises
    ------
    FileNotFoundError
        If there is no complete run below them.
    ValueError
        If rows were written under another version of the schema.
    """
    return pl.concat([read_run(folder) for folder in complete_runs(*folders)], how="diagonal")
