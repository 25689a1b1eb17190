"""Rows of studies and of tune in a report: numbers that come with an arm and a variant's name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from experiments.analysis.intervals import interval
from experiments.analysis.statistics import DIFFERENCE, MEAN, against, over_seeds
from experiments.report.tables import SHOWN

if TYPE_CHECKING:
    from collections.abc import Sequence

#: What is shown beside the metrics of every report; all the others are in ``studies.csv``.
_MORE = {
    "capacity_area": ("capacity (area) 1/s", 2),
    "capacity_window": ("capacity (window) 1/s", 2),
}
_KEYS = ("variant", "at", "arm")


def statistics(rows: pl.DataFrame, baseline: str) -> pl.DataFrame:
    """
    Means over seeds, and paired differences to the baseline: what ``studies.csv`` holds.

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
    For each variant a table of means, and one of differences if there is anything to compare.

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
            lines = _lines(
                here.filter(pl.col("kind") == kind), shown, "" if kind == "mean" else "+"
            )
            if lines:
                made[title] = pl.DataFrame(lines)
    return made


def arms(rows: pl.DataFrame) -> Sequence[str]:
    """The arms of the rows, in their order."""
    return rows["arm"].unique(maintain_order=True).to_list() if rows.height else []


def _lines(
    table: pl.DataFrame, shown: dict[str, tuple[str, int]], sign: str
) -> list[dict[str, Any]]:
    metrics = [metric for metric in shown if metric in set(table["metric"])]
    lines: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in table.sort("x", maintain_order=True).iter_rows(named=True):
        key = tuple(row[name] for name in _KEYS)
        line = lines.setdefault(
            key,
            {"at": row["at"], "arm": row["arm"], "seeds": row["seeds"]}
            | {shown[metric][0]: "-" for metric in metrics},
        )
        heading, decimals = shown[row["metric"]]
        line[heading] = interval(row["mean"], row["half_width"], decimals, sign=sign)
    return list(lines.values())
