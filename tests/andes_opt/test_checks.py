"""Checks of constructor arguments."""

from __future__ import annotations

import math

import numpy as np
import pytest

from andes_opt import checks


def test_good_values_pass() -> None:
    """Python's and numpy's numbers are both numbers."""
    checks.positive("x", 1)
    checks.positive("x", np.float64(0.1))
    checks.non_negative("x", 0)
    checks.share("x", 1)
    checks.share("x", np.float32(0.5))
    checks.whole("x", np.int64(3), 3)


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "fast", None])
def test_positive_refuses(value: object) -> None:
    """What is no finite number > 0 is refused by name and value."""
    with pytest.raises(ValueError, match=r"^rate = .* not understood: need a number > 0\.$"):
        checks.positive("rate", value)


@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf, "soon", None])
def test_non_negative_refuses(value: object) -> None:
    """What is no finite number >= 0 is refused by name and value."""
    with pytest.raises(ValueError, match=r"^ttft_s = .* not understood: need a number >= 0\.$"):
        checks.non_negative("ttft_s", value)


@pytest.mark.parametrize("value", [0, 1.01, math.nan, math.inf, "half", None])
def test_share_refuses(value: object) -> None:
    """What is no number in (0, 1] is refused by name and value."""
    with pytest.raises(ValueError, match=r"^kv_pressure = .* not understood: need \(0, 1\]\.$"):
        checks.share("kv_pressure", value)


@pytest.mark.parametrize("value", [0, 1.5, 2.0, "many", None])
def test_whole_refuses(value: object) -> None:
    """What is no integer from the least on is refused by name and value."""
    with pytest.raises(ValueError, match=r"^requests = .*: need a whole number >= 1\.$"):
        checks.whole("requests", value, 1)


@pytest.mark.parametrize("value", [1, -0.1, math.nan, math.inf, "0.5", None])
def test_fraction_refuses(value: object) -> None:
    """A fraction is a number from 0 to below 1; the sentence says so."""
    checks.fraction("x", 0)
    checks.fraction("x", np.float32(0.5))
    with pytest.raises(ValueError, match=r"^reserve = .* not understood: need \[0, 1\)\.$"):
        checks.fraction("reserve", value)
