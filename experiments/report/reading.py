"""
What a report is about: complete runs read from folders, each labelled by what is compared.

An *arm* is what a comparison tells apart: the policy with its solver. A *setting* is what
arms share: engine, workload, readers. Rate and seed vary within both. Options that differ
between runs of one arm or setting become part of its label, so that nothing is averaged
over runs that are not alike.
"""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from andes_opt.metrics import QOE_DEFINITIONS
from experiments.analysis.statistics import PLACE, placed
from experiments.configuration.errors import one_line
from experiments.runs.columns import REQUEST_COLUMNS, RUN_COLUMNS
from experiments.runs.files import ERROR, ROWS, SUMMARY, TIMELINE, TOKENS, printable, read_table
from experiments.runs.progress import bar
from experiments.runs.records import complete_runs, read_environment, read_run

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

#: Overrides that other columns say, or that change no result.
_SAID_ELSEWHERE = {
    "policy",
    "solver",
    "objective",
    "engine",
    "workload",
    "lengths",
    "readers",
    "workload.rate",
    "load",
    "live_engine",
    "live_engine.saturated_tokens_per_s",
    "stock",
    "scheduler_cls",
    "seed",
    "tokens",
    "timeline",
    "rates",
    "policies",
    "arms",
    "solvers",
    "corpus",
    "families",
    "sizes",
    "count",
    "capture",
}
_IGNORED_GROUPS = ("hydra", "sweep", "served_by")
_SETTING_GROUPS = ("workload", "engine", "lengths", "readers", "endpoint", "experiment", "requests")
#: Overrides of quality that say who solves and how long, or the seed: the instance stays.
_NO_INSTANCE = ("solvers", "options", "time_limit_s", "repeats", "seed")
#: Files of rows that commands write beside the main one.
_MORE_ROWS = "*_rows.parquet"
#: Columns that plots need of the other tables.
_OF_TOKENS, _OF_TIMELINE = ("request", "time_s"), ("time_s", "decoding", "waiting", "kv_tokens")
#: Columns that a client can't tell, or that a request without a reply has not.
_MAY_BE_MISSING = ("first_token_s", "completion_s", "preemptions")
#: Of logs that other tools wrote; they have a column ``record``.
_LOGS_MAY_LACK = ("arrival_s", "prompt_tokens")


@dataclass(frozen=True, slots=True, eq=False)
class ServedRun:
    """
    The requests of a run: one arm in one setting at one rate with one seed.

    A run of a command may hold several.

    Parameters
    ----------
    folder
        Where the run lies.
    setting, arm
        Labels.
    rate
        Requests per second; None if the workload sets it.
    seed
        Seed of the workload.
    rows
        A row per request, columns of ``columns.REQUEST_COLUMNS``.
    alone
        Whether the run holds no others, so that its other files are about this one.
    """

    folder: Path
    setting: str
    arm: str
    rate: float | None
    seed: int | None
    rows: pl.DataFrame
    alone: bool


