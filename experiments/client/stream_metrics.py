"""
Metrics of one token stream beside QoE, from the same log of token times.

Each takes the times (n,) at which tokens came, in seconds since the request's arrival and
non-decreasing, and the reader's target. Deadlines are the reader's own: ``ttft_s`` for the first
token and 1/``tds`` for each further one, where the sources have one for everybody.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from andes_opt.qoe import QoETarget

#: Sums of 1/tds round; a token that misses its deadline by less was on time.
ROUNDING_S = 1e-9


def tpot_s(token_times_s: NDArray[np.float64]) -> float:
    """Time per output token: mean gap after the first token, s; NaN for fewer than two."""
    n = token_times_s.size
    return float(token_times_s[-1] - token_times_s[0]) / (n - 1) if n > 1 else math.nan


def idle_s(token_times_s: NDArray[np.float64], target: QoETarget) -> float:
    """
    How long the reader sat waiting in all, s >= 0.

    The user idle latency of arXiv 2410.14257: the most that a token came after it was due, with
    token j due at ``ttft_s + (j - 1)/tds``. (A reader who waits is late from then on, so the
    largest delay is the sum of all waits.) 0 for an empty stream.
    """
    n = token_times_s.size
    if n == 0:
        return 0.0
    due_s = target.ttft_s + np.arange(n) / target.tds
    return max(0.0, float((token_times_s - due_s).max()))


def smooth_benefit_tokens(
    token_times_s: NDArray[np.float64], target: QoETarget, idle_cost: float
) -> float:
    """
    What a reply was worth to its reader, in tokens: n less a price for having waited.

    The benefit n - alpha f(l) of smooth goodput (arXiv 2410.14257) with the idle latency l of
    :func:`idle_s` and the identity for f. It may be negative.

    Parameters
    ----------
    token_times_s, target
        As above.
    idle_cost
        alpha: tokens that a second of waiting costs, >= 0.
    """
    return token_times_s.size - idle_cost * idle_s(token_times_s, target)


def fluidity_index(token_times_s: NDArray[np.float64], target: QoETarget) -> float:
    """
    Share of deadlines that the stream met, in [0, 1] (Etalon, arXiv 2407.07000, section 4).

    Each token has a deadline after the one before it; a token that comes early leaves its slack
    to those that follow. After a token that comes late, deadlines start anew from it, and a stall
    counts as many misses as tokens were due in it. 0 for an empty stream.
    """
    if token_times_s.size == 0:
        return 0.0
    pace_s = 1.0 / target.tds
    deadline_s, slack_s, previous_s = target.ttft_s, 0.0, 0.0
    met = missed = 0
    for time_s in token_times_s.tolist():
        late_s = (time_s - previous_s) - (deadline_s + slack_s)
        if late_s <= ROUNDING_S:
            met += 1
            slack_s = -late_s
        else:
            missed += 1 + math.floor(late_s / pace_s)
            slack_s = 0.0
        previous_s, deadline_s = time_s, pace_s
    return met / (met + missed)
