"""
What a reader's QoE will be if a request is served, or waits, for the next seconds.

docs/model.md (Forecasts) derives the formulas from Andes (arXiv 2404.16283, section 4) and
explains the symbols. In the names of this file: from ``before_s`` on the reader reads, for
``digest_s`` seconds. For ``stalled_s`` of them nothing is delivered to a served request;
``ahead_s`` seconds of deliveries come before. With the backlog raised to tds * stalled_s or more
and r = 1/latency(B), the gain is, as a share of the ideal area,

    tds (digest_s - backlog / tds)^2 / 2  -  q^2 / (2 (tds - r)),
    q = max(0, tds digest_s - backlog - r (ahead_s + digest_s - stalled_s)).

The first term is the *saturation*. The code computes ``saturation - shortfall^2 / deficit`` with
``deficit = tds - r`` and ``shortfall = max(0, deficit slope - slack)``, where
slope = ahead_s + digest_s - stalled_s and slack = tds (ahead_s - stalled_s) + backlog are both
scaled by 1/sqrt(2 * ideal area). So four numbers per request do not depend on B: saturation, tds,
slope and slack.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from andes_opt.compilation import jit
from andes_opt.gains import FORECAST, fill_gains, fill_table, rate_scalars
from andes_opt.qoe import digest, ideal_area

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from andes_opt.latency import LatencyModel
    from andes_opt.snapshot import Snapshot

_STATE = ("age_s", "delivered", "digested", "area", "ttft_s", "tds", "restore_s")


class QoEForecast:
    """
    Forecast QoE of every request; as a gain model, Q_serve(B) - Q_wait.

    Parameters
    ----------
    age_s
        Seconds since each request's arrival, (n,). A negative age counts as 0: a live
        engine's clocks may differ by a hair.
    delivered, digested
        Tokens delivered and (fluid) digested so far, (n,).
    area
        Integral of the digested tokens so far, token-seconds, (n,).
    ttft_s, tds
        The readers' targets, (n,): seconds, and tokens/s > 0.
    restore_s
        Seconds until a request that is served goes on, (n,), >= 0.
    dt_s
        Horizon in seconds, > 0.
    latency
        The engine's latency model.
    capacity_tokens, mean_need_tokens
        KV tokens there are, and that a request holds on average: they bound the context.

    Raises
    ------
    ValueError
        If the arrays differ in shape or a number is out of range.
    """

    #: No gain rises with the batch size, and each is concave in the token rate.
    monotone = True
    concave_in_rate = True
    kind = FORECAST

    __slots__ = ("dt_s", "params", "q_now", "q_wait", "scalars", "state")

    def __init__(
        self,
        age_s: ArrayLike,
        delivered: ArrayLike,
        digested: ArrayLike,
        area: ArrayLike,
        ttft_s: ArrayLike,
        tds: ArrayLike,
        restore_s: ArrayLike,
        *,
        dt_s: float,
        latency: LatencyModel,
        capacity_tokens: int,
        mean_need_tokens: float,
    ) -> None:
        if not 0 < dt_s < math.inf:
            raise ValueError(f"dt_s = {dt_s} not understood: need a number > 0.")
        columns = (age_s, delivered, digested, area, ttft_s, tds, restore_s)
        try:
            # One array of one type, whatever the caller's arrays are: one compilation.
            self.state = np.array(columns, dtype=np.float64)
        except ValueError:
            self.state = np.empty(0)
        if self.state.ndim != 2:
            shapes = ", ".join(
                f"{name} {np.shape(column)}" for name, column in zip(_STATE, columns, strict=True)
            )
            raise ValueError(f"arrays of shapes {shapes} not understood: need (n,) each.")

        self.dt_s = float(dt_s)
        rows = np.empty((6, self.state.shape[1]))
        refused = _prepare(self.state, self.dt_s, rows)
        if refused >= 0:
            numbers = ", ".join(
                f"{name} {value:g}"
                for name, value in zip(_STATE, self.state[:, refused], strict=True)
            )
            raise ValueError(
                f"the state of request {refused} is not understood ({numbers}): need finite "
                "numbers >= 0 and tds > 0."
            )
        rows.setflags(write=False)
        self.params = rows[:4]
        self.q_wait = rows[4]
        self.q_now = rows[5]
        self.scalars = rate_scalars(latency, capacity_tokens, mean_need_tokens)

    @classmethod
    def of(cls, snapshot: Snapshot, dt_s: float) -> QoEForecast:
        """
        The forecast for all requests of a snapshot.

        Parameters
        ----------
        snapshot
            The engine at one moment.
        dt_s
            Horizon in seconds, > 0.
        """
        return cls(
            snapshot.time_s - snapshot.arrival_s,
            snapshot.generated_tokens,
            snapshot.digested,
            snapshot.area,
            snapshot.ttft_s,
            snapshot.tds,
            snapshot.restore_s,
            dt_s=dt_s,
            latency=snapshot.latency,
            capacity_tokens=snapshot.capacity_tokens,
            mean_need_tokens=mean_tokens(snapshot.need_tokens),
        )

    def __call__(self, batch_size: int) -> NDArray[np.float64]:
        """Gains Q_serve(batch_size) - Q_wait, (n,)."""
        out = np.empty(self.params.shape[1])
        fill_gains(FORECAST, self.params, self.scalars, batch_size, out)
        return out

    def table(self, first: int, last: int) -> NDArray[np.float64]:
        """Gains (last - first + 1, n)."""
        return fill_table(FORECAST, self.params, self.scalars, first, last)

    def q_serve(self, batch_size: int) -> NDArray[np.float64]:
        """Forecast QoE of each request if served in a batch of ``batch_size``, (n,)."""
        return self.q_wait + self(batch_size)


@jit
def mean_tokens(tokens: NDArray[np.int64]) -> float:
    """Mean of token counts, (n,); 0 if there are none."""
    return tokens.sum() / tokens.size if tokens.size else 0.0


@jit
def _ideal_area_then(age_s: float, ttft_s: float, tds: float, dt_s: float) -> float:
    # Integral of E over [0, age + dt]. age + dt - ttft_s, computed so, would round
    # otherwise than the seconds of digestion dt - (ttft_s - age) do, and let a ratio of
    # two tiny areas leave [0, 1].
    return ideal_area(dt_s - max(0.0, ttft_s - age_s), -max(0.0, age_s - ttft_s), tds)


@jit(error_model="numpy")
def forecast_row(
    age_s: float,
    backlog: float,
    ttft_s: float,
    tds: float,
    restore_s: float,
    dt_s: float,
) -> tuple[float, float, float]:
    """
    Saturation, slope and slack of one request (see the module's text).

    Parameters
    ----------
    age_s
        Seconds since arrival.
    backlog
        Tokens delivered but not digested.
    ttft_s, tds, restore_s, dt_s
        As for :class:`QoEForecast`.

    Returns
    -------
    tuple[float, float, float]
        All 0 if the request gains nothing at any rate.
    """
    ideal = _ideal_area_then(age_s, ttft_s, tds, dt_s)
    if ideal <= 0.0:
        return 0.0, 0.0, 0.0
    per_ideal = 1.0 / ideal
    before_s = max(0.0, ttft_s - age_s)
    digest_s = dt_s - before_s
    stalled_s = max(0.0, restore_s - before_s)
    ahead_s = max(0.0, before_s - restore_s)
    backlog = max(backlog, tds * stalled_s)
    hungry_s = digest_s - backlog / tds
    if hungry_s <= 0.0:
        return 0.0, 0.0, 0.0
    scale = math.sqrt(0.5 * per_ideal)
    return (
        0.5 * tds * hungry_s * hungry_s * per_ideal,
        (ahead_s + digest_s - stalled_s) * scale,
        (tds * ahead_s + (backlog - tds * stalled_s)) * scale,
    )


@jit(error_model="numpy")
def _prepare(state: NDArray[np.float64], dt_s: float, rows: NDArray[np.float64]) -> int:
    # Fills rows (6, n): the four rows of params, Q_wait, Q now. Returns the first request
    # whose state is out of range, or -1.
    age_s, delivered, digested, area = state[0], state[1], state[2], state[3]
    ttft_s, tds, restore_s = state[4], state[5], state[6]
    for i in range(state.shape[1]):
        # Comparisons with NaN are false; a sum is finite only if all its terms are.
        known = delivered[i] >= 0.0 and digested[i] >= 0.0 and area[i] >= 0.0
        known = known and ttft_s[i] >= 0.0 and restore_s[i] >= 0.0 and tds[i] > 0.0
        total = delivered[i] + digested[i] + area[i] + ttft_s[i] + restore_s[i] + tds[i]
        if not (known and -np.inf < age_s[i] + total < np.inf):
            return i
        age = max(0.0, age_s[i])

        backlog = max(0.0, delivered[i] - digested[i])
        rows[0, i], rows[2, i], rows[3, i] = forecast_row(
            age, backlog, ttft_s[i], tds[i], restore_s[i], dt_s
        )
        rows[1, i] = tds[i]

        ideal = _ideal_area_then(age, ttft_s[i], tds[i], dt_s)
        digest_s = dt_s - max(0.0, ttft_s[i] - age)
        coming = digested[i] * dt_s + digest(backlog, digest_s, tds[i])[1]
        rows[4, i] = (area[i] + coming) / ideal if ideal > 0.0 else 1.0
        ideal = ideal_area(age, ttft_s[i], tds[i])
        rows[5, i] = area[i] / ideal if ideal > 0.0 else 1.0
    return -1