@dataclass(frozen=True, slots=True, eq=False)
class Results:
    """
    All that a report is made from.

    Parameters
    ----------
    runs
        Runs with rows per request.
    answers
        Rows per instance and solver, with a column ``unit`` that names what solvers share:
        the instance. Empty if there are none.
    measured
        Rows per number of a study or of tune, a metric each, each number once. Empty if there
        are none.
    notes
        Sentences about what was found: runs left out, versions mixed.
    environments
        ``env.json`` of every run.
    unreadable
        Why runs that should be complete could not be read, a sentence each, with the file.
    """

    runs: Sequence[ServedRun]
    answers: pl.DataFrame
    measured: pl.DataFrame
    notes: Sequence[str]
    environments: Sequence[dict[str, Any]]
    unreadable: Sequence[str] = ()


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Rows of one run under equal run columns, not labelled yet."""

    folder: Path
    key: dict[str, Any]
    rows: pl.DataFrame
    alone: bool


def read(folders: Sequence[Path]) -> Results:
    """
    Read every complete run below some folders; those with a file that can't be read are left out.

    Parameters
    ----------
    folders
        Folders of runs or of sweeps.

    Raises
    ------
    FileNotFoundError
        If a folder does not exist, or none holds a complete run.
    ValueError
        If no run can be read, or runs that should be one differ.
    """
    parts: list[_Part] = []
    answers: list[pl.DataFrame] = []
    measured: list[tuple[Path, pl.DataFrame]] = []
    environments: list[dict[str, Any]] = []
    unreadable: list[str] = []
    bounded: list[str] = []
    complete = complete_runs(*folders)
    with bar(len(complete), "reading") as progress:
        for folder in complete:
            progress.update()
            try:
                tables = _tables(folder)
                environments.append(read_environment(folder))
            except (OSError, ValueError) as error:
                unreadable.append(one_line(error))
                continue
            answers += [table for table in tables if "instance" in table.columns]
            measured += [(folder, table) for table in tables if "metric" in table.columns]
            requests = [table for table in tables if "request" in table.columns]
            parts += [part for table in requests for part in _parts(folder, table)]
            bounded += [note for table in requests for note in _bounds(folder, table)]
    if not environments:
        raise ValueError(unreadable[0])
    runs, dropped = _without_copies(_labelled(parts))
    numbers, repeated = _pooled(measured)
    left_out = [f"A run is left out: {why}" for why in unreadable]
    notes = [*_left_out(folders), *left_out, *bounded, *dropped, *repeated]
    notes += _mixed_code(environments)
    return Results(runs, _with_units(answers), numbers, notes, environments, unreadable)


def _tables(folder: Path) -> list[pl.DataFrame]:
    """The rows of a run, once it is known that all of its tables hold what a report needs."""
    for name, needed in ((TOKENS, _OF_TOKENS), (TIMELINE, _OF_TIMELINE)):
        path = folder / name
        if path.exists():
            table = read_table(path)
            _check_numbers(table, path, dict.fromkeys([*needed, *table.columns]))
    names = [ROWS, *sorted(path.name for path in folder.glob(_MORE_ROWS))]
    tables = {name: read_run(folder, name) for name in names}
    for name, table in tables.items():
        if not {"instance", "metric"} & set(table.columns):
            _check_numbers(table, folder / name, REQUEST_COLUMNS)
    return list(tables.values())


def _check_numbers(table: pl.DataFrame, path: Path, columns: Iterable[str]) -> None:
    """Refuse a table in which a column of numbers is missing, or one of its numbers."""
    may_be_missing = {*_MAY_BE_MISSING, *(_LOGS_MAY_LACK if "record" in table.columns else ())}
    for column in columns:
        if column not in table.columns:
            raise ValueError(f"{path} lacks column {column}.")
        dtype, nulls = table.schema[column], table[column].null_count()
        if not (dtype.is_numeric() or dtype == pl.Boolean):
            raise ValueError(f"{path}, column {column}: need numbers, not {dtype}.")
        if nulls and column not in may_be_missing:
            raise ValueError(f"{path}, column {column}: {nulls} of {table.height} are missing.")


def _parts(folder: Path, rows: pl.DataFrame) -> list[_Part]:
    keys = [name for name in RUN_COLUMNS if name in rows.columns]
    requests = [name for name in REQUEST_COLUMNS if name in rows.columns]
    tables = rows.partition_by(keys, maintain_order=True)
    return [
        _Part(
            folder,
            dict.fromkeys(RUN_COLUMNS) | table.select(keys).row(0, named=True),
            table.select(requests),
            len(tables) == 1,
        )
        for table in tables
    ]


def _labelled(parts: Sequence[_Part]) -> list[ServedRun]:
    """Runs with the shortest labels that tell different runs apart."""
    several_commands = len({part.key["command"] for part in parts}) > 1
    objectives: dict[Any, set[Any]] = defaultdict(set)
    for part in parts:
        objectives[part.key["policy"]].add(part.key["objective"])

    bases = []
    for part in parts:
        key = part.key
        in_brackets = [key["solver"]]
        if len(objectives[key["policy"]]) > 1:
            in_brackets.append(key["objective"])
        used = ", ".join(name for name in in_brackets if name)
        policy = key["policy"] or "unnamed policy"
        shared = [key[name] for name in ("engine", "workload", "lengths", "readers")]
        shared += [key["command"]] if several_commands else []
        setting = ", ".join(name for name in shared if name) or "unnamed setting"
        bases.append((setting, f"{policy} ({used})" if used else policy))

    options = [_options(part.key["overrides"] or "") for part in parts]
    of_settings = _distinguishing([base[0] for base in bases], [found[0] for found in options])
    of_arms = _distinguishing([base[1] for base in bases], [found[1] for found in options])
    return [
        ServedRun(
            part.folder,
            " ".join([setting, *more_setting]),
            " ".join([arm, *more_arm]),
            part.key["rate"],
            part.key["seed"],
            part.rows,
            part.alone,
        )
        for part, (setting, arm), more_setting, more_arm in zip(
            parts, bases, of_settings, of_arms, strict=True
        )
    ]


def _options(overrides: str) -> tuple[list[str], list[str]]:
    """The overrides that belong to the setting, and those that belong to the arm."""
    setting: list[str] = []
    arm: list[str] = []
    for word in _words(overrides):
        key, group = _key(word), _group(word)
        if key in _SAID_ELSEWHERE or group in _IGNORED_GROUPS:
            continue
        (setting if group in _SETTING_GROUPS else arm).append(word)
    return setting, arm


def _words(overrides: str) -> list[str]:
    """The overrides in a row's column; old rows were joined by spaces, without quotes."""
    try:
        return shlex.split(overrides)
    except ValueError:
        return overrides.split()


