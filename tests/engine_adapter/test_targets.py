"""Targets that come with requests."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from andes_opt.qoe import QoETarget
from engine_adapter.targets import BOUNDS, read_target

DEFAULT = QoETarget(ttft_s=1.0, tds=4.8)


@pytest.mark.parametrize("extra_args", [None, {}, {"something": "else"}])
def test_default(extra_args: dict[str, Any] | None) -> None:
    """A request that says nothing gets the default, without complaint."""
    assert read_target(extra_args, DEFAULT) == (DEFAULT, None)


def test_given() -> None:
    """A request may say both or one of the two."""
    assert read_target({"ttft_s": 0.5, "tds": 7}, DEFAULT) == (QoETarget(0.5, 7.0), None)
    assert read_target({"ttft_s": 0}, DEFAULT) == (QoETarget(0.0, 4.8), None)
    assert read_target({"tds": Fraction(7, 2)}, DEFAULT) == (QoETarget(1.0, 3.5), None)


@pytest.mark.parametrize(
    "absurd",
    [-1, -0.1, math.inf, -math.inf, math.nan, "fast", "1.0", None, True, [1.0], {}, 1e300, 10**400],
)
def test_absurd(absurd: object) -> None:
    """Negative, infinite, NaN, no number or nobody's wish: the default instead, and a sentence."""
    for name in ("ttft_s", "tds"):
        target, complaint = read_target({name: absurd}, DEFAULT)
        assert target == DEFAULT
        assert complaint is not None and complaint.startswith(f"{name} = ")


def test_zero_speed() -> None:
    """Nobody reads at speed 0, and the good half of a target is kept."""
    target, complaint = read_target({"ttft_s": 2.0, "tds": 0.0}, DEFAULT)
    assert target == QoETarget(2.0, 4.8)
    assert complaint is not None


@given(
    st.one_of(st.floats(), st.integers(), st.text(), st.none(), st.binary()),
    st.one_of(st.floats(), st.integers(), st.text(), st.none()),
)
def test_always_a_target(ttft_s: Any, tds: Any) -> None:
    """Whatever a client sends, the target is within bounds."""
    target, _ = read_target({"ttft_s": ttft_s, "tds": tds}, DEFAULT)
    for name, (_, least, most) in BOUNDS.items():
        assert least <= getattr(target, name) <= most
