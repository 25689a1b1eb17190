"""Iteration latency: the linear model and what it refuses."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from andes_opt.latency import LatencyModel

COEFFICIENTS = ("base_s", "per_request_s", "per_context_token_s", "per_prefill_token_s")
MODEL = LatencyModel(0.035, 3e-4, 4e-7, 1.2e-4)


def test_iteration_worked_by_hand() -> None:
    """100 requests over 30,000 tokens and 500 prompt tokens: 35 + 30 + 12 + 60 ms."""
    assert MODEL.iteration_s(100, 30_000, 500) == pytest.approx(0.137)
    assert MODEL.iteration_s(100, 30_000) == pytest.approx(0.077)
    assert MODEL.iteration_s(0, 0) == 0.035


@given(st.integers(0, 1000), st.integers(0, 10**6), st.integers(0, 10**4), st.integers(0, 1000))
def test_more_work_never_takes_less_time(batch: int, context: int, prefill: int, more: int) -> None:
    """No argument shortens an iteration when it grows."""
    now = MODEL.iteration_s(batch, context, prefill)
    assert now >= MODEL.base_s
    assert MODEL.iteration_s(batch + more, context, prefill) >= now
    assert MODEL.iteration_s(batch, context + more, prefill) >= now
    assert MODEL.iteration_s(batch, context, prefill + more) >= now


@pytest.mark.parametrize("name", COEFFICIENTS)
@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf])
def test_refuses_coefficients_out_of_range(name: str, value: float) -> None:
    """A negative, infinite or missing coefficient is refused by name."""
    values = dict.fromkeys(COEFFICIENTS, 0.01) | {name: value}
    with pytest.raises(ValueError, match=f"^{name} = .* not understood"):
        LatencyModel(**values)


def test_refuses_iterations_that_take_no_time() -> None:
    """With a base of 0 an empty iteration would not advance the clock."""
    with pytest.raises(ValueError, match="base_s = 0 not understood"):
        LatencyModel(0, 1e-4, 0, 0)
