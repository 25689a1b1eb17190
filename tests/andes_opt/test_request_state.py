"""What is kept of a request: the reader and the scores, followed from token to token."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from andes_opt import qoe
from andes_opt.engine_loop import SimulatedRequest
from andes_opt.qoe import QoETarget
from andes_opt.request_state import (
    RequestState,
    area_scores,
    deliver_scored,
    read_on,
    records,
    scores,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    Reader = Callable[..., tuple[float, float]]

# Sixteenths of a second: sums of them are exact, so that no example hangs on rounding.
ticks = st.integers(0, 40 * 16).map(lambda k: k / 16)
streams = st.lists(ticks, min_size=1, max_size=30).map(sorted)
targets = st.builds(QoETarget, ticks.map(lambda t: t / 8), st.sampled_from([0.5, 1, 2.5, 4, 8]))


@njit
def follow(requests: Any, ages_s: NDArray[np.float64], now_s: float) -> None:
    for age_s in ages_s:
        deliver_scored(requests[0], age_s)
    read_on(requests[0], now_s)


def followed(times: list[float], target: QoETarget, wait_s: float = 0.0) -> Any:
    """The record of a request whose tokens came at these ages, some time after the last one."""
    requests = records(SimulatedRequest, 1)
    requests["ttft_s"], requests["tds"] = target.ttft_s, target.tds
    requests["output_tokens"] = len(times)
    follow(requests, np.array(times), times[-1] + wait_s)
    return requests


def test_reference_vectors(reference: Path) -> None:
    """Token by token gives the hand-checkable values of every reference vector."""
    vectors = json.loads((reference / "qoe_vectors.json").read_text())
    assert len(vectors) >= 10
    for vector in vectors:
        if times := vector["token_times_s"]:
            request = followed(times, QoETarget(vector["ttft_s"], vector["tds"]))
            expected = [vector[name] for name in ("area", "delay", "window")]
            got = np.concatenate(scores(request))
            assert got.tolist() == pytest.approx(expected, abs=1e-11), vector["name"]


@settings(max_examples=100, deadline=None)
@given(streams, targets, ticks)
def test_token_by_token_equals_arrays(
    read_exactly: Reader, times: list[float], target: QoETarget, wait_s: float
) -> None:
    """Token by token gives the scores of the array, and the reader's state at any time."""
    request = followed(times, target, wait_s)
    expected = [score(times, target) for score in (qoe.area, qoe.delay, qoe.window)]
    assert np.concatenate(scores(request)).tolist() == pytest.approx(expected, abs=1e-10)
    digested, area = read_exactly(times[-1] + wait_s, target.ttft_s, target.tds, times=times)
    assert request["digested"][0] == pytest.approx(digested, abs=1e-9)
    assert request["area"][0] == pytest.approx(area, abs=1e-7)
    assert request["generated_tokens"][0] == len(times)
    assert request["first_token_s"][0] == times[0]
    assert request["last_token_s"][0] == times[-1]


def test_the_area_of_a_reader_without_an_ideal_is_1() -> None:
    """Before anything could be read, nothing is missed."""
    assert area_scores(records(SimulatedRequest, 2)).tolist() == [1.0, 1.0]
    assert area_scores(followed([0.0, 0.5], QoETarget(1.0, 5.0))).tolist() == [1.0]


def test_records_have_the_fields_of_their_class() -> None:
    """A class's own fields follow those of its bases; numbers take 8 bytes, switches 1."""

    class Parked(RequestState):
        since_s: float
        here: bool

    (parked,) = records(Parked, 1)
    names = parked.dtype.names
    assert names[-2:] == ("since_s", "here") and names[0] == "request_id"
    assert parked.dtype["request_id"] == np.int64 and parked.dtype["here"] == np.bool_
    assert parked["since_s"] == 0.0 and not parked["here"]
