"""The portfolio's tables: from rows to what the document shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from experiments.solver_comparison.groups import LOAD, ONE_BATCH

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from experiments.solver_comparison.profiles import Exponent

#: A call that took this share of its limit and proved nothing has hit the limit.
AT_THE_LIMIT = 0.9
#: Wall-clock milliseconds of a call.
MS = 1000 * pl.col("wall_s")
_CERTIFIED_PERCENT = (100 * pl.col("certified").mean()).alias("certified %")


@dataclass(frozen=True, slots=True)
class Stop:
    """A solver that is asked for no larger size of a source, and why."""

    source: str
    solver: str
    size: int
    reason: str


def prepared(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with ``at_limit``: the call ended at its time limit without a proof."""
    at_limit = ~pl.col("certified") & (pl.col("wall_s") >= AT_THE_LIMIT * pl.col("time_limit_s"))
    return rows.with_columns(at_limit.fill_null(False).alias("at_limit"))


def long_table(rows: pl.DataFrame) -> pl.DataFrame:
    """Every source, size and solver: instances, certificates, gaps, times."""
    sized = (
        pl.when(pl.col("kind") == LOAD).then(None).otherwise(pl.col("requests")).alias("requests")
    )
    return (
        prepared(rows)
        .with_columns(sized)
        .group_by("source", "requests", "solver", maintain_order=True)
        .agg(
            pl.len().alias("instances"),
            (pl.col("status") == "refused").sum().alias("refused"),
            pl.col("at_limit").sum().alias("limit hit"),
            _CERTIFIED_PERCENT,
            pl.col("gap_percent").mean().alias("mean gap %"),
            pl.col("gap_percent").max().alias("max gap %"),
            MS.median().alias("median ms"),
            MS.quantile(0.99).alias("p99 ms"),
            (1000 * pl.col("cpu_s").median()).alias("median CPU ms"),
            (1000 * pl.col("build_s").median()).alias("median build ms"),
            (1000 * pl.col("solve_s").median()).alias("median solve ms"),
        )
    )


def overview(core: pl.DataFrame, within_percent: float) -> pl.DataFrame:
    """
    Each solver over all core problems; what it was not asked counts as not done.

    Parameters
    ----------
    core
        Rows of the problems that are put to every solver.
    within_percent
        A gap that counts as close.
    """
    problems = core.select("source", "instance").n_unique()
    close = (pl.col("gap_percent") <= within_percent).sum()
    return (
        core.group_by("solver")
        .agg(
            pl.col("wall_s").is_not_null().sum().alias("answered"),
            (100 * pl.col("certified").sum() / problems).alias("certified %"),
            (100 * close / problems).alias(f"within {within_percent:g} %"),
            pl.col("gap_percent").mean().alias("mean gap %"),
            pl.col("gap_percent").max().alias("max gap %"),
            MS.median().alias("median ms"),
            MS.max().alias("max ms"),
        )
        .sort(
            "certified %",
            f"within {within_percent:g} %",
            "median ms",
            descending=[True, True, False],
            nulls_last=True,
        )
    )


def by_column(
    rows: pl.DataFrame, column: str, value: pl.Expr, order: Sequence[Any]
) -> pl.DataFrame:
    """A line per solver, a column per size or source, null where it was not asked."""
    cells = rows.group_by("solver", column).agg(value.alias("value"))
    wide = cells.pivot(column, index="solver", values="value")
    named = [str(name) for name in order if str(name) in wide.columns]
    return wide.select("solver", *named).sort("solver")


def by_size(rows: pl.DataFrame, solver: str) -> pl.DataFrame:
    """Times and certificates of one solver, a line per size."""
    cpu_ms = 1000 * pl.col("cpu_s")
    return (
        rows.filter(pl.col("solver") == solver)
        .group_by(pl.col("requests").alias("N"))
        .agg(
            pl.len().alias("instances"),
            _CERTIFIED_PERCENT,
            MS.median().alias("median ms"),
            MS.quantile(0.99).alias("p99 ms"),
            MS.max().alias("max ms"),
            cpu_ms.median().alias("median CPU ms"),
            cpu_ms.quantile(0.99).alias("p99 CPU ms"),
        )
        .sort("N")
    )


def one_batch(rows: pl.DataFrame, family: str) -> pl.DataFrame:
    """
    Back-ends at the best batch size alone, against ``exact`` over all batch sizes.

    The ratios are of back-end seconds (building the model and our own bounds left out) to
    the whole call of ``exact`` on the same instance.
    """
    whole = rows.filter((pl.col("source") == family) & (pl.col("solver") == "exact")).select(
        "instance", pl.col("wall_s").alias("exact_s")
    )
    alone = rows.filter(pl.col("kind") == ONE_BATCH).join(whole, on="instance")
    return (
        alone.with_columns((pl.col("backend_s") / pl.col("exact_s")).alias("ratio"))
        .group_by("solver", maintain_order=True)
        .agg(
            pl.len().alias("instances"),
            pl.col("at_limit").sum().alias("limit hit"),
            _CERTIFIED_PERCENT,
            (1000 * pl.col("backend_s").median()).alias("median ms"),
            (1000 * pl.col("exact_s").median()).alias("exact, all B, ms"),
            pl.col("ratio").median().alias("ratio"),
            pl.col("ratio").min().alias("least"),
            pl.col("ratio").max().alias("most"),
        )
        .sort("ratio")
    )


def speed_ups(rows: pl.DataFrame, family: str, size: int) -> pl.DataFrame:
    """How many times longer than ``exact`` each solver takes, instance by instance, all B."""
    there = rows.filter((pl.col("source") == family) & (pl.col("requests") == size))
    exact = there.filter(pl.col("solver") == "exact").select(
        "instance", pl.col("wall_s").alias("exact_s")
    )
    return (
        there.filter((pl.col("solver") != "exact") & pl.col("wall_s").is_not_null())
        .join(exact, on="instance")
        .with_columns((pl.col("wall_s") / pl.col("exact_s")).alias("ratio"))
        .group_by("solver")
        .agg(
            pl.len().alias("instances"),
            pl.col("at_limit").sum().alias("limit hit"),
            MS.median().alias("median ms"),
            pl.col("ratio").median().alias("ratio"),
            pl.col("ratio").min().alias("least"),
            pl.col("ratio").max().alias("most"),
            pl.col("gap_percent").mean().alias("mean gap %"),
        )
        .sort("ratio")
    )


def exponent_table(found: Mapping[str, Exponent]) -> pl.DataFrame:
    """Exponents with their intervals, smallest first."""
    lines = [
        {
            "solver": name,
            "exponent": fit.value,
            "low": fit.low,
            "high": fit.high,
            "from N": fit.first,
            "to N": fit.last,
            "calls": fit.calls,
        }
        for name, fit in sorted(found.items(), key=lambda item: item[1].value)
    ]
    return pl.DataFrame(lines)


def stop_table(stops: Sequence[Stop]) -> pl.DataFrame:
    """A line per solver and reason: after which size it stopped, by family."""
    merged: dict[tuple[str, str], list[str]] = {}
    for stop in stops:
        merged.setdefault((stop.solver, stop.reason), []).append(f"{stop.source} {stop.size}")
    lines = [
        {"solver": solver, "stopped after": ", ".join(places), "reason": reason}
        for (solver, reason), places in sorted(merged.items())
    ]
    return pl.DataFrame(lines)
