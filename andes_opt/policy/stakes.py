"""
QoE at risk: what a reader is expected to lose by waiting, over the possible reply lengths.

A reply of n tokens, g of them generated, is read at v = tds tokens/s. Left are n - g tokens; the
backlog is b tokens, and the reader is ``late`` tokens behind the ideal one. If the request is
served now, faster than v, he reads on without a break. If it is served only ``horizon_s`` seconds
from now, he pauses for horizon_s - b/v seconds, in which he would have read
pause = v horizon_s - b tokens. By the end of the ideal reader's window (``window`` of
:mod:`andes_opt.qoe`) he can read at most n - g - late more tokens. So waiting costs, as a share of
the ideal area n^2 / (2 v),

    loss(n) = (most^2 - max(0, most - pause)^2) / n^2,    most = max(0, n - g - lateness late).

``lateness`` = 1 is the definition. A smaller value forgives part of the delay, so that readers
who are late already still count. The *stake* of a request is the expected loss,
given that the reply is longer than g, times (KV tokens / their mean)^weight_power over
(expected tokens left / the same for a new reply)^work_power. With work_power = 0 the knapsack
compares values per KV token of one step. With work_power = 1 it compares values of finishing per
KV token and second that finishing takes (Smith's rule). Values in between mix the two.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from andes_opt.compilation import jit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@jit
def _loss(length: float, left: float, late: float, pause: float) -> float:
    most = max(0.0, left - late)
    rest = max(0.0, most - pause)
    return (most * most - rest * rest) / (length * length)


@jit(error_model="numpy")
def expected(
    generated: float,
    late: float,
    pause: float,
    edges: NDArray[np.float64],
    share: NDArray[np.float64],
) -> tuple[float, float]:
    """
    Expected loss and expected tokens left of one reply longer than ``generated``.

    Parameters
    ----------
    generated
        Tokens so far.
    late
        Tokens the reader is behind, as far as they count.
    pause
        Tokens the reader would have read while the request waits, > 0.
    edges, share
        Distribution of reply lengths in bins, as of ``ReplyLengths.support``.

    Returns
    -------
    tuple[float, float]
        Expected loss, in [0, 1], and expected tokens left, > 0. A reply longer than all bins is
        assumed to have a third of its tokens so far still to come.
    """
    mass, loss, left = 0.0, 0.0, 0.0
    for k in range(share.size - 1, -1, -1):
        if edges[k + 1] <= generated:
            break
        begin = max(edges[k], generated)
        here = share[k] * (edges[k + 1] - begin) / (edges[k + 1] - edges[k])
        length = 0.5 * (begin + edges[k + 1])
        mass += here
        left += here * (length - generated)
        loss += here * _loss(length, length - generated, late, pause)
    if mass <= 0.0:
        left = 1.0 + generated / 3.0
        return _loss(generated + left, left, late, pause), left
    return loss / mass, left / mass


@jit(error_model="numpy")
def fill_stakes(
    age_s: NDArray[np.float64],
    delivered: NDArray[np.int64],
    digested: NDArray[np.float64],
    ttft_s: NDArray[np.float64],
    tds: NDArray[np.float64],
    restore_s: NDArray[np.float64],
    need_tokens: NDArray[np.int64],
    candidate: NDArray[np.bool_],
    lengths: NDArray[np.int64],
    edges: NDArray[np.float64],
    share: NDArray[np.float64],
    horizon_s: float,
    lateness: float,
    work_power: float,
    weight_power: float,
    params: NDArray[np.float64],
) -> None:
    """
    Write the stakes as gains that fall with the batch size.

    The first four rows of ``params`` become those of a forecast's gain model
    (:mod:`andes_opt.forecast`), scaled so that a request served faster than its reader
    reads gains its stake, and a slower one gains less in the same proportion as its forecast.

    Parameters
    ----------
    age_s, delivered, digested, ttft_s, tds, restore_s, need_tokens
        The requests, (n,), as in a snapshot.
    candidate
        False for requests that have no stake for now, (n,).
    lengths
        True reply lengths, (n,); if empty, the distribution is used.
    edges, share
        The distribution of reply lengths.
    horizon_s, lateness, work_power, weight_power
        As in the module's text.
    params
        Receives the rows, (k >= 4, n).
    """
    n = age_s.size
    mean_need = need_tokens.sum() / n if n else 1.0
    typical_left = expected(0.0, 0.0, 1.0, edges, share)[1]
    for i in range(n):
        speed = tds[i]
        before_s = max(0.0, ttft_s[i] - age_s[i])
        stalled_s = max(0.0, restore_s[i] - before_s)
        ahead_s = max(0.0, before_s - restore_s[i])
        digest_s = horizon_s - before_s
        # A pause during restoring happens either way, as in the forecast.
        backlog = max(delivered[i] - digested[i], speed * stalled_s)
        pause = speed * digest_s - backlog
        stake = 0.0
        if pause > 0.0 and candidate[i]:
            behind = max(0.0, speed * max(0.0, age_s[i] - ttft_s[i]) - digested[i])
            late = lateness * behind
            if lengths.size:
                left = max(1.0, float(lengths[i] - delivered[i]))
                stake = _loss(delivered[i] + left, left, late, pause)
            else:
                stake, left = expected(float(delivered[i]), late, pause, edges, share)
            stake *= (need_tokens[i] / mean_need) ** weight_power
            stake *= (typical_left / left) ** work_power
        params[1, i] = speed
        if stake <= 0.0:
            params[0, i] = params[2, i] = params[3, i] = 0.0
            continue
        # Forecast: saturation = pause^2 / (2 tds), shortfall^2 / (2 d) less if too slow.
        per_area = stake * 2.0 * speed / (pause * pause)
        scale = math.sqrt(0.5 * per_area)
        params[0, i] = stake
        params[2, i] = (ahead_s + digest_s - stalled_s) * scale
        params[3, i] = (speed * ahead_s + backlog - speed * stalled_s) * scale