def _key(word: str) -> str:
    """The option or the group that an override sets."""
    return word.lstrip("+~").partition("=")[0]


def _group(word: str) -> str:
    """The first part of what an override sets."""
    return _key(word).replace("/", ".").partition(".")[0]


def _distinguishing(
    labels: Sequence[str], options: Sequence[Sequence[str]]
) -> list[tuple[str, ...]]:
    """The options of each run that not all runs of the same label have."""
    groups: dict[str, list[set[str]]] = defaultdict(list)
    for label, words in zip(labels, options, strict=True):
        groups[label].append(set(words))
    common = {label: set.intersection(*sets) for label, sets in groups.items()}
    return [
        tuple(word for word in words if word not in common[label])
        for label, words in zip(labels, options, strict=True)
    ]


def _without_copies(runs: Iterable[ServedRun]) -> tuple[list[ServedRun], list[str]]:
    """
    Each run once, and a sentence if there were copies.

    Raises
    ------
    ValueError
        If two runs should be equal and are not.
    """
    kept: dict[tuple[Any, ...], ServedRun] = {}
    copies = 0
    for run in runs:
        key = (run.setting, run.arm, run.rate, run.seed)
        other = kept.get(key)
        if other is None:
            kept[key] = run
        elif other.rows.equals(run.rows):
            copies += 1
            if run.alone:
                # Runs that record more may add files to what another one found.
                kept[key] = run if _files(run) > _files(other) else other
        else:
            raise ValueError(
                f"{printable(other.folder)} and {printable(run.folder)} both hold {run.arm} "
                f"at rate {run.rate} with seed {run.seed}, and differ: leave one out."
            )
    notes = [f"Runs that repeat another one and count once: {copies}."] if copies else []
    return list(kept.values()), notes


def _files(run: ServedRun) -> int:
    return sum(path.is_file() for path in run.folder.iterdir())


