"""
Means with intervals, paired comparisons, tests: over seeds, or over whatever repeats.

The units that repeat are independent: seeds of the workload, or instances. Arms meet the same
requests under one seed, so that they are compared unit by unit.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import polars as pl
from scipy import stats

from andes_opt.metrics import mean_ci
from experiments.runs.columns import RUN_COLUMNS, STUDY_COLUMNS, frame

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

#: What tells the points of a study apart, the arm aside.
PLACE = ("variant", "at", "x")

#: What numbers over seeds are about.
_GROUP = (*PLACE, "arm", "metric", "part")

#: Kinds of numbers over seeds.
MEAN, DIFFERENCE, RATIO = "mean", "difference", "ratio"


def means(
    table: pl.DataFrame, by: Sequence[str], column: str = "number", *, tested: bool = False
) -> pl.DataFrame:
    """
    Return the mean and the 95 % interval (Student's t) of a column in each group.

    Parameters
    ----------
    table
        A line per group and unit.
    by
        Columns that make a group.
    column
        The numbers; null, NaN and infinities are left out, groups without any other as well.
    tested
        Whether to add column ``p``: that of the t-test that the true mean is 0.

    Returns
    -------
    polars.DataFrame
        ``by``, ``mean``, ``half_width`` (null for a single unit) and ``units``.
    """
    numbers = pl.col(column)
    groups = (
        table.group_by(*by, maintain_order=True)
        .agg(numbers.filter(numbers.is_finite()))
        .filter(numbers.list.len() > 0)
    )
    lists = [found.to_numpy() for found in groups[column]]
    intervals = [mean_ci(found) for found in lists]
    half = [i.half_width if math.isfinite(i.half_width) else None for i in intervals]
    found = groups.select(*by).with_columns(
        pl.Series("mean", [i.mean for i in intervals], pl.Float64),
        pl.Series("half_width", half, pl.Float64),
        pl.Series("units", [len(found) for found in lists], pl.Int64),
    )
    if not tested:
        return found
    p = pl.Series("p", [p_value(found) for found in lists], pl.Float64)
    return found.with_columns(p.fill_nan(None))


def with_baseline(
    table: pl.DataFrame,
    baseline: str,
    by: Sequence[str],
    *,
    arm: str = "arm",
    column: str = "number",
) -> pl.DataFrame:
    """
    Return the lines of the other arms, each with the baseline's number of the same unit.

    Parameters
    ----------
    table
        A line per group, arm and unit.
    baseline
        The arm that the others are compared with.
    by
        Columns that a line has in common with the baseline's, the unit among them.
    arm
        Column that names the arm.
    column
        The numbers.

    Returns
    -------
    polars.DataFrame
        The lines in their order, with column ``base``; null where the baseline has none.
    """
    base = table.filter(pl.col(arm) == baseline).select(*by, pl.col(column).alias("base"))
    others = table.filter(pl.col(arm) != baseline)
    return others.join(base, on=by, how="left", maintain_order="left", nulls_equal=True)


def p_value(differences: NDArray[np.float64]) -> float:
    """
    Return the two-sided p of the paired t-test: that differences have mean 0.

    NaN for fewer than two differences; 1 if all are 0, 0 if all are alike and not 0.
    """
    if differences.size < 2:
        return math.nan
    if np.ptp(differences) == 0:
        return 1.0 if differences[0] == 0 else 0.0
    with warnings.catch_warnings():
        # Differences that are nearly equal: the test says p = 0, and that it is unsure.
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(stats.ttest_1samp(differences, 0.0).pvalue)


def holm(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """
    Return p-values corrected for their number (Holm, 1979).

    Parameters
    ----------
    p
        p-values, (k,); NaN for tests that were not made.
    """
    corrected = np.full(p.shape, math.nan)
    made = np.flatnonzero(~np.isnan(p))
    order = made[np.argsort(p[made], kind="stable")]
    factors = np.arange(order.size, 0, -1)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(factors * p[order]))
    return corrected


class MeasurementLike(Protocol):
    """A number, what it measures, and of which part of a run."""

    @property
    def metric(self) -> str: ...
    @property
    def part(self) -> str: ...
    @property
    def value(self) -> float | None: ...


def as_rows(found: Iterable[tuple[Mapping[str, Any], Iterable[MeasurementLike]]]) -> pl.DataFrame:
    """
    Return measurements as rows under the documented schema.

    Parameters
    ----------
    found
        Label and measurements of each simulation.
    """
    own = {"metric": "metric", "part": "part", "number": "value"}
    labels = [name for name in (*RUN_COLUMNS, *STUDY_COLUMNS) if name not in own]
    columns: dict[str, list[Any]] = {name: [] for name in (*labels, *own)}
    for label, measurements in found:
        of_run = list(measurements)
        for name in labels:
            columns[name] += [label.get(name)] * len(of_run)
        for name, attribute in own.items():
            columns[name] += [getattr(one, attribute) for one in of_run]
    return frame(columns)


def placed(rows: pl.DataFrame) -> pl.DataFrame:
    """
    Return the rows with ``x``, where a point lies on its study's axis, and ``at``, that in words.

    The axis is the network's jitter, else the load, else the request rate; studies without
    any of them (capacity) have x = 0 and an empty ``at``.
    """
    words = (
        pl.when(pl.col("jitter_s").is_not_null())
        .then(pl.format("{} s", "jitter_s"))
        .when(pl.col("relative_load").is_not_null())
        .then(pl.format("{} x", "relative_load"))
        .when(pl.col("rate").is_not_null())
        .then(pl.format("{}/s", "rate"))
        .otherwise(pl.lit(""))
    )
    x = pl.coalesce("jitter_s", "relative_load", "rate", pl.lit(0.0))
    return rows.with_columns(words.alias("at"), x.alias("x"))


def axis(rows: pl.DataFrame) -> str:
    """Return what the x of :func:`placed` is, with its unit."""
    if rows["jitter_s"].null_count() < rows.height:
        return "mean network jitter in s"
    if rows["relative_load"].null_count() < rows.height:
        return "load (request rate over a capacity)"
    return "request rate in 1/s"


def over_seeds(rows: pl.DataFrame, metrics: Sequence[str] | None = None) -> pl.DataFrame:
    """
    Return the mean of each metric at each point.

    Parameters
    ----------
    rows
        A study's rows.
    metrics
        Metrics to take; None for all.

    Returns
    -------
    polars.DataFrame
        ``variant, at, x, arm, metric, part, kind, mean, half_width, seeds``; the half-width
        of the 95 % interval is null for a single seed.
    """
    return _as_study(means(_by_seed(_chosen(rows, metrics)), _GROUP), MEAN)


def against(
    rows: pl.DataFrame, baseline: str, kind: str, metrics: Sequence[str] | None = None
) -> pl.DataFrame:
    """
    Compare each arm with the baseline, seed by seed.

    Parameters
    ----------
    rows
        A study's rows.
    baseline
        The arm to compare with.
    kind
        :data:`DIFFERENCE` (arm less baseline) or :data:`RATIO` (arm over baseline; seeds at
        which the baseline has 0 are left out).
    metrics
        Metrics to take; None for all.

    Returns
    -------
    polars.DataFrame
        As for :func:`over_seeds`, without the baseline itself.
    """
    found = _by_seed(_chosen(rows, metrics))
    pairs = with_baseline(found, baseline, [*PLACE, "metric", "part", "seed"])
    number, other = pl.col("number"), pl.col("base")
    paired = number - other if kind == DIFFERENCE else number / other
    return _as_study(means(pairs.with_columns(paired.alias("paired")), _GROUP, "paired"), kind)


def _chosen(rows: pl.DataFrame, metrics: Sequence[str] | None) -> pl.DataFrame:
    kept = rows.filter(pl.col("number").is_not_null())
    return placed(kept if metrics is None else kept.filter(pl.col("metric").is_in(list(metrics))))


def _by_seed(rows: pl.DataFrame) -> pl.DataFrame:
    """One number for each seed, which is what is independent, however many rows it has."""
    return rows.group_by(*_GROUP, "seed", maintain_order=True).agg(pl.col("number").mean())


def _as_study(found: pl.DataFrame, kind: str) -> pl.DataFrame:
    """The columns that documents and ``table.csv`` have."""
    return found.select(
        *_GROUP, pl.lit(kind).alias("kind"), "mean", "half_width", pl.col("units").alias("seeds")
    )
