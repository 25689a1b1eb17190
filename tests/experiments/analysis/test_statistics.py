"""Statistics that studies, reports and live runs share: tests and their correction."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.analysis.statistics import holm, p_value


@pytest.mark.parametrize(
    ("a", "b", "p"), [([1, 2], [1, 2], 1.0), ([2, 3], [1, 2], 0.0), ([1], [2], math.nan)]
)
def test_p_where_the_t_test_is_silent(a, b, p):
    """Equal pairs, pairs that all differ alike, and a single pair."""
    found = p_value(np.array(a, dtype=float) - np.array(b, dtype=float))
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