def _pooled(tables: Sequence[tuple[Path, pl.DataFrame]]) -> tuple[pl.DataFrame, list[str]]:
    """
    Numbers of studies as one table, each once, and sentences on what was found.

    Studies share cells, which are no more seeds for it. If folders disagree on a number of a
    variant, each has a variant of its own, so that nothing is averaged that is not alike.
    """
    if not tables:
        return pl.DataFrame(), []
    names = _names([folder for folder, _ in tables])
    found = pl.concat(
        [table.with_columns(pl.lit(names[folder]).alias("folder")) for folder, table in tables],
        how="diagonal",
    )
    point = [*PLACE, "arm", "seed", "metric", "part"]
    rows = (
        placed(found)
        .with_columns(
            pl.col("folder").first().over(point).alias("first"),
            # One folder may have several numbers at a point, of a jitter at two loads say.
            pl.col("number").mean().over([*point, "folder"]).alias("of_folder"),
        )
        .with_columns((pl.col("of_folder").n_unique().over(point) > 1).alias("differs"))
        .with_columns(pl.col("differs").any().over("variant").alias("apart"))
    )
    kept = rows.filter(pl.col("apart") | (pl.col("folder") == pl.col("first")))
    notes = []
    if kept.height < rows.height:
        copies = rows.height - kept.height
        notes.append(f"Numbers of studies that repeat another one's and count once: {copies}.")
    apart = kept.filter(pl.col("apart"))["variant"].n_unique()
    if apart:
        notes.append(
            f"Variants on which studies differ, shown apart by folder, in brackets: {apart}."
        )
    label = pl.format("{} [{}]", "variant", "folder")
    variant = pl.when(pl.col("apart")).then(label).otherwise(pl.col("variant")).alias("variant")
    own = [name for name in found.columns if name != "folder"]
    return kept.with_columns(variant).select(own), notes


def _names(folders: Sequence[Path]) -> dict[Path, str]:
    """The last part of each path, or all of it where two folders have that in common."""
    whole = {folder: folder.resolve() for folder in folders}
    ends = Counter(path.name for path in whole.values())
    return {
        folder: path.name if ends[path.name] == 1 else str(printable(path))
        for folder, path in whole.items()
    }


def _with_units(tables: Sequence[pl.DataFrame]) -> pl.DataFrame:
    if not tables:
        return pl.DataFrame()
    rows = pl.concat(tables, how="diagonal")
    missing = [
        pl.lit(None, dtype=column.dtype).alias(name)
        for name, column in RUN_COLUMNS.items()
        if name not in rows.columns
    ]
    rows = rows.with_columns(missing)
    setting = pl.col("overrides").fill_null("").map_elements(_setting_of, return_dtype=pl.String)
    return rows.with_columns(
        pl.concat_str(
            "source",
            "instance",
            pl.col("seed").cast(pl.String).fill_null(""),
            pl.col("rate").cast(pl.String).fill_null(""),
            setting,
            separator=" ",
        ).alias("unit")
    )


def _setting_of(overrides: str) -> str:
    """What of the overrides may change which instance it is."""
    aside = (*_NO_INSTANCE, *_IGNORED_GROUPS)
    return shlex.join(sorted(word for word in _words(overrides) if _group(word) not in aside))


def _left_out(folders: Sequence[Path]) -> list[str]:
    failed, cut = set(), set()
    for folder in folders:
        failed |= {path.parent.resolve() for path in folder.rglob(ERROR)}
        started = {path.parent.resolve() for path in folder.rglob(".hydra")}
        cut |= {path for path in started if not (path / SUMMARY).exists()}
    cut -= failed
    notes = []
    if failed:
        notes.append(f"Runs that failed and are left out: {len(failed)}; {ERROR} says why.")
    if cut:
        notes.append(f"Runs that are not complete and are left out: {len(cut)}.")
    return notes


def _bounds(folder: Path, rows: pl.DataFrame) -> list[str]:
    """What scored logs that lack token times leave open; the tables show one of the bounds."""
    if "bounds_only" not in rows.columns or not rows["bounds_only"].any():
        return []
    means = rows.select(pl.col("^qoe_.*_(low|high)$").mean()).row(0, named=True)
    spans = [
        f"{name} {means[f'qoe_{name}_low']:.3f} to {means[f'qoe_{name}_high']:.3f}"
        for name in QOE_DEFINITIONS
    ]
    return [
        f"{printable(folder)}: token times of {rows['bounds_only'].sum()} of {rows.height} replies "
        f"are missing, so that QoE is {', '.join(spans)}; the tables show one of the bounds."
    ]


def _mixed_code(environments: Sequence[dict[str, Any]]) -> list[str]:
    codes = {
        (env.get("run") or {}).get("code") or str((env.get("git") or {}).get("commit"))
        for env in environments
    }
    if len(codes) < 2:
        return []
    return [
        f"The runs were made by {len(codes)} versions of the code; differences between arms may "
        "be differences between versions."
    ]
