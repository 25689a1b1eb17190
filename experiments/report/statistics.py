"""
The numbers of a report: intervals over seeds, paired differences, tests, capacities, quantiles.

A run's metrics are those of ``andes_opt.metrics.summarise``, whoever made its rows. Seeds are
the independent units: arms meet the same requests under one seed, so differences pair up.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl
from scipy import stats

from andes_opt.metrics import mean_ci, paired_difference, summarise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from experiments.report.reading import Cell

#: The mean `area` QoE that a capacity asks for (Andes, arXiv 2404.16283, section 6).
CAPACITY_QOE = 0.9

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
    """Columns of ``columns.REQUEST_COLUMNS`` as arrays (n,); what was not measured is NaN."""

    def floats(name: str) -> NDArray[Any]:
        return rows[name].cast(pl.Float64).to_numpy()

    return RequestArrays(
        **{name: floats(name) for name in ("arrival_s", "ttft_s", "tds", "preemptions")},
        **{name: floats(name) for name in ("first_token_s", "completion_s")},
        **{name: floats(name) for name in ("qoe_area", "qoe_delay", "qoe_window")},
        output_tokens=rows["output_tokens"].fill_null(0).to_numpy(),
        rejected=rows["rejected"].fill_null(False).to_numpy(),
    )


def metrics_of(cells: Sequence[Cell]) -> pl.DataFrame:
    """
    A line per cell: ``setting``, ``rate``, ``arm``, ``seed``, and a column per metric.

    What a run did not measure is null.
    """
    lines = []
    for cell in cells:
        place = {"setting": cell.setting, "rate": cell.rate, "arm": cell.arm, "seed": cell.seed}
        lines.append({**place, **summarise(request_arrays(cell.rows))})
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
    Mean of each metric of each arm, and its paired difference to the baseline.

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
    lines = []
    for key, group in values.group_by(by, maintain_order=True):
        place = dict(zip(by, key, strict=True))
        base = group.filter(pl.col(arm) == baseline)
        for name in group[arm].unique(maintain_order=True):
            line = group.filter(pl.col(arm) == name)
            paired = line.join(base, on=unit, suffix=" of the baseline", nulls_equal=True)
            for metric in metrics:
                numbers = line[metric].drop_nulls().to_numpy()
                mean, half = mean_ci(numbers) if numbers.size else (math.nan, math.nan)
                pair = paired.select(metric, f"{metric} of the baseline").drop_nulls().to_numpy()
                found = {"arm": name, "metric": metric, "n": numbers.size}
                lines.append(
                    place
                    | found
                    | {"mean": mean, "ci95": half}
                    | (_difference(pair[:, 0], pair[:, 1]) if name != baseline else {})
                )
    schema = {"ci95": pl.Float64, "pairs": pl.Int64, "difference": pl.Float64}
    schema |= {"difference_ci95": pl.Float64, "p": pl.Float64}
    table = pl.DataFrame(lines, schema_overrides=schema, infer_schema_length=None)
    missing = [pl.lit(None, kind).alias(name) for name, kind in schema.items() if name not in table]
    floats = [name for name, kind in table.schema.items() if kind == pl.Float64 and name not in by]
    table = table.with_columns(missing).with_columns(
        pl.when(pl.col(name).is_finite()).then(pl.col(name)).alias(name) for name in floats
    )
    return table.with_columns(
        pl.col("p")
        .map_batches(_holm_series, return_dtype=pl.Float64)
        .over("metric")
        .alias("p_holm")
    )


def _difference(numbers: NDArray[np.float64], base: NDArray[np.float64]) -> dict[str, Any]:
    if numbers.size == 0:
        return {}
    mean, half = paired_difference(numbers, base)
    return {
        "pairs": numbers.size,
        "difference": mean,
        "difference_ci95": half,
        "p": paired_p(numbers, base),
    }


def paired_p(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """
    Two-sided p of the paired t-test that a and b have one mean.

    NaN for fewer than two pairs; 1 if no pair differs, 0 if all differ by the same.
    """
    differences = a - b
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
    p-values corrected for their number (Holm, 1979).

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


def _holm_series(p: pl.Series) -> pl.Series:
    return pl.Series(holm(p.to_numpy()), nan_to_null=True)


class Capacity(NamedTuple):
    """A rate, and whether it was ``interpolated`` or is a limit: ``at least``, ``below``."""

    rate: float
    kind: str


def capacity(
    rates: NDArray[np.float64], qoe: NDArray[np.float64], threshold: float = CAPACITY_QOE
) -> Capacity:
    """
    The highest rate with a QoE of at least a threshold.

    Between the last rate that reaches the threshold and the next one the QoE is taken as
    linear; this is not a search, and as coarse as the rates are.

    Parameters
    ----------
    rates
        Ascending, (k,), k >= 1.
    qoe
        Mean QoE at each, (k,).
    threshold
        The QoE to reach.

    Returns
    -------
    Capacity
        ``at least`` the last rate if that reaches the threshold, ``below`` the first if none
        does.
    """
    reached = np.flatnonzero(qoe >= threshold)
    if reached.size == 0:
        return Capacity(float(rates[0]), "below")
    k = int(reached[-1])
    if k == rates.size - 1:
        return Capacity(float(rates[-1]), "at least")
    share = (qoe[k] - threshold) / (qoe[k] - qoe[k + 1])
    return Capacity(float(rates[k] + share * (rates[k + 1] - rates[k])), "interpolated")


def capacities(metrics: pl.DataFrame, baseline: str) -> pl.DataFrame:
    """
    The capacity of every arm in every setting with two rates or more.

    Parameters
    ----------
    metrics
        Of :func:`metrics_of`.
    baseline
        The arm that ratios are taken to.

    Returns
    -------
    polars.DataFrame
        ``setting``, ``arm``, ``capacity`` (requests/s; of the mean over seeds), ``kind`` of
        :class:`Capacity`, ``ci95`` (over each seed's own capacity; null if not all are
        interpolated), ``ratio`` to the baseline's (null unless both are interpolated).
    """
    lines: list[dict[str, Any]] = []
    known = metrics.filter(pl.col("rate").is_not_null())
    for (setting,), group in known.group_by(["setting"], maintain_order=True):
        if group["rate"].n_unique() < 2:
            continue
        for (arm,), line in group.group_by(["arm"], maintain_order=True):
            if line["rate"].n_unique() < 2:
                continue
            found = _capacity_of(line)
            own = [_capacity_of(one) for _, one in line.group_by("seed", maintain_order=True)]
            half = math.nan
            if all(each.kind == "interpolated" for each in own):
                half = mean_ci([each.rate for each in own]).half_width
            lines.append(
                {"setting": setting, "arm": arm, "capacity": found.rate, "kind": found.kind}
                | {"ci95": half if math.isfinite(half) else None}
            )
    schema = {"setting": pl.String, "arm": pl.String, "capacity": pl.Float64, "kind": pl.String}
    table = pl.DataFrame(lines, schema={**schema, "ci95": pl.Float64})
    base = table.filter(pl.col("arm") == baseline, pl.col("kind") == "interpolated")
    base = base.select("setting", pl.col("capacity").alias("base"))
    ratio = pl.when(pl.col("kind") == "interpolated").then(pl.col("capacity") / pl.col("base"))
    return table.join(base, on="setting", how="left", maintain_order="left").select(
        *table.columns, ratio.alias("ratio")
    )


def _capacity_of(line: pl.DataFrame) -> Capacity:
    means = line.group_by("rate").agg(pl.col("qoe_area_mean").mean()).sort("rate")
    return capacity(means["rate"].to_numpy(), means["qoe_area_mean"].to_numpy())


def quantiles(rows: pl.DataFrame, quantity: str) -> NDArray[np.float64] | None:
    """
    Quantiles of a quantity over requests at :data:`SHARES`, (101,).

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
