"""
What is certain of a reply's QoE where not all of its token times are known.

A log may have the times of chunks with several tokens, or of the first and the last token only.
Then every stream that agrees with it lies, token by token, between an earliest and a latest one
with the same last token. With the end fixed, ``area`` and ``window`` fall when a token comes later,
so those two streams give their bounds. ``delay`` may rise then, as the end of the reading moves;
its bounds follow from those of every c_j (:mod:`andes_opt.qoe`), and may be wider than need be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from andes_opt import qoe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from andes_opt.qoe import QoETarget
    from experiments.scoring.logged import LoggedReply


class Possible(NamedTuple):
    """Streams of n tokens that a log allows, all between two with the same last token."""

    earliest_s: NDArray[np.float64]
    latest_s: NDArray[np.float64]

    @property
    def is_exact(self) -> bool:
        """Whether there is one only."""
        return bool(np.array_equal(self.earliest_s, self.latest_s))


class Bounds(NamedTuple):
    """Bounds of a QoE."""

    low: float
    high: float


def possible_times(reply: LoggedReply) -> list[Possible]:
    """
    Return what a log allows for the token times of a reply, by when its last token came.

    Each of its pieces is taken to have brought a token, where it has no more pieces than tokens;
    else one at most.

    Parameters
    ----------
    reply
        A reply of a log.

    Returns
    -------
    list[Possible]
        At least one; the last one ends last.
    """
    pieces_s = np.array(reply.pieces_s, dtype=np.float64)
    m = pieces_s.size
    n = m if reply.tokens is None else reply.tokens
    if reply.piece_tokens is not None and sum(reply.piece_tokens) == n:
        times_s = np.repeat(pieces_s, reply.piece_tokens)
        return [Possible(times_s, times_s)]
    if m == 0:
        last_s = np.full(n, 0.0 if reply.last_s is None else reply.last_s)
        return [Possible(np.append(np.zeros(max(0, n - 1)), last_s[:1]), last_s)]
    if m <= n:
        more = n - m
        earliest_s = np.concatenate((np.repeat(pieces_s[:1], more), pieces_s))
        latest_s = np.concatenate((pieces_s, np.repeat(pieces_s[-1:], more)))
        if m == 1:
            earliest_s = latest_s
        return [Possible(earliest_s, latest_s)]
    return [
        Possible(np.append(pieces_s[: n - 1], pieces_s[last]), pieces_s[last - n + 1 : last + 1])
        for last in range(n - 1, m)
    ]


def bounds(possible: Sequence[Possible], target: QoETarget) -> dict[str, Bounds]:
    """
    Return bounds of each definition of QoE, by its name.

    Parameters
    ----------
    possible
        Of a reply, from :func:`possible_times`.
    target
        What its reader expects.
    """
    found = {}
    for name, score in (("area", qoe.area), ("window", qoe.window)):
        low = min(score(each.latest_s, target) for each in possible)
        high = max(score(each.earliest_s, target) for each in possible)
        found[name] = Bounds(low, high)
    delays = [_delay(each, target) for each in possible]
    low, high = min(each.low for each in delays), max(each.high for each in delays)
    return {"area": found["area"], "delay": Bounds(low, high), "window": found["window"]}


def _delay(possible: Possible, target: QoETarget) -> Bounds:
    """
    Bounds of ``delay``: 1 - S/W with S = sum of c_j - due_j and W = n c_n - sum of due_j.

    For an x = c_n between those of the two streams, S is at least what the earliest has, with c_n
    moved to x, and at most what the latest has, with no c_j later than x - (n - j)/tds. The first
    over W is monotone in x; the second is concave and piecewise linear, so that its largest ratio
    to W, which is linear, is at a bend or an end.
    """
    n = possible.latest_s.size
    if n == 0 or possible.is_exact:
        exact = qoe.delay(possible.latest_s, target)
        return Bounds(exact, exact)
    early_s, late_s = _starts(possible.earliest_s, target), _starts(possible.latest_s, target)
    due_sum_s = 0.5 * n * (n - 1) / target.tds

    x = np.array([early_s[-1], late_s[-1]])
    least = early_s.sum() - due_sum_s + (x - early_s[-1])
    high = 1.0 - _ratios(least, n * x - due_sum_s).min()

    bends = late_s + np.arange(n - 1, -1, -1) / target.tds  # non-decreasing
    x = np.clip(bends, early_s[-1], late_s[-1])
    below = np.searchsorted(bends, x, side="right")
    sums = np.concatenate(([0.0], np.cumsum(bends)))
    most = sums[below] + (n - below) * x - 2 * due_sum_s
    low = 1.0 - _ratios(most, n * x - due_sum_s).max()
    return Bounds(float(np.clip(low, 0.0, 1.0)), float(np.clip(high, 0.0, 1.0)))


def _ratios(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0.0)


def _starts(times_s: NDArray[np.float64], target: QoETarget) -> NDArray[np.float64]:
    """c_j of a stream less ``ttft_s``, (n,): where all tokens come at once, 0, 1/tds, 2/tds, ..."""
    paced_s = np.arange(times_s.size) / target.tds
    return np.maximum.accumulate(np.maximum(times_s - target.ttft_s, 0.0) - paced_s) + paced_s
