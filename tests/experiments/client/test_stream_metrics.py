"""Metrics of one stream, against cases that can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andes_opt.qoe import QoETarget, digestion_start
from experiments.client.stream_metrics import (
    fluidity_index,
    idle_s,
    smooth_benefit_tokens,
    tpot_s,
)

TARGET = QoETarget(ttft_s=1.0, tds=5.0)

streams = st.lists(st.floats(0, 3), max_size=30).map(lambda gaps: np.cumsum(gaps))
targets = st.builds(QoETarget, ttft_s=st.floats(0, 2), tds=st.floats(0.5, 20))


@pytest.mark.parametrize(
    ("token_times_s", "expected"),
    [
        ([], 0.0),
        ([1.0], 1.0),
        ([1.0, 1.2, 1.4, 1.6], 1.0),
        ([0.1, 0.1, 0.1], 1.0),
        # 1 of 2: the first token misses one deadline, the second meets the one after it.
        ([1.1, 1.3], 1 / 2),
        # A stall of 1.1 s after a token on time: 0.9 s too late, five deadlines missed.
        ([1.0, 2.1], 1 / 6),
        # The same stall with 0.6 s of slack: 0.3 s too late, two deadlines missed.
        ([0.4, 1.5], 1 / 3),
        ([0.4, 1.3], 1 / 2),
        # Slack is spent: 0.6 s of it carry the second token, not the third as well.
        ([0.4, 1.2, 1.95], 2 / 5),
    ],
)
def test_fluidity_counts_met_deadlines(token_times_s, expected):
    """Deadlines of 1 s, then 0.2 s: met and missed ones as counted by hand."""
    assert fluidity_index(np.array(token_times_s), TARGET) == pytest.approx(expected)


def test_a_stream_at_exactly_the_readers_pace_is_fluid():
    """Rounding of thousands of gaps misses no deadline."""
    times_s = 1.0 + np.arange(3000) / 4.8
    assert fluidity_index(times_s, QoETarget(1.0, 4.8)) == 1.0


@settings(max_examples=100, deadline=None)
@given(times_s=streams, target=targets)
def test_fluidity_is_a_share_and_1_only_if_the_reader_never_waits(times_s, target):
    """In [0, 1]; all deadlines are met exactly if no token is later than due."""
    value = fluidity_index(times_s, target)
    assert 0.0 <= value <= 1.0
    idle = idle_s(times_s, target)
    if times_s.size and idle > 1e-6:
        assert value < 1.0
    if times_s.size and idle == 0.0:
        assert value == 1.0


@settings(max_examples=100, deadline=None)
@given(times_s=streams, target=targets)
def test_idle_time_is_how_late_the_reader_ends(times_s, target):
    """The largest delay of a token is the delay with which the last one is digested."""
    start_s = -np.inf
    for time_s in times_s:
        start_s = digestion_start(time_s, start_s, target.ttft_s, target.tds)
    n = times_s.size
    late_s = start_s - (target.ttft_s + (n - 1) / target.tds) if n else 0.0
    assert idle_s(times_s, target) == pytest.approx(late_s, abs=1e-9)


def test_smooth_benefit_prices_waiting():
    """Tokens less the price of each idle second; waiting long enough makes a reply a loss."""
    times_s = np.array([1.0, 3.2])  # the second token was due at 1.2 s
    assert smooth_benefit_tokens(times_s, TARGET, 0.0) == 2
    assert smooth_benefit_tokens(times_s, TARGET, 0.5) == pytest.approx(1.0)
    assert smooth_benefit_tokens(times_s, TARGET, 5.0) == pytest.approx(-8.0)


def test_tpot_needs_two_tokens():
    """The mean gap after the first token; one token has none."""
    assert tpot_s(np.array([4.0, 5.0, 5.5])) == pytest.approx(0.75)
    assert np.isnan(tpot_s(np.array([4.0])))
    assert np.isnan(tpot_s(np.array([])))
