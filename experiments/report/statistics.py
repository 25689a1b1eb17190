"""
The numbers of a report: metrics of each run, arms compared with a baseline, distributions.

A run's metrics are those of ``andes_opt.metrics.summarise``, whatever made its rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from andes_opt.metrics import summarise
from experiments.analysis.statistics import holm, means, with_baseline

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from experiments.report.reading import ServedRun

#: Mean `area` QoE below which a rate is too high (Andes, arXiv 2404.16283, section 6).
GOOD_QOE = 0.9

#: What distributions are shown of: column -> how to call it, unit.
QUANTITIES = {
    "qoe_area": ("QoE area", ""),
    "qoe_delay": ("QoE delay", ""),
    "qoe_window": ("QoE window", ""),
    "first_token_s": ("TTFT", "s"),
    "delivered_tds": ("speed of delivery", "tokens/s"),
}
#: Shares at which a distribution's quantiles are taken.
SHARES = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True, slots=True, eq=False)
class RequestArrays:
    """Rows of requests as ``andes_opt.metrics.Outcomes``; null is NaN."""

    arrival_s: NDArray[np.float64]
    output_tokens: NDArray[np.int64]
    ttft_s: NDArray[np.float64]
    tds: NDArray[np.float64]
    rejected: NDArray[np.bool_]
    first_token_s: NDArray[np.float64]
    completion_s: NDArray[np.float64]
    qoe_area: NDArray[np.float64]
    qoe_delay: NDArray[np.float64]
    qoe_window: NDArray[np.float64]
    preemptions: NDArray[np.int64]


def request_arrays(rows: pl.DataFrame) -> RequestArrays:
    """Return rows of requests as arrays (n,); what was not measured is NaN."""

    def floats(name: str) -> NDArray[Any]:
        return rows[name].cast(pl.Float64).to_numpy()

    return RequestArrays(
        **{name: floats(name) for name in ("arrival_s", "ttft_s", "tds", "preemptions")},
        **{name: floats(name) for name in ("first_token_s", "completion_s")},
        **{name: floats(name) for name in ("qoe_area", "qoe_delay", "qoe_window")},
        output_tokens=rows["output_tokens"].fill_null(0).to_numpy(),
        rejected=rows["rejected"].fill_null(False).to_numpy(),
    )


def metrics_of(runs: Sequence[ServedRun]) -> pl.DataFrame:
    """
    Return a line per run: ``setting``, ``rate``, ``arm``, ``seed``, and a column per metric.

    What a run did not measure is null.
    """
    lines = []
    for run in runs:
        place = {"setting": run.setting, "rate": run.rate, "arm": run.arm, "seed": run.seed}
        lines.append({**place, **summarise(request_arrays(run.rows))})
    schema = {"setting": pl.String, "rate": pl.Float64, "arm": pl.String, "seed": pl.Int64}
    return pl.DataFrame(lines, schema_overrides=schema, infer_schema_length=None).fill_nan(None)


def compare(
    values: pl.DataFrame,
    metrics: Sequence[str],
    baseline: str,
    *,
    by: Sequence[str],
    arm: str = "arm",
    unit: str = "seed",
) -> pl.DataFrame:
    """
    Return the mean of each metric of each arm, and its paired difference to the baseline.

    Parameters
    ----------
    values
        A line per group, arm and unit.
    metrics
        Columns of values to compare.
    baseline
        The arm that the others are compared with.
    by
        Columns that make a group; arms are compared within one.
    arm, unit
        Columns that name the arm, and what repeats: the seed, say, or the instance.

    Returns
    -------
    polars.DataFrame
        A line per group, arm and metric: ``n`` units, ``mean``, ``ci95`` (half-width, null for
        one unit), ``pairs`` with the baseline, ``difference`` (arm less baseline), its
        ``difference_ci95``, ``p`` of the paired t-test, and ``p_holm``, corrected by Holm for
        all comparisons of the metric.
    """
    # The lines of a group stand together.
    values = pl.concat(values.partition_by(by, maintain_order=True))
    places = values.select(*by, arm).unique(maintain_order=True)
    lines = places.join(pl.DataFrame({"metric": metrics}), how="cross", maintain_order="left")
    numbers = values.unpivot(
        metrics, index=[*by, arm, unit], variable_name="metric", value_name="number"
    )
    pairs = with_baseline(numbers, baseline, [*by, "metric", unit], arm=arm).with_columns(
        (pl.col("number") - pl.col("base")).alias("less")
    )
    keys = [*by, arm, "metric"]
    levels = means(numbers, keys).rename({"half_width": "ci95", "units": "n"})
    differences = means(pairs, keys, "less", tested=True).rename(
        {"units": "pairs", "mean": "difference", "half_width": "difference_ci95"}
    )
    for found in (levels, differences):
        lines = lines.join(found, on=keys, how="left", maintain_order="left", nulls_equal=True)
    corrected = pl.col("p").map_batches(_holm_series, return_dtype=pl.Float64).over("metric")
    return lines.rename({arm: "arm"}).select(
        *by,
        "arm",
        "metric",
        pl.col("n").fill_null(0),
        *("mean", "ci95", "pairs", "difference", "difference_ci95", "p"),
        corrected.alias("p_holm"),
    )


def _holm_series(p: pl.Series) -> pl.Series:
    return pl.Series(holm(p.to_numpy()), nan_to_null=True)


def quantiles(rows: pl.DataFrame, quantity: str) -> NDArray[np.float64] | None:
    """
    Return quantiles of a quantity over requests at :data:`SHARES`, (101,).

    Parameters
    ----------
    rows
        Of requests.
    quantity
        A key of :data:`QUANTITIES`. The speed of delivery is (n - 1) / (TTLT - TTFT).

    Returns
    -------
    ndarray or None
        None if nothing was measured.
    """
    if quantity == "delivered_tds":
        stream_s = pl.col("completion_s") - pl.col("first_token_s")
        speed = (pl.col("output_tokens") - 1) / stream_s
        values = rows.filter(stream_s > 0).select(speed.alias(quantity))[quantity]
    else:
        values = rows[quantity]
    numbers = values.drop_nulls().to_numpy()
    return np.quantile(numbers, SHARES) if numbers.size else None
