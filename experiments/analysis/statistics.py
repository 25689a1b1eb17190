"""From numbers of cells to rows; from rows to means and paired comparisons over seeds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import polars as pl

from andes_opt.metrics import mean_ci
from experiments.runs.columns import RUN_COLUMNS, STUDY_COLUMNS, frame

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

#: What tells the points of a study apart, the arm aside.
PLACE = ("variant", "at", "x")

#: What numbers over seeds are about.
_GROUP = (*PLACE, "arm", "metric", "part")

#: Kinds of numbers over seeds.
MEAN, DIFFERENCE, RATIO = "mean", "difference", "ratio"


def as_rows(found: Iterable[tuple[Mapping[str, Any], Iterable[Sequence[Any]]]]) -> pl.DataFrame:
    """
    Numbers of cells as rows under the documented schema.

    Parameters
    ----------
    found
        Label and ``[metric, part, number]`` triples of each simulation.
    """
    names = [*RUN_COLUMNS, *STUDY_COLUMNS]
    own = ("metric", "part", "number")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for label, numbers in found:
        triples = list(numbers)
        for name in names:
            if name not in own:
                columns[name] += [label.get(name)] * len(triples)
        for k, name in enumerate(own):
            columns[name] += [triple[k] for triple in triples]
    return frame(columns)


def placed(rows: pl.DataFrame) -> pl.DataFrame:
    """
    Rows with ``x``, where a point lies on its study's axis, and ``at``, that in words.

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
    """What the x of :func:`placed` is, with its unit."""
    if rows["jitter_s"].null_count() < rows.height:
        return "mean network jitter in s"
    if rows["relative_load"].null_count() < rows.height:
        return "load (request rate over a capacity)"
    return "request rate in 1/s"


def over_seeds(rows: pl.DataFrame, metrics: Sequence[str] | None = None) -> pl.DataFrame:
    """
    Mean of each metric at each point.

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
    found = _by_seed(_chosen(rows, metrics))
    return _with_intervals(found, "number", MEAN)


def against(
    rows: pl.DataFrame, baseline: str, kind: str, metrics: Sequence[str] | None = None
) -> pl.DataFrame:
    """
    Each arm against the baseline, seed by seed.

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
    keys = [*PLACE, "metric", "part", "seed"]
    base = found.filter(pl.col("arm") == baseline).select(*keys, pl.col("number").alias("base"))
    number, other = pl.col("number"), pl.col("base")
    paired = number - other if kind == DIFFERENCE else number / other
    # A left join keeps the order of the groups; what lacks a partner is null, and left out below.
    pairs = (
        found.filter(pl.col("arm") != baseline)
        .join(base, on=keys, how="left", maintain_order="left")
        .with_columns(paired.alias("paired"))
    )
    return _with_intervals(pairs, "paired", kind)


def _chosen(rows: pl.DataFrame, metrics: Sequence[str] | None) -> pl.DataFrame:
    kept = rows.filter(pl.col("number").is_not_null())
    return placed(kept if metrics is None else kept.filter(pl.col("metric").is_in(list(metrics))))


def _by_seed(rows: pl.DataFrame) -> pl.DataFrame:
    """One number for each seed, which is what is independent, however many rows it has."""
    return rows.group_by(*_GROUP, "seed", maintain_order=True).agg(pl.col("number").mean())


def _with_intervals(table: pl.DataFrame, column: str, kind: str) -> pl.DataFrame:
    """Mean and interval of a column over the finite numbers of each group that has any."""
    numbers = pl.col(column)
    groups = (
        table.group_by(*_GROUP, maintain_order=True)
        .agg(numbers.filter(numbers.is_finite()))
        .filter(numbers.list.len() > 0)
    )
    lists = groups[column].to_list()
    intervals = [mean_ci(found) for found in lists]
    half = [i.half_width if math.isfinite(i.half_width) else None for i in intervals]
    return groups.select(*_GROUP).with_columns(
        pl.lit(kind).alias("kind"),
        pl.Series("mean", [i.mean for i in intervals], pl.Float64),
        pl.Series("half_width", half, pl.Float64),
        pl.Series("seeds", [len(found) for found in lists], pl.Int64),
    )
