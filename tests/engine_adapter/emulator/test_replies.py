"""Replies of an emulated run: token by token as vLLM gives them, scored as everywhere."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from andes_opt import qoe
from andes_opt.workload import Requests
from engine_adapter.emulator.replies import Replies


def out(key: str, tokens: int = 1, last: bool = False) -> SimpleNamespace:
    """An output of vLLM's."""
    return SimpleNamespace(
        request_id=key, new_token_ids=[1] * tokens, finish_reason="length" if last else None
    )


def test_replies_are_scored_at_their_end() -> None:
    """Times count from the arrival; a reply that breaks off is scored as far as it came."""
    n = np.ones(3)
    requests = Requests(np.array([0.0, 1.0, 2.0]), 5 * n.astype(int), 3 * n.astype(int), n, 2 * n)
    replies = Replies(requests, record_tokens=True)
    for number in (0, 1):
        request = SimpleNamespace(num_preemptions=number)
        replies.begin(number, str(number), request, float(number))
    assert replies.deliver([out("0"), out("1")], 2.5) == []
    replies.reject(2, 2.0)
    # The rejected one was the last to arrive, before those tokens came.
    assert replies.tokens_by_last_arrival == 0
    assert replies.deliver([out("0", tokens=2, last=True)], 4.0) == [0]
    assert replies.end("1") == 1

    assert replies.finished == 3 and not replies.active
    assert replies.token_times_s is not None
    np.testing.assert_array_equal(replies.token_times_s[0], [2.5, 4.0, 4.0])
    target = qoe.QoETarget(1.0, 2.0)
    scores = [score([2.5, 4.0, 4.0], target) for score in (qoe.area, qoe.delay, qoe.window)]
    assert replies.qoe[0].tolist() == pytest.approx(scores)
    assert replies.first_token_s[:2].tolist() == [2.5, 1.5]
    assert replies.completion_s[0] == 4.0 and np.isnan(replies.completion_s[1:]).all()
    assert replies.tokens.tolist() == [3, 1, 3]
    assert replies.preemptions.tolist() == [0, 1, 0]
    assert replies.rejected.tolist() == [False, False, True]
    assert replies.deliver([out("gone")], 5.0) == []
