"""Tables of a report, for the terminal, Markdown, CSV and the page."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import polars as pl

from experiments.analysis.intervals import POINTS, interval
from experiments.analysis.tables import by_metric
from experiments.report.statistics import compare

if TYPE_CHECKING:
    from collections.abc import Mapping

#: What tables of means show: metric -> heading, decimals.
SHOWN: dict[str, tuple[str, int | None]] = {
    "qoe_area_mean": ("area", 3),
    "qoe_delay_mean": ("delay", 3),
    "qoe_window_mean": ("window", 3),
    "qoe_window_share_0": ("window = 0", 3),
    "ttft_p99_s": ("TTFT p99 s", 2),
    "completion_delay_max_s": ("longest delay s", 1),
    "tokens_per_s": ("tokens/s", 0),
}
#: What differences are shown of, in points (0.01 QoE).
_COMPARED = {"qoe_area_mean": "area", "qoe_delay_mean": "delay", "qoe_window_mean": "window"}
#: Below this p, corrected for the number of comparisons, a difference is called significant.
SIGNIFICANT = 0.05


def levels(comparison: pl.DataFrame, setting: str) -> pl.DataFrame:
    """
    Return a row per rate and arm: means of the metrics that any claim should show.

    Parameters
    ----------
    comparison
        Of :func:`experiments.report.statistics.compare`.
    setting
        The setting to show.
    """
    here = comparison.filter(pl.col("setting") == setting).rename(
        {"arm": "policy", "ci95": "half_width"}
    )
    seeds = pl.col("n").max().over("rate", "policy").alias("seeds")
    keys = ["rate", "policy", "seeds"]
    return _without_empty_rate(by_metric(here.with_columns(seeds), keys, SHOWN))


def differences(comparison: pl.DataFrame, setting: str, baseline: str) -> pl.DataFrame:
    """
    Return a row per rate and arm: differences to the baseline in points, with p.

    Parameters
    ----------
    comparison, setting
        As for :func:`levels`.
    baseline
        The arm that the others are compared with.
    """
    lines = []
    for place, metrics in _by_arm(comparison, setting):
        if place["policy"] == baseline:
            continue
        first = metrics[next(iter(_COMPARED))]
        line: dict[str, Any] = {**place, "seeds": first["pairs"] or 0}
        for metric, heading in _COMPARED.items():
            row = metrics[metric]
            difference, half = row["difference"], row["difference_ci95"]
            points = difference and POINTS * difference
            line[f"{heading}, points"] = interval(points, half and POINTS * half, 2, sign="+")
            line[f"p {heading}"] = significance(row["p_holm"])
        lines.append(line)
    return _without_empty_rate(pl.DataFrame(lines))


def compare_solvers(answers: pl.DataFrame, baseline: str) -> pl.DataFrame:
    """
    Compare gaps and times of solvers on instances of each source; instances are the units.

    Parameters
    ----------
    answers
        ``Results.answers`` of :mod:`experiments.report.reading`.
    baseline
        The solver that the others are compared with.

    Returns
    -------
    polars.DataFrame
        As :func:`experiments.report.statistics.compare` gives it, for ``gap_percent`` and
        ``wall_ms``.
    """
    values = (
        answers.with_columns((1000 * pl.col("wall_s")).alias("wall_ms"))
        .group_by("source", "unit", "solver", maintain_order=True)
        .agg(pl.col("gap_percent", "wall_ms").mean())
    )
    return compare(
        values, ["gap_percent", "wall_ms"], baseline, by=["source"], arm="solver", unit="unit"
    )


def solvers(comparison: pl.DataFrame, answers: pl.DataFrame, baseline: str) -> pl.DataFrame:
    """
    Return a row per source and solver: gap, its difference to the baseline's, times.

    Parameters
    ----------
    comparison
        Of :func:`compare_solvers`.
    answers, baseline
        As there.
    """
    shares = answers.group_by("source", "solver").agg(
        (1000 * pl.col("wall_s")).median().alias("ms"),
        (100 * pl.col("certified").mean()).alias("certified"),
    )
    gaps = comparison.filter(pl.col("metric") == "gap_percent").rename({"arm": "solver"})
    lines = []
    for row in gaps.join(shares, on=["source", "solver"]).iter_rows(named=True):
        lines.append(
            {
                "source": row["source"],
                "solver": row["solver"],
                "instances": row["n"],
                "gap %": interval(row["mean"], row["ci95"], 4),
                f"less {baseline}'s": interval(
                    row["difference"], row["difference_ci95"], 4, sign="+"
                ),
                "p": significance(row["p_holm"]),
                "median ms": None if row["ms"] is None else round(row["ms"], 3),
                "certified %": round(row["certified"], 1),
                "mean": row["mean"],
            }
        )
    table = pl.DataFrame(lines, infer_schema_length=None)
    return table.sort("source", "mean", "median ms", nulls_last=True).drop("mean")


def significance(p: float | None) -> str:
    """Return a p-value in a few characters, with a star if it is small."""
    if p is None:
        return "-"
    star = " *" if p < SIGNIFICANT else ""
    return f"< 0.001{star}" if p < 0.001 else f"{p:.3f}{star}"


def html(table: pl.DataFrame) -> str:
    """Return a table as HTML; what begins with a digit or a sign is aligned right."""
    first = table.row(0) if table.height else [""] * table.width
    head = "".join(
        f'<th class="n">{escape(name)}</th>' if _numeric(value) else f"<th>{escape(name)}</th>"
        for name, value in zip(table.columns, first, strict=True)
    )
    body = "\n".join(
        "<tr>" + "".join(_html_cell(value) for value in row) + "</tr>" for row in table.iter_rows()
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"


def _numeric(value: Any) -> bool:
    text = "-" if value is None else str(value)
    return text[:1].isdigit() or text[:1] in "+-<>"


def _html_cell(value: Any) -> str:
    shown = escape("-" if value is None else str(value))
    return f'<td class="n">{shown}</td>' if _numeric(value) else f"<td>{shown}</td>"


def _by_arm(
    comparison: pl.DataFrame, setting: str
) -> list[tuple[dict[str, Any], Mapping[str, Any]]]:
    """For each rate and arm: the first columns of its row, and its lines by metric."""
    here = comparison.filter(pl.col("setting") == setting)
    found: list[tuple[dict[str, Any], Mapping[str, Any]]] = []
    for (rate, arm), group in here.group_by(["rate", "arm"], maintain_order=True):
        metrics = {row["metric"]: row for row in group.iter_rows(named=True)}
        seeds = max(row["n"] for row in metrics.values())
        found.append(({"rate": rate, "policy": arm, "seeds": seeds}, metrics))
    return found


def _without_empty_rate(table: pl.DataFrame) -> pl.DataFrame:
    if table.height and table["rate"].null_count() == table.height:
        return table.drop("rate")
    return table
