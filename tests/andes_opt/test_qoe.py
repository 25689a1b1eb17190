"""QoE of a token stream: the definitions and the compiled integrals."""

from __future__ import annotations

import json
import math
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andes_opt import qoe
from andes_opt.qoe import QoETarget

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Reader = Callable[..., tuple[float, float]]

SCORES = ("area", "delay", "window")

# Sixteenths of a second: sums of them are exact, so that no example hangs on rounding.
ticks = st.integers(0, 40 * 16).map(lambda k: k / 16)
streams = st.lists(ticks, min_size=1, max_size=30).map(sorted)
targets = st.builds(QoETarget, ticks.map(lambda t: t / 8), st.sampled_from([0.5, 1, 2.5, 4, 8]))


@settings(deadline=None)  # the first call compiles
@given(st.one_of(streams, st.just([])), targets)
def test_all_three_at_once(times: list[float], target: QoETarget) -> None:
    """One call gives what the three functions give, to the last bit."""
    assert qoe.scores(times, target) == tuple(getattr(qoe, name)(times, target) for name in SCORES)


def test_reference_vectors(reference: Path) -> None:
    """The hand-checkable value of every reference vector."""
    vectors = json.loads((reference / "qoe_vectors.json").read_text())
    assert len(vectors) >= 10
    for vector in vectors:
        times = vector["token_times_s"]
        target = QoETarget(vector["ttft_s"], vector["tds"])
        for score in SCORES:
            expected = pytest.approx(vector[score], abs=1e-11)
            assert getattr(qoe, score)(times, target) == expected, (vector["name"], score)


@settings(max_examples=150, deadline=None)
@given(streams, targets)
def test_scores_lie_in_0_1(times: list[float], target: QoETarget) -> None:
    """All three scores of any stream lie in [0, 1], to the last bit."""
    for score in SCORES:
        assert 0.0 <= getattr(qoe, score)(times, target) <= 1.0


@settings(max_examples=150, deadline=None)
@given(streams, targets)
def test_scores_equal_their_definition(
    read_exactly: Reader, times: list[float], target: QoETarget
) -> None:
    """The scores equal the integrals and sums of their definition, done event by event."""
    n, last, s = len(times), times[-1], target.tds
    end = target.ttft_s + n / s

    def ideal(horizon: float) -> float:
        # All n tokens are there from the start and E is what a reader makes of them.
        return read_exactly(horizon, target.ttft_s, s, backlog=n)[1]

    got = read_exactly(last, target.ttft_s, s, times=times)[1]
    expected = got / ideal(last) if ideal(last) > 0 else 1.0
    assert qoe.area(times, target) == pytest.approx(expected, abs=1e-9)

    got = read_exactly(end, target.ttft_s, s, times=times)[1]
    assert qoe.window(times, target) == pytest.approx(got / ideal(end), abs=1e-9)

    due = [target.ttft_s + j / s for j in range(n)]
    starts: list[float] = []
    for time_s in times:
        previous = starts[-1] + 1 / s if starts else 0.0
        starts.append(max(time_s, previous, target.ttft_s))
    late = sum(c - d for c, d in zip(starts, due, strict=True))
    worst = sum(starts[-1] - d for d in due)
    expected = 1 - late / worst if worst > 0 else 1.0
    assert qoe.delay(times, target) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=150, deadline=None)
@given(streams, targets, st.data())
def test_window_never_rises_when_tokens_are_delayed(
    times: list[float], target: QoETarget, data: st.DataObject
) -> None:
    """Delaying any one token, or any tokens by any amounts, never raises window."""
    before = qoe.window(times, target)
    which = data.draw(st.integers(0, len(times) - 1))
    by = data.draw(ticks)
    one = [t + by * (j == which) for j, t in enumerate(times)]
    delays = data.draw(st.lists(ticks, min_size=len(times), max_size=len(times)))
    several = [t + d for t, d in zip(times, delays, strict=True)]
    for delayed in (one, several):
        # Tokens stay in order: what follows a delayed token waits for it.
        assert qoe.window(list(accumulate(delayed, max)), target) <= before + 1e-12


