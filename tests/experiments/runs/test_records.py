"""Which runs are complete, and what they leave."""

from __future__ import annotations

import json

import polars as pl
import pytest

from experiments.configuration.threads import THREAD_VARIABLES
from experiments.runs.columns import frame
from experiments.runs.environment import environment
from experiments.runs.files import ENVIRONMENT, ROWS, SUMMARY
from experiments.runs.records import Run, complete_runs, read_rows, recorded_run


def test_only_complete_runs_are_read(tmp_path):
    """Rows without a summary belong to a run that did not finish."""
    for name in ("done", "cut"):
        (tmp_path / name).mkdir()
        Run(tmp_path / name, {}).finish(frame({"request": [0]}, policy=name), {"wall_s": 1.0})
    (tmp_path / "cut" / SUMMARY).unlink()
    assert read_rows(tmp_path)["policy"].to_list() == ["done"]


def test_a_run_that_failed_after_its_summary_is_not_complete(tmp_path):
    """Where error.json lies beside a summary, the run is not read."""
    for name in ("good", "bad"):
        folder = tmp_path / name
        folder.mkdir()
        with recorded_run(folder) as record:
            record.finish(frame({"request": [1]}), {"requests": 1.0})
    (folder / "error.json").write_text("{}")
    assert complete_runs(tmp_path) == [tmp_path / "good"]


def test_what_an_earlier_run_measured_goes(tmp_path):
    """
    A run into a used folder leaves neither rows nor tokens of the former.

    A regression test: reports drew one policy's tokens under another one's name.
    """
    old = ("rows.parquet", "solver_rows.parquet", "tokens.parquet", "timeline.parquet")
    for name in (*old, "mine.txt"):
        (tmp_path / name).touch()
    with recorded_run(tmp_path) as record:
        record.finish(None, {})
    assert {path.name for path in tmp_path.iterdir()} == {"env.json", "summary.json", "mine.txt"}


def test_rows_of_different_commands_read_as_one_table(tmp_path):
    """Columns that one command lacks are null in its rows."""
    for name, column in (("a", "qoe_area"), ("b", "gap_percent")):
        (tmp_path / name).mkdir()
        Run(tmp_path / name, {}).finish(frame({column: [0.5]}, command=name), {})
    rows = read_rows(tmp_path)
    assert rows["qoe_area"].to_list() == [0.5, None]
    assert rows["gap_percent"].to_list() == [None, 0.5]


def test_reading_nothing_names_the_folder(tmp_path):
    """A folder without a complete run is an error that names it."""
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        read_rows(tmp_path)


def test_a_run_leaves_its_three_files(tmp_path):
    """finish() writes rows, environment and summary, and nothing else."""
    Run(tmp_path, {"cpu": "x"}).finish(frame({"request": [0]}), {"iterations": 7})
    assert {p.name for p in tmp_path.iterdir()} == {ROWS, ENVIRONMENT, SUMMARY}
    assert pl.read_parquet(tmp_path / ROWS).height == 1
    assert json.loads((tmp_path / SUMMARY).read_text()) == {"iterations": 7}


def test_the_environment_says_what_is_needed_to_repeat_a_run():
    """Versions, processor, cores, threads and load are there, and are plain JSON."""
    env = json.loads(json.dumps(environment()))
    assert env["versions"]["python"]
    assert env["cpu"]
    assert env["cores"] >= 1
    assert set(env["threads"]) == set(THREAD_VARIABLES)
    assert {"git", "load", "started", "platform"} <= set(env)
