"""Bounds on QoE hold for every stream that agrees with what is known, and are not too wide."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andes_opt import qoe
from andes_opt.qoe import QoETarget
from experiments.scoring.bounds import bounds, possible_times
from experiments.scoring.logged import LoggedReply, Unread

TARGETS = st.builds(QoETarget, st.floats(0, 5), st.floats(0.1, 50))
GAPS = st.floats(0, 3)


@st.composite
def chunked(draw):
    """Token times that came in chunks, and the reply that a log would have of them."""
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    times_s = np.cumsum(draw(st.lists(GAPS, min_size=len(counts), max_size=len(counts))))
    reply = LoggedReply(0, "", tokens=sum(counts), pieces_s=times_s.tolist())
    return np.repeat(times_s, counts), reply


@st.composite
def with_ends(draw):
    """Token times of which a log has the first and the last, or the last only."""
    n = draw(st.integers(1, 9))
    times_s = np.cumsum(draw(st.lists(GAPS, min_size=n, max_size=n)))
    if draw(st.booleans()):
        return times_s, LoggedReply(0, "", tokens=n, last_s=float(times_s[-1]))
    ends_s = [times_s[0], times_s[-1]] if n > 1 else [times_s[0]]
    return times_s, LoggedReply(0, "", tokens=n, pieces_s=[float(t) for t in ends_s])


@st.composite
def with_empty_chunks(draw):
    """Token times, and a log that has times of chunks without a token as well."""
    m = draw(st.integers(2, 8))
    pieces_s = np.cumsum(draw(st.lists(GAPS, min_size=m, max_size=m)))
    kept = sorted(draw(st.sets(st.integers(0, m - 1), min_size=1, max_size=m - 1)))
    return pieces_s[kept], LoggedReply(0, "", tokens=len(kept), pieces_s=pieces_s.tolist())


@settings(deadline=None)  # the first call compiles
@given(st.one_of(chunked(), with_ends(), with_empty_chunks()), TARGETS)
def test_the_truth_is_within_the_bounds(stream, target):
    """All three definitions, whatever it was that the log left out."""
    times_s, reply = stream
    found = bounds(possible_times(reply), target)
    for name, (low, high) in found.items():
        truth = getattr(qoe, name)(times_s, target)
        assert 0.0 <= low <= high + 1e-12 <= 1.0 + 1e-9
        assert low - 1e-9 <= truth <= high + 1e-9, name


@settings(deadline=None)  # the first call compiles
@given(chunked(), TARGETS)
def test_what_is_known_needs_no_bounds(stream, target):
    """With the counts of chunks, or a token in each, bounds are the QoE itself."""
    times_s, reply = stream
    _, counts = np.unique(times_s, return_counts=True)
    exact = LoggedReply(
        0, "", tokens=reply.tokens, pieces_s=sorted(set(times_s.tolist())), piece_tokens=counts
    )
    (possible,) = possible_times(exact)
    assert possible.is_exact
    for name, (low, high) in bounds([possible], target).items():
        assert low == high == getattr(qoe, name)(times_s, target)


@settings(deadline=None)  # the first call compiles
@given(with_ends(), TARGETS)
def test_bounds_of_area_and_window_are_reached(stream, target):
    """By streams that agree with the log: no others would be narrower."""
    _, reply = stream
    possible = possible_times(reply)
    found = bounds(possible, target)
    for name in ("area", "window"):
        score = getattr(qoe, name)
        assert found[name].low == min(score(each.latest_s, target) for each in possible)
        assert found[name].high == max(score(each.earliest_s, target) for each in possible)


def test_a_hand_made_case():
    """Three tokens, the first at 1 s, the last at 3 s; read at 1 a second from 1 s on."""
    reply = LoggedReply(0, "", tokens=3, pieces_s=[1.0, 3.0])
    (possible,) = possible_times(reply)
    assert possible.earliest_s.tolist() == [1.0, 1.0, 3.0]
    assert possible.latest_s.tolist() == [1.0, 3.0, 3.0]
    found = bounds([possible], QoETarget(1.0, 1.0))
    # Earliest: nothing is late. Latest: the second token is a second late, and so is the third.
    assert found["window"].high == 1.0
    assert found["window"].low == pytest.approx((2.5 + 0.5) / 4.5)
    assert found["area"] == pytest.approx((1.5 / 2.0, 1.0))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "neither token times nor an end"),
        ({"last_s": 1.0}, "nor a number of tokens"),
        ({"pieces_s": [1.0, 0.5]}, "fall"),
        ({"pieces_s": [-1.0]}, "before its request"),
        ({"pieces_s": [float("nan")]}, "no number of seconds"),
        ({"pieces_s": [1.0], "tokens": 0}, "no token"),
        ({"pieces_s": [1.0], "tokens": 10**9}, "more than"),
        ({"pieces_s": [1.0], "piece_tokens": [1, 2]}, "not as many"),
    ],
)
def test_what_can_not_be_scored_is_said(fields, said):
    """A reply of which too little is known, or nonsense, is none."""
    with pytest.raises(Unread, match=said):
        LoggedReply(0, "", **fields)