@pytest.mark.parametrize(
    ("times", "name"),
    [
        ([21 + j / 5 for j in range(10)], "ten tokens all 20 s late"),
        ([11 + j / 10 for j in range(100)], "first token 10 s late, then twice the speed"),
    ],
)
def test_withholding_the_last_token_games_area_and_delay(times: list[float], name: str) -> None:
    """Withholding the last token of a late stream raises area and delay, never window."""
    target = QoETarget(1.0, 5.0)
    withheld = [*times[:-1], times[-1] + 100.0]
    assert qoe.area(withheld, target) > qoe.area(times, target) + 0.1, name
    assert qoe.delay(withheld, target) > qoe.delay(times, target) + 0.1, name
    assert qoe.window(withheld, target) <= qoe.window(times, target), name


def test_an_early_first_token_hides_no_stall() -> None:
    """A token before ttft_s earns no credit: streams that differ only before it score alike."""
    target = QoETarget(1.0, 4.0)
    for score in SCORES:
        function = getattr(qoe, score)
        assert function([0.1, 5.0, 5.5], target) == function([1.0, 5.0, 5.5], target)
        assert function([0.1, 5.0, 5.5], target) < 1.0


def test_empty_log_scores_0() -> None:
    """A reader who got nothing scores 0 in all three."""
    target = QoETarget(1.0, 5.0)
    for score in SCORES:
        assert getattr(qoe, score)([], target) == 0.0


@settings(max_examples=100, deadline=None)
@given(ticks, ticks, ticks.map(lambda t: 0.25 + t / 4))
def test_compiled_integrals_equal_the_reader(
    read_exactly: Reader, backlog: float, horizon: float, tds: float
) -> None:
    """digest, token_window_area and the ideal areas agree with the event-by-event reader."""
    digested, integral = read_exactly(horizon, 0.0, tds, backlog=backlog)
    assert qoe.digest(backlog, horizon, tds) == pytest.approx((digested, integral), rel=1e-9)
    one = read_exactly(horizon, 0.0, tds, backlog=1.0)[1]
    assert qoe.token_window_area(horizon, tds) == pytest.approx(one, rel=1e-9, abs=1e-12)
    endless = read_exactly(horizon, 2.0, tds, backlog=1e9)[1]
    assert qoe.ideal_area(horizon, 2.0, tds) == pytest.approx(endless, rel=1e-9, abs=1e-12)
    capped = read_exactly(horizon, 2.0, tds, backlog=7.0)[1]
    assert qoe.ideal_area_capped(horizon, 2.0, tds, 7) == pytest.approx(capped, rel=1e-9, abs=1e-9)


def test_compiled_integrals_are_0_before_they_begin() -> None:
    """No horizon, or one that ends before digestion begins, gives exactly 0."""
    assert qoe.digest(5.0, 0.0, 2.0) == qoe.digest(5.0, -1.0, 2.0) == (0.0, 0.0)
    assert qoe.digest(0.0, 5.0, 2.0) == (0.0, 0.0)
    assert qoe.token_window_area(0.0, 2.0) == qoe.token_window_area(-3.0, 2.0) == 0.0
    assert qoe.ideal_area(1.0, 2.0, 5.0) == qoe.ideal_area_capped(1.0, 2.0, 5.0, 4) == 0.0


@pytest.mark.parametrize(
    ("ttft_s", "tds", "name"),
    [(-1, 5, "ttft_s"), (math.nan, 5, "ttft_s"), (1, 0, "tds"), (1, math.inf, "tds")],
)
def test_target_refuses(ttft_s: float, tds: float, name: str) -> None:
    """A target out of range is refused in a sentence that names the number."""
    with pytest.raises(ValueError, match=f"{name} = .* not understood"):
        QoETarget(ttft_s, tds)


@pytest.mark.parametrize(
    "times", [[[1.0]], 1.0, [-0.1, 1.0], [2.0, 1.0], [1.0, math.nan], [1.0, math.inf]]
)
def test_scores_refuse_bad_times(times: list[float] | float) -> None:
    """Times that are no non-decreasing row of numbers >= 0 are refused by all three."""
    for score in SCORES:
        with pytest.raises(ValueError, match="token_times_s"):
            getattr(qoe, score)(times, QoETarget(1.0, 5.0))


def test_scores_take_any_row_of_numbers() -> None:
    """Lists, integer arrays and strided views of the same times score alike."""
    target = QoETarget(1.0, 2.0)
    integers = np.array([1, 9, 3, 9, 4, 9])[::2]
    for score in SCORES:
        function = getattr(qoe, score)
        assert function([1.0, 3.0, 4.0], target) == function(integers, target)
