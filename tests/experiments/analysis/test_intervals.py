"""How numbers with an interval are written."""

from __future__ import annotations

import math

import pytest

from experiments.analysis.intervals import interval


@pytest.mark.parametrize(
    ("mean", "half_width", "decimals", "text"),
    [
        (0.12345, 0.01, 3, "0.123 ± 0.010"),
        (1234.5, 321.0, None, "1234 ± 321"),
        (0.012345, 0.0012345, None, "0.0123 ± 0.0012"),
        (0.5, None, 2, "0.50"),
        (0.5, math.inf, 2, "0.50"),
        (0.5, 0.0, 2, "0.50 ± 0.00"),
        (None, None, 2, "-"),
        (math.nan, math.nan, 2, "-"),
    ],
)
def test_an_interval_as_text(mean, half_width, decimals, text):
    """One seed has no interval, and what was not measured is a dash."""
    assert interval(mean, half_width, decimals) == text


def test_differences_show_their_sign():
    """Means alone have a sign; half-widths have none."""
    assert interval(0.2, 0.1, 1, sign="+") == "+0.2 ± 0.1"
    assert interval(-0.2, 0.1, None, sign="+") == "-0.2 ± 0.1"
