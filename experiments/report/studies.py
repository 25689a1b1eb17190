"""Rows of studies and of tune in a report: numbers that come with an arm and a variant's name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from experiments.analysis.statistics import DIFFERENCE, MEAN, against, over_seeds
from experiments.analysis.tables import by_metric
from experiments.report.tables import SHOWN

if TYPE_CHECKING:
    from collections.abc import Sequence

#: What is shown beside the metrics of every report; all the others are in ``studies.csv``.
_MORE = {
    "capacity_area": ("capacity (area) 1/s", 2),
    "capacity_window": ("capacity (window) 1/s", 2),
}


def statistics(rows: pl.DataFrame, baseline: str) -> pl.DataFrame:
    """
    Return what ``studies.csv`` holds: means over seeds, and differences to the baseline.

    Parameters
    ----------
    rows
        ``Results.measured`` of :mod:`experiments.report.reading`.
    baseline
        The arm that the others are compared with.
    """
    return pl.concat([over_seeds(rows), against(rows, baseline, DIFFERENCE)])


def tables(found: pl.DataFrame, baseline: str) -> dict[str, pl.DataFrame]:
    """
    Return a table of means for each variant, and one of differences if there is any.

    Parameters
    ----------
    found
        From :func:`statistics`.
    baseline
        The arm that the others are compared with.
    """
    shown = {**SHOWN, **_MORE}
    wanted = found.filter(pl.col("metric").is_in(list(shown)), pl.col("part") == "")
    made = {}
    for variant in wanted["variant"].unique(maintain_order=True):
        here = wanted.filter(pl.col("variant") == variant)
        for kind, title in (
            (MEAN, f"Study: {variant}"),
            (DIFFERENCE, f"Difference to {baseline}: {variant}"),
        ):
            lines = here.filter(pl.col("kind") == kind).sort("x", maintain_order=True)
            if lines.is_empty():
                continue
            there = {name: words for name, words in shown.items() if name in lines["metric"]}
            seeds = pl.col("seeds").first().over("at", "arm")
            sign = "+" if kind == DIFFERENCE else ""
            keys = ["at", "arm", "seeds"]
            made[title] = by_metric(lines.with_columns(seeds), keys, there, sign=sign)
    return made


def arms(rows: pl.DataFrame) -> Sequence[str]:
    """Return the arms of the rows, in their order."""
    return rows["arm"].unique(maintain_order=True).to_list() if rows.height else []
