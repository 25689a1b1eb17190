"""How numbers with an interval are written: "mean ± half-width", decimals by metric."""

from __future__ import annotations

import math

import polars as pl

from experiments.analysis.statistics import DIFFERENCE, RATIO

#: A point is 0.01 of QoE.
POINTS = 100.0


def interval(
    mean: float | None,
    half_width: float | None,
    decimals: int | None,
    *,
    sign: str = "",
) -> str:
    """
    Return a mean with its half-width as text.

    Parameters
    ----------
    mean, half_width
        The numbers. Without a finite mean the text is "-". Without a finite half-width, as for
        a single seed, which has no interval, it is the mean alone.
    decimals
        Decimals of both; None for three significant digits of the mean, two of the
        half-width, and all digits before the point.
    sign
        "+" writes the sign of positive means too.
    """
    if mean is None or not math.isfinite(mean):
        return "-"
    text = _number(mean, decimals, 3, sign)
    if half_width is None or not math.isfinite(half_width):
        return text
    return f"{text} ± {_number(half_width, decimals, 2)}"


def _number(value: float, decimals: int | None, digits: int, sign: str = "") -> str:
    if decimals is not None:
        return f"{value:{sign}.{decimals}f}"
    return f"{value:{sign}.0f}" if abs(value) >= 10**digits else f"{value:{sign}.{digits}g}"


def decimals_of(metric: str, kind: str) -> int | None:
    """Return the decimals of a metric in a study's tables; None for significant digits."""
    if kind == RATIO:
        return 2
    if "qoe_" in metric:
        return 2 if kind == DIFFERENCE else 3
    return 2 if metric.startswith("capacity_") else None


def in_points(table: pl.DataFrame) -> pl.DataFrame:
    """Return means and half-widths of QoE in points; other metrics stay."""
    factor = pl.when(pl.col("metric").str.contains("qoe_")).then(POINTS).otherwise(1.0)
    return table.with_columns(pl.col("mean") * factor, pl.col("half_width") * factor)
