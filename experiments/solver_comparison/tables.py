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
_CPU_MS = 1000 * pl.col("cpu_s")
#: What tables say of the calls of a solver: column -> how it is found.
_NUMBERS = {
    "instances": pl.len(),
    "refused": (pl.col("status") == "refused").sum(),
    "failed": (pl.col("status") == "failed").sum(),
    "limit hit": pl.col("at_limit").sum(),
    "certified %": 100 * pl.col("certified").mean(),
    "mean gap %": pl.col("gap_percent").mean(),
    "max gap %": pl.col("gap_percent").max(),
    "median ms": MS.median(),
    "p99 ms": MS.quantile(0.99),
    "max ms": MS.max(),
    "median CPU ms": _CPU_MS.median(),
    "p99 CPU ms": _CPU_MS.quantile(0.99),
    "median build ms": 1000 * pl.col("build_s").median(),
    "median solve ms": 1000 * pl.col("solve_s").median(),
    "ratio": pl.col("ratio").median(),
    "least": pl.col("ratio").min(),
    "most": pl.col("ratio").max(),
}


@dataclass(frozen=True, slots=True)
class Stop:
    """A solver that is asked for no larger size of a source, and why."""

    source: str
    solver: str
    size: int
    reason: str


def numbers(rows: pl.DataFrame, by: Sequence[str], *columns: Sequence[str]) -> pl.DataFrame:
    """
    Return some of the numbers that tables have, a line per group.

    Parameters
    ----------
    rows
        Of solver comparisons.
    by
        Columns that make a group.
    *columns
        Names of the numbers.
    """
    wanted = [_NUMBERS[name].alias(name) for names in columns for name in names]
    return rows.group_by(*by, maintain_order=True).agg(wanted)


def prepared(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows with ``at_limit``: the call ended at its time limit without a proof."""
    at_limit = ~pl.col("certified") & (pl.col("wall_s") >= AT_THE_LIMIT * pl.col("time_limit_s"))
    return rows.with_columns(at_limit.fill_null(False).alias("at_limit"))


def long_table(rows: pl.DataFrame) -> pl.DataFrame:
    """Return instances, certificates, gaps and times of every source, size and solver."""
    sized = (
        pl.when(pl.col("kind") == LOAD).then(None).otherwise(pl.col("requests")).alias("requests")
    )
    return numbers(
        prepared(rows).with_columns(sized),
        ("source", "requests", "solver"),
        ("instances", "refused", "limit hit", "certified %", "mean gap %", "max gap %"),
        ("median ms", "p99 ms", "median CPU ms", "median build ms", "median solve ms"),
    )


def overview(core: pl.DataFrame, within_percent: float) -> pl.DataFrame:
    """
    Return each solver over all core problems; what it was not asked counts as not done.

    Parameters
    ----------
    core
        Rows of the problems that are put to every solver.
    within_percent
        A gap that counts as close.
    """
    problems = core.select("source", "instance").n_unique()
    close = (pl.col("gap_percent") <= within_percent).sum()
    within = f"within {within_percent:g} %"
    done = core.group_by("solver").agg(
        pl.col("wall_s").is_not_null().sum().alias("answered"),
        (100 * pl.col("certified").sum() / problems).alias("certified %"),
        (100 * close / problems).alias(within),
    )
    answered = numbers(core, ["solver"], ("mean gap %", "max gap %", "median ms", "max ms"))
    return done.join(answered, on="solver").sort(
        "certified %", within, "median ms", descending=[True, True, False], nulls_last=True
    )


def by_column(
    rows: pl.DataFrame, column: str, value: pl.Expr, order: Sequence[Any]
) -> pl.DataFrame:
    """Return a line per solver and a column per size or source, null where it was not asked."""
    cells = rows.group_by("solver", column).agg(value.alias("value"))
    wide = cells.pivot(column, index="solver", values="value")
    named = [str(name) for name in order if str(name) in wide.columns]
    return wide.select("solver", *named).sort("solver")


def by_size(rows: pl.DataFrame, solver: str) -> pl.DataFrame:
    """Return times and certificates of one solver, a line per size."""
    return numbers(
        rows.filter(pl.col("solver") == solver).with_columns(pl.col("requests").alias("N")),
        ["N"],
        ("instances", "certified %", "median ms", "p99 ms", "max ms"),
        ("median CPU ms", "p99 CPU ms"),
    ).sort("N")


def one_batch(rows: pl.DataFrame, family: str) -> pl.DataFrame:
    """
    Compare back-ends at the best batch size alone with ``exact`` over all batch sizes.

    The ratios are of back-end seconds (building the model and our own bounds left out) to
    the whole call of ``exact`` on the same instance.
    """
    whole = _of_exact(rows.filter(pl.col("source") == family))
    alone = (
        rows.filter(pl.col("kind") == ONE_BATCH)
        .join(whole, on="instance")
        .with_columns((pl.col("backend_s") / pl.col("exact_s")).alias("ratio"))
    )
    ms = alone.group_by("solver", maintain_order=True).agg(
        (1000 * pl.col("backend_s").median()).alias("median ms"),
        (1000 * pl.col("exact_s").median()).alias("exact, all B, ms"),
    )
    calls = numbers(alone, ["solver"], ("instances", "limit hit", "certified %"))
    ratios = numbers(alone, ["solver"], ("ratio", "least", "most"))
    return calls.join(ms, on="solver").join(ratios, on="solver").sort("ratio")


def speed_ups(rows: pl.DataFrame, family: str, size: int) -> pl.DataFrame:
    """Return how many times longer than ``exact`` solvers take on the same instances, all B."""
    there = rows.filter((pl.col("source") == family) & (pl.col("requests") == size))
    others = there.filter((pl.col("solver") != "exact") & pl.col("wall_s").is_not_null())
    return numbers(
        others.join(_of_exact(there), on="instance").with_columns(
            (pl.col("wall_s") / pl.col("exact_s")).alias("ratio")
        ),
        ["solver"],
        ("instances", "limit hit", "median ms", "ratio", "least", "most", "mean gap %"),
    ).sort("ratio")


def _of_exact(rows: pl.DataFrame) -> pl.DataFrame:
    """Seconds that ``exact`` took on each instance."""
    mine = rows.filter(pl.col("solver") == "exact")
    return mine.select("instance", pl.col("wall_s").alias("exact_s"))


def exponent_table(found: Mapping[str, Exponent]) -> pl.DataFrame:
    """Return exponents with their intervals, smallest first."""
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
    """Return a line per solver and reason: after which size it stopped, by family."""
    merged: dict[tuple[str, str], list[str]] = {}
    for stop in stops:
        merged.setdefault((stop.solver, stop.reason), []).append(f"{stop.source} {stop.size}")
    lines = [
        {"solver": solver, "stopped after": ", ".join(places), "reason": reason}
        for (solver, reason), places in sorted(merged.items())
    ]
    return pl.DataFrame(lines)
