"""Files of a run: whole or not at all, and strict JSON."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from experiments.runs.files import plain, write_atomically, write_json
from experiments.studies.measurements import Measurement


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
    """Numpy scalars become numbers, NaN becomes null, at any depth."""
    content = {"a": np.float64(1.5), "b": math.nan, "c": np.int64(2), "d": {"e": [math.inf, (1,)]}}
    write_json(tmp_path / "x.json", content)
    assert json.loads((tmp_path / "x.json").read_text()) == {
        "a": 1.5,
        "b": None,
        "c": 2,
        "d": {"e": [None, [1]]},
    }


def test_infinities_stay_where_they_are_wanted():
    """The portfolio's answers keep an infinite bound, which is no missing one."""
    assert plain({"bound": np.float64(math.inf)}, finite=False) == {"bound": math.inf}


def test_named_tuples_are_objects():
    """Measurements keep the names of their fields in a cell's file."""
    found = plain([Measurement("qoe", "", np.float64(0.5)), Measurement("gap", "", math.nan)])
    assert found == [
        {"metric": "qoe", "part": "", "value": 0.5},
        {"metric": "gap", "part": "", "value": None},
    ]
