"""Tables of studies: a line per point and arm, intervals in the cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from experiments.analysis.intervals import decimals_of, interval

if TYPE_CHECKING:
    from collections.abc import Sequence


def wide(
    table: pl.DataFrame,
    order: Sequence[str] | None,
    *,
    columns: str = "metric",
    intervals: bool = True,
) -> pl.DataFrame:
    """
    A line per point and arm, a column per metric or part, "mean ± half-width" in the cells.

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
    cells = [
        interval(mean, half if intervals else None, decimals_of(metric, kind))
        for mean, half, metric, kind in table.select(
            "mean", "half_width", "metric", "kind"
        ).iter_rows()
    ]
    texts = table.with_columns(pl.Series("cell", cells, pl.String))
    found = texts[columns].unique(maintain_order=True).to_list()
    named = [name for name in (order or found) if name in found]
    shown = texts.pivot(
        columns, index=["variant", "at", "x", "arm"], values="cell", maintain_order=True
    )
    return shown.select(*keys, *(pl.col(name).fill_null("-") for name in named))


def readable(metric: str) -> str:
    """Return a metric's name without its prefix for distributions and parts."""
    return metric.removeprefix("quantile_").removeprefix("part_")
