"""Rows of studies and of tune in a report."""

from __future__ import annotations

import json

import polars as pl
import pytest

from experiments.records import ENVIRONMENT, ROWS, SUMMARY
from experiments.report import report
from experiments.study_statistics import as_rows
from experiments.usage import UsageError


@pytest.fixture
def study(tmp_path):
    """A folder with a run whose numbers are known: ours is 0.2 better than fcfs at each seed."""
    folder = tmp_path / "study"
    folder.mkdir()
    found = [
        (
            {"command": "tune", "variant": "kv_12k", "arm": arm, "rate": 6.0, "seed": seed},
            [
                ["qoe_window_mean", "", base + 0.1 * seed],
                ["capacity_area", "", 4.0 + seed],
                ["quantile_tds", "50", 3.0],
                ["qoe_area_mean", "", None],
            ],
        )
        for arm, base in (("fcfs", 0.5), ("ours", 0.7))
        for seed in (0, 1)
    ]
    as_rows(found).write_parquet(folder / ROWS)
    (folder / SUMMARY).write_text("{}")
    (folder / ENVIRONMENT).write_text(json.dumps({"schema": 1}))
    return folder


def test_a_study_is_tabulated_and_compared(study, tmp_path):
    """Means by arm, paired differences to the baseline, and every number in studies.csv."""
    text = report([study], tmp_path / "out")
    assert "Study: kv_12k" in text
    assert "Difference to fcfs: kv_12k" in text
    assert "+0.200 +- 0.000" in text
    assert "capacity (area) 1/s" in text
    numbers = pl.read_csv(tmp_path / "out" / "studies.csv")
    assert set(numbers["metric"]) == {"qoe_window_mean", "capacity_area", "quantile_tds"}
    difference = numbers.filter(
        pl.col("kind") == "difference", pl.col("metric") == "qoe_window_mean"
    )
    assert difference["mean"].to_list() == [pytest.approx(0.2)]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Study: kv_12k" in page


def test_the_baseline_of_a_study_can_be_named(study, tmp_path):
    """Any of its arms; another name is refused with the valid ones."""
    assert "Difference to ours: kv_12k" in report([study], tmp_path / "out", baseline="ours")
    with pytest.raises(UsageError, match="ours"):
        report([study], tmp_path / "out", baseline="our")
