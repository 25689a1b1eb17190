"""Rows of studies and of tune in a report."""

from __future__ import annotations

import json
import shutil

import polars as pl
import pytest

from experiments.analysis.statistics import as_rows
from experiments.configuration.errors import UsageError
from experiments.report.document import report
from experiments.runs.files import ENVIRONMENT, ROWS, SUMMARY
from experiments.studies.measurements import Measurement


@pytest.fixture
def study(tmp_path):
    """A folder with a run whose numbers are known: ours is 0.2 better than fcfs at each seed."""
    folder = tmp_path / "study"
    folder.mkdir()
    found = [
        (
            {"command": "tune", "variant": "kv_12k", "arm": arm, "rate": 6.0, "seed": seed},
            [
                Measurement("qoe_window_mean", "", base + 0.1 * seed),
                Measurement("capacity_area", "", 4.0 + seed),
                Measurement("quantile_tds", "50", 3.0),
                Measurement("qoe_area_mean", "", None),
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
    assert "+0.200 ± 0.000" in text
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


def other_study(study, folder, change):
    """A copy of the study under another name, its rows changed."""
    shutil.copytree(study, folder)
    change(pl.read_parquet(folder / ROWS)).write_parquet(folder / ROWS)
    return folder


def test_studies_that_share_cells_have_no_more_seeds(study, tmp_path):
    """A regression test: equal numbers of two folders counted as four seeds, crosswise paired."""
    copy = other_study(
        study, tmp_path / "copy", lambda rows: rows.with_columns(overrides=pl.lit("other"))
    )
    report([study], tmp_path / "one")
    text = report([study, copy], tmp_path / "two")
    one, two = (pl.read_csv(tmp_path / name / "studies.csv") for name in ("one", "two"))
    assert one["seeds"].max() == 2
    assert two.equals(one)
    assert "repeat another one's and count once: 16" in text


def test_more_seeds_of_another_folder_are_more_seeds(study, tmp_path):
    """Seeds that one folder alone has count, and the one that both have counts once."""
    seed = pl.col("seed")
    later = other_study(
        study,
        tmp_path / "later",
        lambda rows: rows.with_columns(
            pl.when(seed == 0).then(pl.lit(2, pl.Int64)).otherwise(seed).alias("seed")
        ),
    )
    report([study, later], tmp_path / "out")
    numbers = pl.read_csv(tmp_path / "out" / "studies.csv")
    assert set(numbers["variant"]) == {"kv_12k"}
    assert set(numbers["seeds"]) == {3}


def test_studies_that_disagree_are_told_apart(study, tmp_path):
    """A regression test: numbers of other options under the same names were averaged."""
    better = pl.when(pl.col("arm") == "ours").then(0.1).otherwise(0.0)
    window = pl.col("metric") == "qoe_window_mean"
    tuned = other_study(
        study,
        tmp_path / "tuned",
        lambda rows: rows.with_columns(
            pl.when(window)
            .then(pl.col("number") + better)
            .otherwise(pl.col("number"))
            .alias("number")
        ),
    )
    text = report([study, tuned], tmp_path / "out")
    assert "Difference to fcfs: kv_12k [study]" in text
    assert "shown apart by folder, in brackets: 1" in text
    numbers = pl.read_csv(tmp_path / "out" / "studies.csv")
    differences = numbers.filter(
        pl.col("kind") == "difference", pl.col("metric") == "qoe_window_mean"
    )
    assert differences["variant"].to_list() == ["kv_12k [study]", "kv_12k [tuned]"]
    assert differences["mean"].to_list() == pytest.approx([0.2, 0.3])
    assert differences["seeds"].to_list() == [2, 2]


def test_folders_of_one_name_are_told_apart_by_their_paths(study, tmp_path):
    """The label of a study is as much of its path as it takes."""
    other = other_study(
        study, tmp_path / "b" / "study", lambda rows: rows.with_columns(pl.col("number") + 1.0)
    )
    report([study, other], tmp_path / "out")
    numbers = pl.read_csv(tmp_path / "out" / "studies.csv")
    assert set(numbers["variant"]) == {"kv_12k [study]", "kv_12k [b/study]"}
