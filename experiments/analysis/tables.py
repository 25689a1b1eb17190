"""How studies show numbers: "mean ± half-width", decimals by metric, a line per point and arm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from experiments.analysis.statistics import DIFFERENCE, RATIO

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
        number(mean, half if intervals else None, _digits_of(metric, kind))
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


def number(mean: float, half_width: float | None, decimals: int | None) -> str:
    """
    A mean with its half-width.

    Parameters
    ----------
    mean, half_width
        The numbers; None shows the mean alone.
    decimals
        Decimals of both; None for three significant digits of the mean, two of the
        half-width, and all digits before the point.
    """
    if decimals is None:
        text = _plain(mean, 3)
        return text if half_width is None else f"{text} ± {_plain(half_width, 2)}"
    text = f"{mean:.{decimals}f}"
    return text if half_width is None else f"{text} ± {half_width:.{decimals}f}"


def in_points(table: pl.DataFrame) -> pl.DataFrame:
    """Differences of QoE times 100: points. Other metrics stay."""
    factor = pl.when(pl.col("metric").str.contains("qoe_")).then(100.0).otherwise(1.0)
    return table.with_columns(pl.col("mean") * factor, pl.col("half_width") * factor)


def readable(metric: str) -> str:
    """A metric's name without its prefix for distributions and parts."""
    return metric.removeprefix("quantile_").removeprefix("part_")


def _plain(value: float, digits: int) -> str:
    return f"{value:.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def _digits_of(metric: str, kind: str) -> int | None:
    if kind == RATIO:
        return 2
    if "qoe_" in metric:
        return 2 if kind == DIFFERENCE else 3
    return 2 if metric.startswith("capacity_") else None
