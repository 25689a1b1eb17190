"""What runs write: schema, atomicity, completeness."""

from __future__ import annotations

import json
import math

import numpy as np
import polars as pl
import pytest

from experiments.configuration.threads import THREAD_VARIABLES
from experiments.runs.environment import environment
from experiments.runs.records import (
    COLUMNS,
    ENVIRONMENT,
    ROWS,
    SUMMARY,
    Run,
    complete_runs,
    frame,
    read_rows,
    recorded_run,
    write_atomically,
    write_json,
)


def test_frame_has_the_documented_types_and_order():
    """Columns come in the schema's order and with its types, whatever was passed."""
    rows = frame({"request": np.arange(2), "arrival_s": [0, 1]}, policy="fcfs", seed=3)
    assert rows.columns == ["policy", "seed", "request", "arrival_s"]
    assert rows.dtypes == [COLUMNS[name].dtype for name in rows.columns]
    assert rows.row(1) == ("fcfs", 3, 1, 1.0)


def test_frame_turns_what_is_no_number_into_null():
    """NaN and infinities become null, so that means over a column are right."""
    rows = frame({"first_token_s": [1.0, math.nan, math.inf, -math.inf]})
    assert rows["first_token_s"].to_list() == [1.0, None, None, None]


def test_frame_refuses_an_undocumented_column():
    """A column that the schema does not explain is an error."""
    with pytest.raises(ValueError, match="mystery"):
        frame({"mystery": [1]})


def test_every_column_is_documented():
    """Each column has a meaning, and its unit is in the name's ending."""
    for name, column in COLUMNS.items():
        assert column.meaning
        if name.endswith("_s"):
            assert column.unit == "s"


def test_a_failed_write_leaves_the_old_file(tmp_path):
    """A file is replaced whole or not at all, and no partial file stays."""
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail(partial):
        partial.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_strict(tmp_path):
    """Numpy scalars become numbers, NaN becomes null."""
    write_json(tmp_path / "x.json", {"a": np.float64(1.5), "b": math.nan, "c": np.int64(2)})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1.5, "b": None, "c": 2}


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
