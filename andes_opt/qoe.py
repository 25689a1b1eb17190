"""
Quality of experience of a token stream, from the times at which its tokens arrived.

A reader expects the first token ``ttft_s`` after the request and then ``tds`` tokens/s.
What arrives is *digested* as a fluid: no earlier than ``ttft_s``, no faster than ``tds``,
never more than was delivered. Token j of n, delivered at d_j, is digested over
[c_j, c_j + 1/tds] with ``c_j = max(d_j, c_{j-1} + 1/tds, ttft_s)``, so that the digested
tokens are ``A(t) = sum_j clip(tds (t - c_j), 0, 1)`` and every integral of A is a sum over
tokens. The ideal reader has digested ``E(t) = min(n, max(0, tds (t - ttft_s)))``.

Three scores of one stream, each in [0, 1] (docs/model.md, Quality of experience):

* :func:`area`: Andes, arXiv 2404.16283v1, section 3: areas up to the last token;
* :func:`delay`: arXiv 2404.16283v2, section 3: delay of the tokens;
* :func:`window`: areas up to the moment at which the ideal reader finishes.

The first two can be gamed: withholding the last token of a late stream raises them.
``window`` never rises when a token is delayed, but a reader who is not started by the
end of the window scores 0 for ever. Report all three.

The compiled scalar functions at the top are the only place where these integrals are
written down; the simulator and the forecasts call them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from andes_opt.checks import non_negative, positive
from andes_opt.compilation import jit

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


@jit
def digest(backlog: float, horizon_s: float, tds: float) -> tuple[float, float]:
    """
    What a reader digests from a backlog if nothing more arrives.

    Parameters
    ----------
    backlog
        Tokens delivered but not digested.
    horizon_s
        Seconds of digestion; nothing happens if <= 0.
    tds
        Digestion speed, tokens/s.

    Returns
    -------
    tuple[float, float]
        Tokens digested in the horizon, and the integral of these extra tokens over it
        (token-seconds): what the forecast of a waiting request adds to A * dt_s
        (docs/model.md, Forecasts).
    """
    if backlog <= 0.0 or horizon_s <= 0.0:
        return 0.0, 0.0
    busy_s = backlog / tds
    if busy_s >= horizon_s:
        return tds * horizon_s, 0.5 * tds * horizon_s * horizon_s
    return backlog, 0.5 * backlog * busy_s + backlog * (horizon_s - busy_s)


@jit
def advance(
    from_s: float,
    to_s: float,
    delivered: float,
    digested: float,
    area: float,
    ttft_s: float,
    tds: float,
) -> tuple[float, float]:
    """
    Digested tokens and their area at ``to_s``, if nothing arrives after ``from_s``.

    Parameters
    ----------
    from_s, to_s
        Seconds since the request's arrival, from_s <= to_s.
    delivered
        Tokens delivered by ``from_s``.
    digested, area
        Tokens digested at ``from_s`` and the integral of that number over [0, from_s].
    ttft_s, tds
        The reader's target.

    Returns
    -------
    tuple[float, float]
        ``digested`` and ``area`` at ``to_s``.
    """
    start_s = max(from_s, ttft_s)
    if to_s <= start_s:
        # Before ttft_s nothing is digested, so there is no area either.
        return digested, area
    tokens, integral = digest(delivered - digested, to_s - start_s, tds)
    return digested + tokens, area + digested * (to_s - start_s) + integral


@jit
def token_window_area(horizon_s: float, tds: float) -> float:
    """
    Integral of one token's digestion, which starts ``horizon_s`` before the end.

    Parameters
    ----------
    horizon_s
        Seconds from the start c_j of its digestion to the end of the integral.
    tds
        Digestion speed, tokens/s.

    Returns
    -------
    float
        Token-seconds; 0 if the horizon is <= 0.
    """
    if horizon_s <= 0.0:
        return 0.0
    if horizon_s * tds < 1.0:
        return 0.5 * tds * horizon_s * horizon_s
    return horizon_s - 0.5 / tds


@jit
def ideal_area(horizon_s: float, ttft_s: float, tds: float) -> float:
    """
    Integral over [0, horizon_s] of max(0, tds (t - ttft_s)), in token-seconds.

    The length of the reply is not used: a forecast does not know it.
    """
    late_s = horizon_s - ttft_s
    if late_s <= 0.0:
        return 0.0
    return 0.5 * tds * late_s * late_s


@jit
def ideal_area_capped(horizon_s: float, ttft_s: float, tds: float, n: float) -> float:
    """Integral over [0, horizon_s] of E(t) = min(n, max(0, tds (t - ttft_s)))."""
    return digest(float(n), horizon_s - ttft_s, tds)[1]


@jit
def digestion_start(time_s: float, previous_s: float, ttft_s: float, tds: float) -> float:
    """
    The c_j of a token delivered at ``time_s``.

    Parameters
    ----------
    time_s
        Delivery d_j, seconds since arrival.
    previous_s
        c_{j-1}; -inf for the first token.
    ttft_s, tds
        The reader's target.
    """
    return max(time_s, previous_s + 1.0 / tds, ttft_s)


@dataclass(frozen=True, slots=True)
class QoETarget:
    """
    What one reader expects.

    Parameters
    ----------
    ttft_s
        Seconds from the request to its first token, >= 0.
    tds
        Tokens/s from then on (token delivery speed), > 0.

    Raises
    ------
    ValueError
        If a number is out of range or not finite.
    """

    ttft_s: float
    tds: float

    def __post_init__(self) -> None:
        non_negative("ttft_s", self.ttft_s)
        positive("tds", self.tds)

    def window_s(self, output_tokens: int) -> float:
        """Seconds from arrival until an ideal reader has read ``output_tokens``."""
        return self.ttft_s + output_tokens / self.tds


def area(token_times_s: ArrayLike, target: QoETarget) -> float:
    """
    Digested over ideal area up to the last token (Andes v1, section 3).

    Parameters
    ----------
    token_times_s
        Delivery times in seconds since the request's arrival, (n,), non-decreasing.
    target
        The reader's target.

    Returns
    -------
    float
        In [0, 1]; 0 for an empty log, 1 if no reader would have read anything yet.

    Raises
    ------
    ValueError
        If the times are not (n,), finite, >= 0 and non-decreasing.
    """
    times = _checked(token_times_s)
    if not times.size:
        return 0.0
    last_s = float(times[-1])
    read, _, _ = _follow(times, last_s, target.ttft_s, target.tds)
    return _ratio(read, ideal_area_capped(last_s, target.ttft_s, target.tds, times.size))


def delay(token_times_s: ArrayLike, target: QoETarget) -> float:
    """
    One minus delay of the tokens over the worst such delay (Andes v2, section 3).

    Token j is due at ``ttft_s + (j - 1)/tds`` and digested from c_j. The delay is
    ``sum_j c_j - due_j``; the worst stream with the same end delivers all tokens at
    c_n: ``sum_j c_n - due_j``.

    Parameters
    ----------
    token_times_s
        Delivery times in seconds since the request's arrival, (n,), non-decreasing.
    target
        The reader's target.

    Returns
    -------
    float
        In [0, 1]; 0 for an empty log, 1 if the worst delay is 0.

    Raises
    ------
    ValueError
        If the times are not (n,), finite, >= 0 and non-decreasing.
    """
    times = _checked(token_times_s)
    n = times.size
    if not n:
        return 0.0
    _, last_s, sum_s = _follow(times, 0.0, target.ttft_s, target.tds)
    return _one_less_delay(last_s, sum_s, n, target.tds)


def window(token_times_s: ArrayLike, target: QoETarget) -> float:
    """
    Digested over ideal area up to R = ttft_s + n/tds, when an ideal reader finishes.

    Parameters
    ----------
    token_times_s
        Delivery times in seconds since the request's arrival, (n,), non-decreasing.
    target
        The reader's target.

    Returns
    -------
    float
        In [0, 1]; 0 for an empty log. Never rises when a token is delayed.

    Raises
    ------
    ValueError
        If the times are not (n,), finite, >= 0 and non-decreasing.
    """
    times = _checked(token_times_s)
    n = times.size
    if not n:
        return 0.0
    read, _, _ = _follow(times, target.window_s(n), target.ttft_s, target.tds)
    return _ratio(read, 0.5 * n * n / target.tds)


def scores(token_times_s: ArrayLike, target: QoETarget) -> tuple[float, float, float]:
    """
    Returns :func:`area`, :func:`delay` and :func:`window` of a stream, in half the time.

    Parameters
    ----------
    token_times_s, target
        As for each of these.

    Raises
    ------
    ValueError
        If the times are not (n,), finite, >= 0 and non-decreasing.
    """
    times = _checked(token_times_s)
    n = times.size
    if not n:
        return 0.0, 0.0, 0.0
    last_s = float(times[-1])
    read, late_s, sum_s = _follow(times, last_s, target.ttft_s, target.tds)
    by_window, _, _ = _follow(times, target.window_s(n), target.ttft_s, target.tds)
    return (
        _ratio(read, ideal_area_capped(last_s, target.ttft_s, target.tds, n)),
        _one_less_delay(late_s, sum_s, n, target.tds),
        _ratio(by_window, 0.5 * n * n / target.tds),
    )


def _one_less_delay(last_s: float, sum_s: float, n: int, tds: float) -> float:
    """The score :func:`delay` from when n tokens are digested: the last one, and their sum."""
    due_sum_s = 0.5 * n * (n - 1) / tds
    return 1.0 - _ratio(sum_s - due_sum_s, n * last_s - due_sum_s) if last_s > 0.0 else 1.0


def _checked(token_times_s: ArrayLike) -> NDArray[np.float64]:
    times = np.asarray(token_times_s, dtype=np.float64)
    if times.ndim != 1:
        raise ValueError(f"token_times_s of shape {times.shape} not understood: need (n,).")
    if times.size and not (
        np.isfinite(times).all() and times[0] >= 0 and (times[1:] >= times[:-1]).all()
    ):
        raise ValueError("token_times_s must be finite, >= 0 and non-decreasing.")
    return np.ascontiguousarray(times)


def _ratio(part: float, whole: float) -> float:
    # Rounding may leave [0, 1] by an ulp; the definitions can't.
    return min(1.0, max(0.0, float(part / whole))) if whole > 0.0 else 1.0


@jit
def _follow(
    times: NDArray[np.float64], end_s: float, ttft_s: float, tds: float
) -> tuple[float, float, float]:
    """
    Follow a stream token by token.

    Returns the area by ``end_s``, and c_j of the last token and the sum of all c_j, both less
    ``ttft_s``: then the tokens are due at 0, 1/tds, 2/tds, ...
    """
    read, sum_s = 0.0, 0.0
    start_s = -np.inf
    for time_s in times:
        start_s = digestion_start(time_s, start_s, ttft_s, tds)
        read += token_window_area(end_s - start_s, tds)
        sum_s += start_s - ttft_s
    return read, start_s - ttft_s, sum_s
