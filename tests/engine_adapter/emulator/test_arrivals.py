"""When requests of an emulated run arrive: at their times, after a reply, or in a closed loop."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from andes_opt.workload import Requests
from engine_adapter.emulator.arrivals import Arrivals


def requests(
    arrival_s: list[float], parents: list[int] | None = None, shared: int = 12
) -> Requests:
    """Prompts of 10 or 20 tokens, replies of 5; children begin with more than a prompt."""
    n = len(arrival_s)
    parents = parents or [-1] * n
    tokens = [shared if parent >= 0 else 0 for parent in parents]
    prompt = [10] * n if shared <= 10 else [10 + 10 * (parent >= 0) for parent in parents]
    return Requests(
        np.array(arrival_s), np.array(prompt), np.full(n, 5), np.ones(n), np.ones(n),
        np.array(parents), np.array(tokens),
    )  # fmt: skip


def play(arrivals: Arrivals, service_s: float) -> list[tuple[float, int]]:
    """Serve each request for so long; moments of arrival and numbers, in order."""
    log: list[tuple[float, int]] = []
    leaving: list[tuple[float, int]] = []
    while True:
        arrival_s = arrivals.next_s
        leave_s = min(leaving)[0] if leaving else math.inf
        if arrival_s == leave_s == math.inf:
            return log
        if arrival_s <= leave_s:
            number = arrivals.take()
            log.append((arrival_s, number))
            leaving.append((arrival_s + service_s, number))
        else:
            time_s, number = min(leaving)
            leaving.remove((time_s, number))
            arrivals.left(number, time_s)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=20), st.data())
def test_everybody_arrives_once_and_time_never_runs_back(
    times: list[float], data: st.DataObject
) -> None:
    """Open or closed loop, with any conversations among them."""
    n = len(times)
    parents = [data.draw(st.integers(-1, i - 1)) for i in range(n)]
    # No parent may begin with a reply whose prompt is longer than its own.
    parents = [-1 if p >= 0 and parents[p] >= 0 else p for p in parents]
    concurrency = data.draw(st.sampled_from([None, 1, 3]))
    log = play(Arrivals(requests(sorted(times), parents), concurrency), service_s=2.5)
    assert sorted(number for _, number in log) == list(range(n))
    moments = [time_s for time_s, _ in log]
    assert moments == sorted(moments)
    at = {number: time_s for time_s, number in log}
    for child, parent in enumerate(parents):
        if parent >= 0:
            assert at[child] >= at[parent] + 2.5


def test_arrivals_come_at_their_times() -> None:
    """Without conversations a server that is late changes nothing."""
    log = play(Arrivals(requests([0.0, 1.0, 1.0, 7.0])), service_s=100.0)
    assert log == [(0.0, 0), (1.0, 1), (1.0, 2), (7.0, 3)]


def test_a_turn_waits_for_the_reply_that_it_begins_with() -> None:
    """A prompt with a late reply in it can't come earlier; one with a prompt alone can."""
    assert play(Arrivals(requests([0.0, 1.0], [-1, 0])), 5.0) == [(0.0, 0), (5.0, 1)]
    assert play(Arrivals(requests([0.0, 1.0], [-1, 0], shared=8)), 5.0) == [(0.0, 0), (1.0, 1)]


def test_a_closed_loop_keeps_so_many_under_way() -> None:
    """Two at once; each next one arrives when one leaves, whatever its time was."""
    log = play(Arrivals(requests([0.0, 50.0, 60.0, 70.0, 80.0]), concurrency=2), service_s=3.0)
    assert log == [(0.0, 0), (0.0, 1), (3.0, 2), (3.0, 3), (6.0, 4)]
