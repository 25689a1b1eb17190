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


def test_decoding_beside_a_prompt_worked_by_hand() -> None:
    """An RTX 4090 (kuotunyu/vllm-single-gpu-slo-lab): 64 decodes and 108 prompt tokens."""
    model = LatencyModel(0.01513, 6.09e-5, 0.0, 5.6e-5, -0.0045, 9.32e-5)
    assert model.iteration_s(64, 0) == pytest.approx(0.0190276)
    assert model.iteration_s(64, 0, 108) == pytest.approx(0.0190276 + 0.006048 + 0.0014648)
    assert model.iteration_s(0, 0, 108) < 0.01513 + 0.006048
    assert (model.least_base_s, model.least_per_request_s) == (0.01513 - 0.0045, 6.09e-5)


@given(
    batch=st.integers(0, 10**6),
    prefill=st.integers(0, 10**4),
    mixed_base=st.floats(-0.035, 1.0, exclude_min=True),
    mixed_request=st.floats(-3e-4, 1.0),
)
def test_every_iteration_takes_some_time(
    batch: int, prefill: int, mixed_base: float, mixed_request: float
) -> None:
    """Whatever is allowed for the terms, negative or not, and whatever the batch."""
    model = LatencyModel(0.035, 3e-4, 0.0, 0.0, mixed_base, mixed_request)
    assert model.iteration_s(batch, 0, prefill) > 0
    assert model.iteration_s(batch, 0, prefill) >= (
        model.least_base_s + model.least_per_request_s * batch
    ) * (1 - 1e-12)


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ({"mixed_base_s": -0.035}, r"mixed_base_s = -0.035 not understood: need more than -base_s"),
        ({"mixed_per_request_s": -4e-4}, r"mixed_per_request_s = -0.0004 .* at least -per_request"),
        ({"mixed_base_s": math.nan}, "mixed_base_s = nan not understood: need a number"),
        ({"mixed_per_request_s": math.inf}, "mixed_per_request_s = inf"),
    ],
)
def test_refuses_terms_that_would_turn_time_back(terms: dict[str, float], words: str) -> None:
    """A term that lets an iteration take no time is refused, with the limit."""
    with pytest.raises(ValueError, match=words):
        LatencyModel(0.035, 3e-4, 4e-7, 1.2e-4, **terms)
