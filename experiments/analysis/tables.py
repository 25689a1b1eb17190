"""Tables of studies: a line per point and arm, intervals in the cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from experiments.analysis.intervals import decimals_of, interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def wide(
    table: pl.DataFrame,
    order: Sequence[str] | None,
    *,
    columns: str = "metric",
    intervals: bool = True,
) -> pl.DataFrame:
    """
    Return a line per point and arm, a column per metric or part, intervals in the cells.

    Parameters
    ----------
    table
        Of :mod:`experiments.analysis.statistics`.
    order
        Order of the columns; None for that of the table.
    columns
        ``metric`` or ``part``.
    intervals
        Whether to show the half-widths.
    """
    keys = [
        name for name in ("variant", "at", "arm") if table[name].n_unique() > 1 or name == "arm"
    ]
    named = table.select(pl.col(columns).alias("name"), "metric", "kind").unique()
    decimals = {name: (name, decimals_of(metric, kind)) for name, metric, kind in named.iter_rows()}
    found = table[columns].unique(maintain_order=True).to_list()
    shown = {name: decimals[name] for name in (order or found) if name in decimals}
    if not intervals:
        table = table.with_columns(pl.lit(None, pl.Float64).alias("half_width"))
    places = ["variant", "at", "x", "arm"]
    return by_metric(table, places, shown, columns=columns).select(*keys, *shown)


def by_metric(
    table: pl.DataFrame,
    keys: Sequence[str],
    shown: Mapping[str, tuple[str, int | None]],
    *,
    columns: str = "metric",
    sign: str = "",
) -> pl.DataFrame:
    """
    Return a line per group and a column per metric, intervals in the cells.

    Parameters
    ----------
    table
        ``keys``, ``metric``, ``mean``, ``half_width``, and perhaps a ``mark`` before the number.
    keys
        Columns that make a group, and that lines begin with.
    shown
        Metric -> heading, decimals.
    columns
        What the columns stand for, if not the metric.
    sign
        As for :func:`experiments.analysis.intervals.interval`.
    """
    kept = table.filter(pl.col(columns).is_in(list(shown)))
    mark = pl.col("mark") if "mark" in table.columns else pl.lit("").alias("mark")
    cells = [
        mark + interval(mean, half, shown[name][1], sign=sign)
        for name, mean, half, mark in kept.select(columns, "mean", "half_width", mark).iter_rows()
    ]
    wide = kept.with_columns(pl.Series("cell", cells, pl.String)).pivot(
        columns, index=list(keys), values="cell", maintain_order=True
    )
    return wide.select(
        *keys,
        *(
            (pl.col(name).fill_null("-") if name in wide.columns else pl.lit("-")).alias(heading)
            for name, (heading, _) in shown.items()
        ),
    )


def readable(metric: str) -> str:
    """Return a metric's name without its prefix for distributions and parts."""
    return metric.removeprefix("quantile_").removeprefix("part_")
