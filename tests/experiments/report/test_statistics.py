"""The numbers of the report: against scipy, against formulas, against the metrics' own module."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import stats

from andes_opt.metrics import mean_ci, paired_difference
from experiments.report.reading import ServedRun
from experiments.report.statistics import compare, metrics_of, quantiles
from experiments.runs.columns import frame
from tests.experiments.report.runs_by_hand import requests

VALUES = pl.DataFrame(
    {
        "rate": [1.0] * 8 + [2.0] * 4,
        "arm": ["fcfs"] * 4 + ["andes"] * 4 + ["fcfs", "fcfs", "andes", "andes"],
        "seed": [0, 1, 2, 3, 3, 2, 1, 0, 0, 1, 1, 2],
        "qoe": [0.5, 0.6, 0.7, 0.55, 0.75, 0.8, 0.72, 0.7, 0.2, 0.3, 0.9, 0.8],
    }
)


def row(table, rate, arm):
    """The line of an arm at a rate."""
    return table.row(by_predicate=(pl.col("rate") == rate) & (pl.col("arm") == arm), named=True)


def test_intervals_and_tests_are_those_of_scipy():
    """Means, half-widths and p of arms whose seeds stand in different orders."""
    table = compare(VALUES, ["qoe"], "fcfs", by=["rate"])
    andes, fcfs = np.array([0.7, 0.72, 0.8, 0.75]), np.array([0.5, 0.6, 0.7, 0.55])
    found = row(table, 1.0, "andes")
    assert (found["mean"], found["ci95"]) == pytest.approx(mean_ci(andes))
    assert (found["n"], found["pairs"]) == (4, 4)
    expected = paired_difference(andes, fcfs)
    assert (found["difference"], found["difference_ci95"]) == pytest.approx(expected)
    assert found["p"] == pytest.approx(stats.ttest_rel(andes, fcfs).pvalue)


def test_only_common_seeds_pair_up():
    """At the second rate one seed is common, which gives a difference and no test."""
    table = compare(VALUES, ["qoe"], "fcfs", by=["rate"])
    found = row(table, 2.0, "andes")
    assert (found["n"], found["pairs"]) == (2, 1)
    assert found["difference"] == pytest.approx(0.9 - 0.3)
    assert found["difference_ci95"] is None
    assert found["p"] is None
    assert row(table, 1.0, "fcfs")["difference"] is None


def test_without_the_baseline_there_are_no_differences():
    """A baseline that nobody ran at a rate leaves means."""
    table = compare(VALUES.filter(pl.col("arm") == "andes"), ["qoe"], "fcfs", by=["rate"])
    assert table["mean"].null_count() == 0
    assert table["difference"].null_count() == table.height


def test_metrics_of_rows_are_those_of_the_run():
    """Rows read back give the metrics that the run itself would have; what it lacks is null."""
    columns, _ = requests(0.5)
    cell = ServedRun(
        Path(), "s", "fcfs", 1.0, 0, frame(columns | {"preemptions": [None] * 20}), True
    )
    line = metrics_of([cell]).row(0, named=True)
    assert line["qoe_window_mean"] == pytest.approx(np.mean(columns["qoe_window"]))
    assert line["ttft_p50_s"] == pytest.approx(np.median(columns["first_token_s"]))
    assert line["requests"] == 20
    assert line["preemptions"] is None


def test_quantiles_of_the_speed_of_delivery():
    """(n - 1) / (TTLT - TTFT), which is one token per 0.15 s here; nothing measured is None."""
    columns, _ = requests(0.5)
    assert quantiles(frame(columns), "delivered_tds") == pytest.approx(1 / 0.15)
    rejected = frame(columns | {"first_token_s": [None] * 20})
    assert quantiles(rejected, "first_token_s") is None
