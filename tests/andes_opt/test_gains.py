"""The compiled interface of gain models: kinds, tables, models from elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andes_opt.gains import (
    CONSTANT,
    COSTED,
    FORECAST,
    TABLE,
    THRESHOLD,
    FormulaGains,
    compiled,
    fill_gains,
    rate_scalars,
    token_rate,
)
from andes_opt.instance import GainModel, GainTable
from andes_opt.latency import LatencyModel

RATE = rate_scalars(LatencyModel(0.05, 0.01, 1e-4, 0), 1000, 100.0)


def formula(kind: int, n: int = 50, seed: int = 0) -> FormulaGains:
    rng = np.random.default_rng(seed)
    saturation = rng.uniform(0, 1, n)
    forecast = [saturation, rng.uniform(2, 8, n), np.ones(n), rng.uniform(0, 2, n)]
    params = {
        CONSTANT: [rng.normal(size=n)],
        FORECAST: forecast,
        THRESHOLD: [np.ones(n), rng.uniform(0, 20, n)],
        COSTED: [*forecast, rng.uniform(0, 1, n), rng.uniform(0, 0.01, n)],
    }[kind]
    scalars = np.empty(0) if kind == CONSTANT else RATE
    return FormulaGains(kind, np.array(params), scalars, monotone=True, concave_in_rate=False)


class Elsewhere:
    """A gain model that compiled code does not know."""

    monotone = False
    concave_in_rate = False

    def __init__(self, extra_rows: int = 0) -> None:
        self.extra_rows = extra_rows

    def __call__(self, batch_size: int) -> np.ndarray:
        return np.array([batch_size, -batch_size, batch_size**2], dtype=float)

    def table(self, first: int, last: int) -> np.ndarray:
        return np.array([self(b) for b in range(first, last + 1 + self.extra_rows)])


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([CONSTANT, FORECAST, THRESHOLD, COSTED]),
    st.integers(0, 60),
    st.integers(0, 2**16),
)
def test_formulas_equal_their_definition(kind: int, batch: int, seed: int) -> None:
    """Each kind's compiled loop equals its line in the module's table, in plain numpy."""
    model = formula(kind, 23, seed)
    p = model.params
    rate = 1 / (0.05 + 0.01 * batch + 1e-4 * min(1000, batch * 100))
    if kind == CONSTANT:
        expected = p[0]
    elif kind == THRESHOLD:
        expected = np.where(rate >= p[1], p[0], 0.0)
    else:
        d = p[1] - rate
        q = np.maximum(0, d * p[2] - p[3])
        expected = np.maximum(0, p[0] - q * np.divide(q, d, out=np.zeros_like(q), where=q > 0))
        if kind == COSTED:
            expected = expected + p[4] - p[5] * max(0, batch - 1)
    assert np.allclose(model(batch), expected, rtol=1e-13, atol=1e-15)
    assert isinstance(model, GainModel)


@pytest.mark.parametrize("kind", [CONSTANT, FORECAST, THRESHOLD, COSTED])
def test_call_table_and_compiled_agree(kind: int) -> None:
    """The same numbers come from a call, from the table and from fill_gains, to the bit."""
    model = formula(kind)
    table = model.table(3, 30)
    given_kind, params, scalars = compiled(model, 3, 30)
    assert params is model.params
    out = np.empty(50)
    for batch in (3, 17, 30):
        fill_gains(given_kind, params, scalars, batch, out)
        assert (out == model(batch)).all()
        assert (out == table[batch - 3]).all()


def test_a_reader_at_exactly_the_token_rate_gains_in_full() -> None:
    """tds equal to the rate divides by zero nowhere."""
    rate = token_rate(RATE, 7)
    params = np.array([[0.5], [rate], [3.0], [0.0]])
    model = FormulaGains(FORECAST, params, RATE, monotone=True, concave_in_rate=True)
    assert model(7)[0] == 0.5


def test_gain_tables_are_passed_without_a_copy() -> None:
    """A table's own numbers reach compiled code, whatever range is asked for."""
    table = GainTable(np.arange(12.0).reshape(4, 3), first_batch=5)
    kind, params, scalars = compiled(table, 6, 8)
    assert kind == TABLE
    assert params is table.values
    out = np.empty(3)
    for batch in range(5, 9):
        fill_gains(kind, params, scalars, batch, out)
        assert (out == table(batch)).all()


def test_models_from_elsewhere_become_a_table() -> None:
    """A model that compiled code doesn't know is asked once for its table."""
    kind, params, scalars = compiled(Elsewhere(), 2, 6)
    assert kind == TABLE
    out = np.empty(3)
    for batch in range(2, 7):
        fill_gains(kind, params, scalars, batch, out)
        assert (out == Elsewhere()(batch)).all()


def test_compiled_arrays_have_one_type() -> None:
    """params and scalars are C-contiguous, float64 and read-only, so nothing compiles twice."""
    models = [formula(FORECAST), GainTable(np.ones((2, 3))), Elsewhere()]
    for model in models:
        for array in compiled(model, 0, 1)[1:]:
            assert array.dtype == np.float64
            assert array.flags.c_contiguous
            assert not array.flags.writeable


def test_token_rate_is_one_over_latency() -> None:
    """The rate is that of the latency model, with the context bounded by the capacity."""
    latency = LatencyModel(0.05, 0.01, 1e-4, 0)
    for batch in (0, 1, 9, 10, 11, 500):
        expected = latency.iteration_s(batch, min(1000, 100 * batch))
        assert 1 / token_rate(RATE, batch) == pytest.approx(expected, rel=1e-14)


def test_fill_gains_refuses() -> None:
    """A wrong output length, a missing row and an unknown kind raise instead of guessing."""
    table = GainTable(np.ones((2, 3)), first_batch=4)
    kind, params, scalars = compiled(table, 4, 5)
    with pytest.raises(ValueError, match="one entry per request"):
        fill_gains(kind, params, scalars, 4, np.empty(2))
    for batch in (3, 6):
        with pytest.raises(IndexError, match="no row"):
            fill_gains(kind, params, scalars, batch, np.empty(3))
    with pytest.raises(ValueError, match="kind"):
        fill_gains(99, params, scalars, 4, np.empty(3))


def test_constructors_refuse() -> None:
    """Unknown kinds and arrays of the wrong shape; models that return too many rows, or NaN."""
    with pytest.raises(ValueError, match="kind = 9"):
        FormulaGains(9, np.ones((1, 2)), RATE, monotone=True, concave_in_rate=True)
    with pytest.raises(ValueError, match="params of shape"):
        FormulaGains(FORECAST, np.ones((3, 2)), RATE, monotone=True, concave_in_rate=True)
    with pytest.raises(ValueError, match="scalars of shape"):
        FormulaGains(FORECAST, np.ones((4, 2)), RATE[:2], monotone=True, concave_in_rate=True)
    with pytest.raises(ValueError, match="returned 6 rows"):
        compiled(Elsewhere(extra_rows=1), 2, 6)
    broken = Elsewhere()
    broken.table = lambda first, last: np.full((last - first + 1, 3), np.nan)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="finite"):
        compiled(broken, 2, 6)
