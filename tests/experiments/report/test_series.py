"""What the report shows over time: checked against the QoE that the curves must add up to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andes_opt import qoe
from andes_opt.qoe import QoETarget
from experiments.report.reading import read
from experiments.report.series import (
    TIMELINE,
    TOKENS,
    digested_curve,
    occupancy,
    reading,
    telling_request,
    thinned,
    together,
)
from tests.experiments.report.runs_by_hand import write_run


def integral(curve, end_s):
    """The area below a curve up to a time."""
    x = np.append(curve.x[curve.x < end_s], end_s)
    return float(np.trapezoid(np.interp(x, curve.x, curve.y), x))


@given(
    st.lists(st.floats(0, 3), min_size=1, max_size=15), st.floats(0.0, 2.0), st.floats(0.5, 20.0)
)
@settings(max_examples=60, deadline=None)
def test_the_digested_curve_is_that_of_the_qoe(gaps, ttft_s, tds):
    """Its area up to R over the ideal one is the `window` QoE of the same tokens."""
    times = np.cumsum(gaps)
    end_s = ttft_s + times.size / tds
    ideal = times.size**2 / tds / 2
    share = integral(digested_curve(times, ttft_s, tds), end_s) / ideal
    assert share == pytest.approx(qoe.window(times, QoETarget(ttft_s, tds)), abs=1e-9)


@pytest.fixture
def cells(tmp_path):
    """Two policies, one much slower, with tokens and timelines."""
    write_run(tmp_path / "a", 0.3, detail=True)
    write_run(tmp_path / "b", 4.0, detail=True, policy="late")
    write_run(tmp_path / "c", 0.3, rate=2.0)
    return read([tmp_path]).runs


def test_runs_with_a_file_come_together(cells):
    """Runs of one setting and rate are compared, and those without the file left out."""
    (group,) = together(cells, TOKENS)
    assert sorted(cell.arm for cell in group) == ["fcfs", "late"]


def test_the_request_that_differs_most_is_shown(cells):
    """The spread of its window QoE over arms is the largest; it may be named instead."""
    (group,) = together(cells, TOKENS)
    number = telling_request(group)
    scores = {cell.arm: cell.rows["qoe_window"].to_numpy() for cell in group}
    spread = np.abs(scores["fcfs"] - scores["late"])
    assert spread[number] == pytest.approx(spread.max(), abs=1e-3)

    found = reading(group)
    assert found.request == number
    assert set(found.delivered) == {"fcfs", "late"}
    assert found.window["late"] == pytest.approx(scores["late"][number])
    n = found.delivered["fcfs"].y[-1]
    assert n == found.digested["fcfs"].y[-1] == found.ideal.y[-1]
    assert reading(group, request=3).request == 3
    assert reading(group, request=999) is None


def without_tokens(cell, requests):
    """The cell as if some of its requests had been rejected."""
    turned_away = pl.col("request").is_in(requests)
    rows = cell.rows.with_columns(
        (pl.col("rejected") | turned_away).alias("rejected"),
        pl.when(~turned_away).then(pl.col("first_token_s")).alias("first_token_s"),
        pl.when(turned_away).then(0.0).otherwise(pl.col("qoe_window")).alias("qoe_window"),
    )
    return replace(cell, rows=rows)


def test_a_rejected_request_is_not_chosen(cells):
    """A regression test: one that an arm turned away differs most, but has no timeline there."""
    (group,) = together(cells, TOKENS)
    fcfs, late = sorted(group, key=lambda cell: cell.arm)
    chosen = telling_request(group)
    with_rejected = [fcfs, without_tokens(late, [chosen])]
    found = reading(with_rejected)
    assert found.request == telling_request(with_rejected) != chosen
    assert set(found.delivered) == {"fcfs", "late"}
    nobody = [without_tokens(cell, list(range(20))) for cell in group]
    assert telling_request(nobody) is None
    assert reading(nobody) is None


def test_delivered_is_never_below_digested_nor_that_above_ideal(cells):
    """A <= D and A <= E, at every token."""
    (group,) = together(cells, TOKENS)
    found = reading(group)
    for arm in found.delivered:
        digested, delivered = found.digested[arm], found.delivered[arm]
        # Just after each step of D, where interpolation finds its upper end.
        at = np.unique(delivered.x) + 1e-9
        eaten = np.interp(at, digested.x, digested.y)
        steps = np.searchsorted(np.unique(delivered.x[1:]), at, side="right")
        assert (eaten <= steps + 1e-6).all()
        assert (eaten <= np.interp(at, found.ideal.x, found.ideal.y) + 1e-6).all()


def test_occupancy_keeps_means_and_names_the_capacity(cells):
    """Averaging over spans keeps the mean; the capacity comes from the configuration."""
    (group,) = together(cells, TIMELINE)
    found = occupancy(group)
    assert found.capacity_tokens == 1000
    whole = pl.read_parquet(group[0].folder / TIMELINE)
    assert found.batch[group[0].arm].x.size <= 500
    assert found.batch[group[0].arm].y.mean() == pytest.approx(whole["decoding"].mean(), rel=0.02)


def test_short_timelines_stay_as_they_are():
    """Nothing is averaged unless there is too much of it."""
    timeline = pl.DataFrame({"time_s": [0.1, 0.2], "decoding": [1.0, 2.0]})
    assert thinned(timeline, 2).equals(timeline)
