"""The numbers of the report: against scipy, against formulas, against the metrics' own module."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from andes_opt.metrics import mean_ci, paired_difference
from experiments.report.reading import Cell
from experiments.report.statistics import (
    Capacity,
    capacities,
    capacity,
    compare,
    holm,
    metrics_of,
    paired_p,
    quantiles,
)
from experiments.runs.columns import frame
from tests.experiments.report.report_runs import requests

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


@pytest.mark.parametrize(
    ("a", "b", "p"), [([1, 2], [1, 2], 1.0), ([2, 3], [1, 2], 0.0), ([1], [2], math.nan)]
)
def test_p_where_the_t_test_is_silent(a, b, p):
    """Equal pairs, pairs that all differ alike, and a single pair."""
    found = paired_p(np.array(a, dtype=float), np.array(b, dtype=float))
    assert found == pytest.approx(p, nan_ok=True)


def test_holm_by_hand():
    """0.01 * 3, 0.02 * 2, and 0.03 * 1 raised to the one before; what is not tested stays out."""
    corrected = holm(np.array([0.03, math.nan, 0.01, 0.02]))
    assert corrected == pytest.approx([0.04, math.nan, 0.03, 0.04], nan_ok=True)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
@settings(max_examples=50)
def test_holm_keeps_the_order_and_only_raises(p):
    """Corrected values are at least the raw ones, at most 1, and ordered alike."""
    raw = np.array(p)
    corrected = holm(raw)
    assert (corrected >= raw).all()
    assert (corrected <= 1).all()
    order = np.argsort(raw, kind="stable")
    assert (np.diff(corrected[order]) >= 0).all()


@pytest.mark.parametrize(
    ("qoe", "expected"),
    [
        ([1.0, 0.95, 0.85, 0.5], Capacity(2.5, "interpolated")),
        ([1.0, 0.9, 0.8, 0.7], Capacity(2.0, "interpolated")),
        ([1.0, 0.8, 0.95, 0.85], Capacity(3.5, "interpolated")),
        ([1.0, 1.0, 1.0, 0.9], Capacity(4.0, "at least")),
        ([0.8, 0.7, 0.6, 0.5], Capacity(1.0, "below")),
    ],
)
def test_capacity_is_interpolated_and_says_when_it_is_a_limit(qoe, expected):
    """The last crossing counts, linearly; beyond the rates there is only a limit."""
    rate, kind = capacity(np.arange(1.0, 5.0), np.array(qoe))
    assert kind == expected.kind
    assert rate == pytest.approx(expected.rate)


def test_capacities_have_intervals_over_seeds_and_ratios():
    """A capacity per arm, its spread over seeds, and its ratio to the baseline's."""
    lines = [
        {"setting": "s", "arm": arm, "rate": rate, "seed": seed, "qoe_area_mean": qoe}
        for arm, seed, qoes in (
            ("fcfs", 0, (1.0, 0.8, 0.6)),
            ("fcfs", 1, (1.0, 0.7, 0.6)),
            ("andes", 0, (1.0, 1.0, 0.8)),
            ("andes", 1, (1.0, 1.0, 0.95)),
        )
        for rate, qoe in zip((1.0, 2.0, 3.0), qoes, strict=True)
    ]
    table = capacities(pl.DataFrame(lines), "fcfs")
    fcfs, andes = (
        table.row(by_predicate=pl.col("arm") == arm, named=True) for arm in ("fcfs", "andes")
    )
    assert fcfs["capacity"] == pytest.approx(1.4)  # of the mean 1, 0.75
    assert fcfs["ci95"] == pytest.approx(mean_ci([1.5, 4 / 3]).half_width)
    assert andes["capacity"] == pytest.approx(2.8)
    assert andes["ci95"] is None  # seed 1 never falls below 0.9
    assert andes["ratio"] == pytest.approx(2.0)


def test_one_rate_gives_no_capacity():
    """Nothing can be interpolated from one rate, and the columns are there all the same."""
    line = {"setting": "s", "arm": "fcfs", "rate": 1.0, "seed": 0, "qoe_area_mean": 0.5}
    assert capacities(pl.DataFrame([line]), "fcfs").shape == (0, 6)


def test_metrics_of_rows_are_those_of_the_run():
    """Rows read back give the metrics that the run itself would have; what it lacks is null."""
    columns, _ = requests(0.5)
    cell = Cell(Path(), "s", "fcfs", 1.0, 0, frame(columns | {"preemptions": [None] * 20}), True)
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
