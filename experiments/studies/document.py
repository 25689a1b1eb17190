"""A study's document: how it was made, its views, and every number in ``table.csv``."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any, cast

import polars as pl
from omegaconf import OmegaConf

from experiments.analysis import document
from experiments.analysis.statistics import DIFFERENCE, RATIO, against, over_seeds
from experiments.configuration.errors import UsageError, not_understood
from experiments.runs.files import write_atomically
from experiments.studies.views import VIEWS, Page

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from omegaconf import DictConfig

#: Metrics that ``summary.json`` has of every point.
_HEADLINES = ("qoe_area_mean", "qoe_window_mean", "capacity_area", "capacity_window")


@dataclass(frozen=True, slots=True)
class StudyFacts:
    """
    How a study was made: what its document says beside the rows.

    Parameters
    ----------
    name
        Name of the experiment.
    command
        The command that makes the document.
    environment
        Of :func:`experiments.runs.environment.environment`.
    config
        The run's configuration.
    computed, reused
        Cells computed by this command, and found on disk.
    cell_seconds
        CPU seconds of computing all of them.
    """

    name: str
    command: str
    environment: Mapping[str, Any]
    config: DictConfig
    computed: int
    reused: int
    cell_seconds: float


def write(
    rows: pl.DataFrame, facts: StudyFacts, folder: Path, docs: str | None
) -> tuple[str, list[Path]]:
    """
    Write ``NAME.md``, its figures and ``table.csv``.

    Parameters
    ----------
    rows
        The study's rows.
    facts
        What else the document says.
    folder
        The run's folder.
    docs
        Folder whose ``results/`` and ``figures/`` get copies; None for no copies.

    Returns
    -------
    tuple
        The sections, without header and figures, for the terminal; what was written into ``docs``.
    """
    study = facts.config.study
    searched = study.kind == "capacity"
    highest = float(study.capacity.highest) if searched else None
    page = Page(rows, study.baseline, folder, facts.name, highest)
    sections = _sections(page, facts)
    write_atomically(folder / "table.csv", long_table(rows, page.baseline).write_csv)
    figures = sorted(folder.glob(f"{facts.name}_*.png"))
    text = document.paragraphs(_header(facts), *sections)
    published = document.publish(text, facts.name, folder, docs, figures)
    return document.without_pictures(document.paragraphs(*sections)), published


def views_of(config: DictConfig) -> list[tuple[str, dict[str, Any]]]:
    """
    Return the views that ``study.views`` lists, each with its options.

    Raises
    ------
    UsageError
        If there is no such view, or its options don't fit it.
    """
    found = []
    for spec in cast("list[dict[str, Any]]", OmegaConf.to_container(config.study.views)):
        options = dict(spec)
        name = options.pop("view", None)
        if name not in VIEWS:
            raise not_understood("view", name, VIEWS)
        try:
            signature(VIEWS[name]).bind(None, **options)
        except TypeError as error:
            raise UsageError(f"view {name} not understood: {error}.") from error
        found.append((name, options))
    return found


def long_table(rows: pl.DataFrame, baseline: str) -> pl.DataFrame:
    """Return every metric at every point: mean, difference and ratio to the baseline."""
    whole = rows.filter(~pl.col("metric").str.starts_with("quantile_"))
    tables = [over_seeds(whole)]
    if baseline in rows["arm"]:
        tables += [against(whole, baseline, kind) for kind in (DIFFERENCE, RATIO)]
    return pl.concat(tables)


def summary(rows: pl.DataFrame, baseline: str) -> dict[str, float]:
    """
    Return flat metrics: means of the headlines at each point, and ratios of capacities.

    Parameters
    ----------
    rows
        The study's rows.
    baseline
        The arm that others are compared with.
    """
    found: dict[str, float] = {}
    table = over_seeds(rows, _HEADLINES)
    for line in table.iter_rows(named=True):
        found[f"{_point(line)}_{line['metric']}"] = line["mean"]
    capacities = against(rows, baseline, RATIO, ["capacity_area", "capacity_window"])
    for line in capacities.iter_rows(named=True):
        found[f"{_point(line)}_{line['metric']}_ratio"] = line["mean"]
    return found


def _point(line: Mapping[str, Any]) -> str:
    at = f"_at_{line['at']}" if line["at"] else ""
    return f"{line['arm']}_on_{line['variant']}{at}"


def _sections(page: Page, facts: StudyFacts) -> list[str]:
    return [VIEWS[name](page, **options) for name, options in views_of(facts.config)]


def _header(facts: StudyFacts) -> str:
    environment, config = facts.environment, facts.config
    study = config.study
    seeds = f"{study.seeds} seeds ({config.seed} to {config.seed + study.seeds - 1})"
    if study.seeds == 1:
        seeds = f"One seed ({config.seed})"
    lines = [
        f"{seeds}, the same requests for every arm; "
        f"{config.workload.requests} requests a run unless a variant says otherwise. Means over "
        "seeds ± half of the 95 % interval (Student's t).",
        f"{facts.computed + facts.reused} simulations and searches, "
        f"{facts.cell_seconds / 60:.1f} CPU minutes in all ({facts.reused} found on disk).",
        f"{document.processor(environment)}.",
        document.code(environment, ("python", "numpy", "numba")),
    ]
    if study.kind == "capacity" or study.loads is not None:
        search = study.capacity
        lines.append(
            f"Capacity: the highest request rate at which the mean `area` QoE is at least "
            f"{search.threshold:g}, by bisection to {100 * search.tolerance:g} % for each seed, "
            f"whose requests arrive in the same pattern at every rate. {search.highest:g} (>=) is "
            "the highest rate that is tried: short runs end before an overload shows."
        )
    if study.loads is not None:
        lines.append(f"Load 1 is the capacity of {study.loads_of} on the same variant.")
    if study.tiny:
        lines.append(document.TINY)
    return document.how_made(study.question or facts.name, facts.command, lines)
