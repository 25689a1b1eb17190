"""Fits of the latency model to measured iterations."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andes_opt.calibration import COEFFICIENTS, COLUMNS, Iterations, fit_latency, read_iterations
from andes_opt.latency import LatencyModel

MODEL = LatencyModel(0.035, 3e-4, 4e-7, 1.2e-4)


def measured(model: LatencyModel, n: int = 60, seed: int = 0, noise: float = 0.0) -> Iterations:
    """Iterations of a model, independently varied, with relative noise."""
    rng = np.random.default_rng(seed)
    batch = rng.integers(1, 200, n)
    context = batch * rng.integers(50, 900, n)
    prefill = np.where(rng.random(n) < 0.5, 0, rng.integers(1, 2048, n))
    seconds = [model.iteration_s(*row) for row in zip(batch, context, prefill, strict=True)]
    return Iterations(batch, context, prefill, seconds * (1 + noise * rng.standard_normal(n)))


@settings(max_examples=30, deadline=None)
@given(
    base=st.floats(1e-3, 1),
    request=st.floats(0, 1e-2),
    context=st.floats(0, 1e-5),
    prefill=st.floats(0, 1e-3),
    seed=st.integers(0, 100),
    weighting=st.sampled_from(["absolute", "relative"]),
)
def test_a_model_is_found_again(base, request, context, prefill, seed, weighting):
    """Iterations without noise give back the model that made them, zeros included."""
    model = LatencyModel(base, request, context, prefill)
    iterations = measured(model, seed=seed)
    fit = fit_latency(iterations, weighting=weighting)
    np.testing.assert_allclose(fit.fitted_s, iterations.seconds, rtol=1e-8)
    for name in COEFFICIENTS:
        found, true = getattr(fit.latency, name), getattr(model, name)
        assert found == pytest.approx(true, rel=1e-5, abs=1e-9)
    assert not fit.undetermined


def test_noise_shows_in_residuals_and_standard_errors():
    """With 5 % noise the truth lies within a few standard errors, and R2 falls below 1."""
    iterations = measured(MODEL, n=400, seed=3, noise=0.05)
    fit = fit_latency(iterations, weighting="relative")
    summary = fit.summary()
    assert 0.8 < summary["r2"] < 1
    assert 0.03 < summary["relative_error_mean"] < 0.05
    assert summary["residual_max_s"] == np.abs(fit.residual_s).max()
    np.testing.assert_allclose(fit.fitted_s + fit.residual_s, iterations.seconds)
    for name in COEFFICIENTS:
        off = abs(getattr(fit.latency, name) - getattr(MODEL, name))
        assert off < 4 * summary[f"{name}_se"]


def test_a_worked_r2():
    """R2 by hand: of a constant fit nothing of the variance is explained."""
    seconds = np.array([1.0, 2, 1, 2, 1, 2])
    unrelated = Iterations([5, 5, 9, 9, 7, 7], [0] * 6, [0] * 6, seconds)
    fit = fit_latency(unrelated)
    assert fit.latency.base_s == pytest.approx(1.5)
    assert fit.latency.per_request_s == pytest.approx(0, abs=1e-12)
    assert fit.r2 == pytest.approx(0, abs=1e-12)
    assert fit.summary()["residual_rms_s"] == pytest.approx(0.5)


def test_what_never_varied_is_named():
    """Without any prefill its coefficient stays 0 and is called undetermined."""
    whole = measured(MODEL)
    none = np.zeros(whole.count)
    seconds = whole.seconds - MODEL.per_prefill_token_s * whole.prefill_tokens
    fit = fit_latency(Iterations(whole.batch, whole.context_tokens, none, seconds))
    assert fit.undetermined == ("per_prefill_token_s",)
    assert fit.latency.per_prefill_token_s == 0
    assert math.isnan(fit.standard_error["per_prefill_token_s"])
    assert fit.latency.base_s == pytest.approx(MODEL.base_s)


def test_no_coefficient_is_negative():
    """Times that fall with the context give a coefficient of 0, not a negative one."""
    whole = measured(MODEL)
    seconds = 1 + 0.001 * whole.batch - 1e-6 * whole.context_tokens
    fit = fit_latency(Iterations(whole.batch, whole.context_tokens, whole.prefill_tokens, seconds))
    assert fit.latency.per_context_token_s == 0
    assert math.isnan(fit.standard_error["per_context_token_s"])
    assert fit.latency.per_request_s > 0


def test_refuses_what_cannot_be_told_apart():
    """A context in proportion to the batch leaves the two coefficients open."""
    batch = np.arange(1.0, 20)
    iterations = Iterations(batch, 100 * batch, np.zeros(19), 0.03 + 0.001 * batch)
    with pytest.raises(ValueError, match="per_request_s from per_context_token_s"):
        fit_latency(iterations)


def test_refuses_a_fit_without_base_time():
    """Times in proportion to the work alone would make empty iterations free."""
    whole = measured(MODEL)
    seconds = 0.01 * whole.batch - 1e-3
    with pytest.raises(ValueError, match="base_s = 0"):
        fit_latency(Iterations(whole.batch, whole.context_tokens, whole.prefill_tokens, seconds))


@pytest.mark.parametrize(
    ("rows", "weighting", "complaint"),
    [(4, "absolute", "4 iterations"), (9, "squared", "'squared' not understood")],
)
def test_refuses_too_few_rows_and_unknown_weightings(rows, weighting, complaint):
    """The sentence holds the offending value."""
    with pytest.raises(ValueError, match=complaint):
        fit_latency(measured(MODEL, n=rows), weighting=weighting)


@pytest.mark.parametrize(
    ("name", "values", "complaint"),
    [
        ("seconds", [1, 0, 1, 1, 1], "seconds of row 2 is 0.0: need a number > 0"),
        ("batch", [1, 1, -1, 1, 1], "batch of row 3 is -1.0: need a number >= 0"),
        ("context_tokens", [1, math.nan, 1, 1, 1], "context_tokens of row 2 is nan"),
        ("prefill_tokens", [1, 1], "prefill_tokens has shape"),
    ],
)
def test_iterations_refuse_bad_values(name, values, complaint):
    """Negative, missing and unpaired values are refused by name."""
    columns = {column: [1] * 5 for column in COLUMNS} | {name: values}
    with pytest.raises(ValueError, match=complaint):
        Iterations(**columns)


def test_files_are_read_by_column_name(tmp_path):
    """Columns come in any order, others are ignored, a byte-order mark does no harm."""
    path = tmp_path / "iterations.csv"
    text = "seconds,note,prefill_tokens,batch,context_tokens\n0.05,warm,0,8,900\n0.2,,512,9,1000\n"
    path.write_text(text, encoding="utf-8-sig")
    iterations = read_iterations(path)
    assert iterations.count == 2
    assert iterations.seconds.tolist() == [0.05, 0.2]
    assert iterations.prefill_tokens.tolist() == [0, 512]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("batch,seconds\n1,2\n", "lacks column context_tokens"),
        ("", "is empty; need a header with batch"),
        ("batch,context_tokens,prefill_tokens,seconds\n1,2,0,1\n1,2,x,1\n", "line 3: prefill.*'x'"),
        ("batch,context_tokens,prefill_tokens,seconds\n1,2,0,0\n", "line 2: seconds = '0'"),
        (
            "batch,context_tokens,prefill_tokens,seconds\n1,2\n",
            "line 2, column prefill_tokens: the row has 2 fields",
        ),
    ],
)
def test_bad_files_are_told_by_line_and_column(text, complaint, tmp_path):
    """The error names the file and where in it."""
    path = tmp_path / "iterations.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=complaint) as error:
        read_iterations(path)
    assert "iterations.csv" in str(error.value)


@settings(max_examples=30, deadline=None)
@given(
    mixed_base=st.floats(-0.03, 0.1),
    mixed_request=st.floats(-2.9e-4, 1e-3),
    seed=st.integers(0, 100),
    weighting=st.sampled_from(["absolute", "relative"]),
)
def test_what_decoding_beside_a_prompt_takes_is_found_again(
    mixed_base, mixed_request, seed, weighting
):
    """The terms of iterations with prefill come back, negative ones too, and nothing else moves."""
    model = replace(MODEL, mixed_base_s=mixed_base, mixed_per_request_s=mixed_request)
    iterations = measured(model, seed=seed)
    fit = fit_latency(iterations, weighting=weighting)
    for name in COEFFICIENTS:
        found = getattr(fit.latency, name)
        assert found == pytest.approx(getattr(model, name), rel=1e-5, abs=1e-9)
    assert not fit.undetermined


def test_the_terms_of_noisy_measurements_have_standard_errors():
    """With 3 % noise the truth lies within a few of them; the plain form fits far worse."""
    model = LatencyModel(0.01513, 6.09e-5, 1e-8, 5.6e-5, -0.0045, 9.32e-5)
    iterations = measured(model, n=600, seed=5, noise=0.03)
    fit = fit_latency(iterations, weighting="relative")
    summary = fit.summary()
    for name in ("mixed_base_s", "mixed_per_request_s", "base_s", "per_prefill_token_s"):
        assert abs(summary[name] - getattr(model, name)) < 4 * summary[f"{name}_se"]
    assert summary["mixed_base_s"] < 0 < summary["mixed_per_request_s"]
    plain = fit_latency(iterations, weighting="relative", mixed=False)
    assert plain.latency.mixed_base_s == plain.latency.mixed_per_request_s == 0
    assert plain.summary()["relative_error_mean"] > 1.2 * summary["relative_error_mean"]
    assert not plain.undetermined


@pytest.mark.parametrize("kept", ["all with prefill", "three without", "one batch with prefill"])
def test_terms_that_measurements_cannot_tell_are_left_at_0(kept):
    """With iterations of one kind, or prefill beside one batch only, they are undetermined."""
    model = replace(MODEL, mixed_base_s=0.01, mixed_per_request_s=1e-4)
    whole = measured(model)
    prefill = whole.prefill_tokens > 0
    keep = np.ones(whole.count, dtype=bool)
    if kept == "all with prefill":
        keep = prefill
    elif kept == "three without":
        keep = prefill | (np.cumsum(~prefill) <= 3)
    columns = {name: getattr(whole, name)[keep] for name in COLUMNS}
    if kept == "one batch with prefill":
        columns["batch"] = np.where(prefill, 32, whole.batch)
        rows = zip(columns["batch"], whole.context_tokens, whole.prefill_tokens, strict=True)
        columns["seconds"] = np.array([model.iteration_s(*row) for row in rows])
    fit = fit_latency(Iterations(**columns))
    assert fit.undetermined == ("mixed_base_s", "mixed_per_request_s")
    assert fit.latency.mixed_base_s == fit.latency.mixed_per_request_s == 0


def test_a_lone_prompt_as_fast_as_nothing_keeps_the_plain_form():
    """A term that would let an iteration take no time is not fitted."""
    whole = measured(MODEL)
    seconds = np.where(whole.prefill_tokens > 0, 1e-4 * whole.batch, whole.seconds)
    fit = fit_latency(Iterations(whole.batch, whole.context_tokens, whole.prefill_tokens, seconds))
    assert fit.latency.iteration_s(0, 0, 1) > 0
