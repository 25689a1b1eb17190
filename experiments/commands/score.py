"""``andes-opt score``: other tools' logs of requests, scored as ``bench`` scores its own."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from andes_opt.checks import non_negative, whole
from experiments.client.outcome import most_common_error, token_rows
from experiments.configuration.compose import build, label
from experiments.configuration.errors import RunsFailed, UsageError, not_understood, one_line
from experiments.configuration.output import visible
from experiments.runs.columns import frame
from experiments.runs.files import (
    ERROR,
    MEASURED,
    SUMMARY,
    TOKENS,
    write_atomically,
    write_json,
    write_text,
)
from experiments.runs.records import recorded_run
from experiments.runs.resume import resumable, said
from experiments.scoring.formats import KNOWN, read_log
from experiments.scoring.scored import SIDES, by_arrival, score
from experiments.scoring.targets import file_targets, population_targets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hydra.conf import HydraConf
    from omegaconf import DictConfig

    from experiments.runs.records import Run
    from experiments.scoring.logged import LoggedRun
    from experiments.scoring.scored import Scored

#: What of a log could not be read, a line each; only written if there is something.
UNREAD = "unread.txt"
#: A tool that sends later than this (p99) is told about.
_LATE_S = 0.005
#: How many places a message names.
_NAMED = 3


@dataclass(frozen=True, slots=True)
class _Part:
    """A benchmark of a log: its run, where it goes below the output folder, and its columns."""

    path: str
    run: LoggedRun
    place: str
    columns: dict[str, Any]


@resumable
def run(config: DictConfig) -> dict[str, float]:
    """
    Score every log, write a run for each of its benchmarks, and return the summary.

    Raises
    ------
    UsageError, FileNotFoundError, ValueError
        If an option is bad, or no log can be read.
    RunsFailed
        If a log or a part of one could not be read, after writing the others.
    """
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    with recorded_run(folder) as record:
        (folder / UNREAD).unlink(missing_ok=True)
        _check(config)
        logs, refused = _read_logs(config.files)
        parts = _parts(config, hydra_config, logs)
        scored = [(part, _scored(config, part)) for part in parts]
        summaries = []
        for part, found in scored:
            place = record if len(parts) == 1 else _below(record, part.place)
            summaries.append(_write(config, place, part, found))
        if len(parts) > 1:
            # The folder itself holds no rows, and is complete.
            write_json(folder / SUMMARY, {"runs": len(parts)})
    unread = [f"{part.path}: {why}" for part in parts for why in part.run.unread]
    _tell(refused, unread, folder)
    return summaries[0] if len(summaries) == 1 else {"runs": float(len(summaries))}


def _check(config: DictConfig) -> None:
    if not config.files:
        raise UsageError(f"score needs the name of a log: {KNOWN}.")
    whole("seed", config.seed, 0)
    non_negative("idle_cost", config.idle_cost)
    if config.rate is not None:
        non_negative("rate", config.rate)
    if config.bound not in SIDES:
        raise not_understood("bound", config.bound, SIDES)


def _read_logs(paths: Sequence[Any]) -> tuple[dict[str, list[LoggedRun]], list[str]]:
    """
    The runs of every log that can be read, by its path, and why others can't.

    Raises
    ------
    UsageError
        If none can.
    """
    logs: dict[str, list[LoggedRun]] = {}
    refused = []
    for path in dict.fromkeys(str(path) for path in paths):
        try:
            logs[path] = read_log(path)
        except (OSError, ValueError) as error:
            refused.append(one_line(error))
    if not logs:
        raise UsageError(" ".join(refused))
    return logs, refused


def _parts(
    config: DictConfig, hydra_config: HydraConf, logs: dict[str, list[LoggedRun]]
) -> list[_Part]:
    """Every benchmark of every log, under names that tell them apart."""
    parts: list[_Part] = []
    seen: Counter[tuple[Any, ...]] = Counter()
    names = _names(list(logs))
    for path, runs in logs.items():
        for number, each in enumerate(runs):
            columns = _columns(config, hydra_config, names[path], each)
            key = (columns["policy"], columns["workload"], columns["rate"])
            # A repeat of the same benchmark: as with another seed, and with its readers.
            columns["seed"] += seen[key]
            seen[key] += 1
            place = names[path] if len(runs) == 1 else f"{names[path]}-{number}"
            parts.append(_Part(path, each, place, columns))
    return parts


def _names(paths: Sequence[str]) -> dict[str, str]:
    """A name for each log: its file's, its folder's if several files have that, or both."""
    files = {path: visible(Path(path).name.removesuffix(".gz")) for path in paths}
    stems = {path: name.rpartition(".")[0] or name for path, name in files.items()}
    folders = {path: visible(Path(path).expanduser().absolute().parent.name) for path in paths}
    both = {path: f"{folders[path]}-{stems[path]}" for path in paths}
    for names in (stems, folders, both):
        if len(set(names.values())) == len(paths) and all(names.values()):
            return names
    return {path: f"{name}-{k}" for k, (path, name) in enumerate(both.items())}


def _columns(
    config: DictConfig, hydra_config: HydraConf, name: str, logged: LoggedRun
) -> dict[str, Any]:
    served = config.served_by
    at_once = "" if logged.concurrency is None else f", {logged.concurrency:g} at once"
    readers = "targets" if config.targets is not None else None
    rate = logged.rate if config.rate is None else float(config.rate)
    return {
        "command": hydra_config.job.name,
        "policy": name if served.policy is None else str(served.policy),
        **{kind: served[kind] for kind in ("solver", "objective", "engine")},
        "engine_kind": "server",
        "workload": f"logged{at_once}",
        "lengths": None,
        "readers": readers or label(config, hydra_config.runtime.choices, "readers"),
        "rate": rate,
        "seed": config.seed,
        "overrides": "",
    }


def _scored(config: DictConfig, part: _Part) -> Scored:
    replies = by_arrival(part.run.replies)
    if config.targets is not None:
        targets = file_targets(replies, config.targets)
    else:
        targets = population_targets(replies, build(config, "readers"), part.columns["seed"])
    return score(part.run, replies, targets, config.idle_cost, config.bound)


def _below(record: Run, place: str) -> Run:
    """A folder of its own for one of several runs, without what an earlier one left there."""
    folder = record.folder / place
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in (SUMMARY, ERROR, *MEASURED):
        for path in folder.glob(pattern):
            path.unlink()
    return replace(record, folder=folder)


def _write(config: DictConfig, place: Run, part: _Part, found: Scored) -> dict[str, float]:
    folder = place.folder
    (folder / UNREAD).unlink(missing_ok=True)
    rows = frame(found.columns(), **part.columns)
    with said(_sentence(part, found), folder):
        place.keep(rows)
        if config.tokens:
            write_atomically(folder / TOKENS, token_rows(found.measured).write_parquet)
        if part.run.unread:
            write_text(folder / UNREAD, "".join(f"{visible(why)}\n" for why in part.run.unread))
        log = {"tool": part.run.tool, "file": part.path}
        replace(place, environment={**place.environment, "log": log}).finish(None, found.values)
    return found.values


def _sentence(part: _Part, found: Scored) -> str:
    """What came of a log, for people."""
    values = found.values
    ended = values["requests"] - values["unfinished"]
    qoe = [
        f"{name} {_span(values[f'qoe_{name}_mean_low'], values[f'qoe_{name}_mean_high'])}"
        for name in ("area", "delay", "window")
    ]
    text = (
        f"{visible(part.path)} ({part.run.tool}): {ended:.0f} of {values['requests']:.0f} replies "
        f"complete; QoE {', '.join(qoe)}; TTFT p50 {values['ttft_p50_s']:.2f} s, "
        f"p90 {values['ttft_p90_s']:.2f} s."
    )
    if values["send_lag_p99_s"] > _LATE_S:
        text += (
            f" The tool sent {values['send_lag_p99_s']:.2f} s late (p99), which counts as waiting."
        )
    if values["bounds_only"]:
        text += f" Token times are missing of {values['bounds_only']:.0f}: QoE has bounds only."
    why = most_common_error(found.measured)
    if values["unfinished"]:
        text += f" {values['unfinished']:.0f} failed and score 0; most often: {why}"
    if values["left_out"]:
        text += f" Left out, as no part of the measurement: {values['left_out']:.0f}."
    return text


def _span(low: float, high: float) -> str:
    return f"{low:.3f}" if f"{low:.3f}" == f"{high:.3f}" else f"{low:.3f} to {high:.3f}"


def _tell(refused: Sequence[str], unread: Sequence[str], folder: Path) -> None:
    """
    Say what could not be read.

    Raises
    ------
    RunsFailed
        If there is something; in a sweep, which goes on, it is printed.
    """
    if not refused and not unread:
        return
    told = [*refused]
    if unread:
        more = [f"and {len(unread) - _NAMED} more ({UNREAD})."] if len(unread) > _NAMED else []
        told.append(f"{len(unread)} could not be read: {' '.join([*unread[:_NAMED], *more])}")
    text = visible(" ".join(told))
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        print(text, file=sys.stderr)
        return
    raise RunsFailed(text)
