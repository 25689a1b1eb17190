"""The documented columns of rows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from experiments.runs.columns import COLUMNS, frame


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
