"""
What a scheduling step maximises: objectives turn a snapshot into a gain model.

Each is a knapsack objective (docs/model.md, The scheduling step): the value of a plan is the
sum of its requests' gains. The first three are those of Andes (arXiv 2404.16283v1, section 4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from andes_opt.checks import non_negative, positive
from andes_opt.compilation import jit
from andes_opt.forecast import QoEForecast, forecast_row
from andes_opt.gains import CONSTANT, COSTED, THRESHOLD, FormulaGains, frozen, token_rate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from andes_opt.instance import GainModel
    from andes_opt.snapshot import Snapshot


@runtime_checkable
class Objective(Protocol):
    """
    What a scheduling step maximises.

    Attributes
    ----------
    saturates
        True if the gains no longer depend on the batch size once an iteration is faster
        than the strictest reader. Batch sizes below that can then be left out without
        loss as long as a plan may serve fewer requests than its batch size.
    """

    @property
    def saturates(self) -> bool: ...

    def gains(self, snapshot: Snapshot) -> GainModel:
        """The gain model of the snapshot's requests."""
        ...


@dataclass(frozen=True, slots=True)
class AverageQoE:
    """
    Average QoE: the gain is Q_serve(B) - Q_wait. Monotone and concave in the token rate.

    Parameters
    ----------
    dt_s
        Horizon of the forecast in seconds, > 0. The paper finds any value above 50 robust.
    """

    dt_s: float = 50.0

    def __post_init__(self) -> None:
        positive("dt_s", self.dt_s)

    @property
    def saturates(self) -> bool:
        """True."""
        return True

    def gains(self, snapshot: Snapshot) -> QoEForecast:
        """Q_serve(B) - Q_wait."""
        return QoEForecast.of(snapshot, self.dt_s)


@dataclass(frozen=True, slots=True)
class MaxMinQoE:
    """
    The smallest QoE: the gain is max(Q_min - Q_wait, 0) at every batch size.

    Q_min is the smallest QoE that any request of the snapshot has now. The gain is how far a
    request would fall below that by waiting. Constant in B, so monotone and
    concave in the token rate.

    Parameters
    ----------
    dt_s
        Horizon of the forecast in seconds, > 0.
    """

    dt_s: float = 50.0

    def __post_init__(self) -> None:
        positive("dt_s", self.dt_s)

    @property
    def saturates(self) -> bool:
        """True."""
        return True

    def gains(self, snapshot: Snapshot) -> FormulaGains:
        """max(Q_min - Q_wait, 0)."""
        forecast = QoEForecast.of(snapshot, self.dt_s)
        q_min = forecast.q_now.min(initial=1.0)
        return FormulaGains(
            CONSTANT,
            np.maximum(q_min - forecast.q_wait, 0.0)[np.newaxis],
            frozen(),
            monotone=True,
            concave_in_rate=True,
        )


@dataclass(frozen=True, slots=True)
class PerfectRequests:
    """
    The number of requests whose forecast QoE is 1, within a tolerance.

    The gain is 1 if a request is perfect when served but not when waiting, else 0. Monotone; not
    concave in the token rate, because it jumps.

    Parameters
    ----------
    dt_s
        Horizon of the forecast in seconds, > 0.
    tolerance
        QoE >= 1 - tolerance counts as perfect, in (0, 1). The default is one point.
    """

    dt_s: float = 50.0
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        positive("dt_s", self.dt_s)
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance = {self.tolerance} not understood: need 0 < it < 1.")

    @property
    def saturates(self) -> bool:
        """True."""
        return True

    def gains(self, snapshot: Snapshot) -> FormulaGains:
        """[Q_serve(B) >= 1 - tolerance] - [Q_wait >= 1 - tolerance]."""
        forecast = QoEForecast.of(snapshot, self.dt_s)
        missing = (1.0 - self.tolerance) - forecast.q_wait
        return FormulaGains(
            THRESHOLD,
            _least_rates(forecast.params, missing),
            forecast.scalars,
            monotone=True,
            concave_in_rate=False,
        )


@dataclass(frozen=True, slots=True)
class AverageQoEWithPreemptionCost:
    """
    Average QoE minus what evicting and restoring cost the other requests.

    Restoring a request (prompt or KV to compute, KV to swap in) stalls the batch. A
    second of stall costs a request that is resident now rho QoE on average: its forecast
    is taken without a stall and with one of typical length, at the present batch size.
    Then

    * a *resident* request gains ``C_i`` more by being served: to evict it means to
      restore it later, ``C_i = evict_cost + evict_stall * rho * others * restore_i``,
      with the seconds to restore its context again, and the other resident requests;
    * a *non-resident* one gains ``k_i(B) = admit_stall * rho * restore_s_i * (B - 1)``
      less.

    Prices are those of the present batch: a cost that depends on which others are chosen
    would be no knapsack. Monotone, as k_i never falls with B; concave in the token rate, as B is a
    convex function of it, unless latency does not rise with the batch. The gains never
    saturate, so a formulation must not leave out small batch sizes.

    Parameters
    ----------
    dt_s
        Horizon of the forecast in seconds, > 0.
    evict_cost
        QoE that each eviction costs in addition, >= 0.
    evict_stall, admit_stall
        Weights of the stall that evicting causes later, and of the one that admitting causes
        now, >= 0.
    restore_s_per_token
        Seconds to restore the KV of one token of an evicted request, >= 0; None for the
        latency model's prefill time (recompute).
    """

    dt_s: float = 50.0
    evict_cost: float = 0.0
    evict_stall: float = 1.0
    admit_stall: float = 1.0
    restore_s_per_token: float | None = None

    def __post_init__(self) -> None:
        positive("dt_s", self.dt_s)
        for name in ("evict_cost", "evict_stall", "admit_stall"):
            non_negative(name, getattr(self, name))
        if self.restore_s_per_token is not None:
            non_negative("restore_s_per_token", self.restore_s_per_token)

    @property
    def saturates(self) -> bool:
        """False: admitting costs more in a larger batch."""
        return False

    def gains(self, snapshot: Snapshot) -> FormulaGains:
        """Q_serve(B) - Q_wait + C_i (resident), or - k_i(B) (not resident)."""
        forecast = QoEForecast.of(snapshot, self.dt_s)
        resident = snapshot.kv_tokens > 0
        batch = int(resident.sum())
        per_token_s = self.restore_s_per_token
        if per_token_s is None:
            per_token_s = snapshot.latency.per_prefill_token_s
        context = snapshot.prompt_tokens + snapshot.generated_tokens
        restore_s = np.where(resident, per_token_s * context, snapshot.restore_s)

        rate = token_rate(forecast.scalars, batch)
        rho = _stall_loss(forecast.state, resident, restore_s, self.dt_s, rate)
        stall = rho * restore_s
        params = np.empty((6, resident.size))
        params[:4] = forecast.params
        evict = self.evict_cost + (self.evict_stall * max(0, batch - 1)) * stall
        params[4] = np.where(resident, evict, 0.0)
        params[5] = np.where(resident, 0.0, self.admit_stall * stall)
        return FormulaGains(
            COSTED,
            params,
            forecast.scalars,
            monotone=True,
            concave_in_rate=snapshot.latency.per_request_s > 0 or not params[5].any(),
        )


@jit(error_model="numpy")
def _least_rates(params: NDArray[np.float64], missing: NDArray[np.float64]) -> NDArray[np.float64]:
    # Rows of a THRESHOLD model: 1 where a gain of `missing` > 0 can be reached, and the
    # least token rate at which it is. saturation - (d slope - slack)^2 / d = missing is a
    # quadratic in d = tds - rate; its larger root is where the shortfall exceeds what
    # may be lost. Comparing rates rather than gains keeps the step monotone to the bit.
    rows = np.zeros((2, missing.size))
    for i in range(missing.size):
        may_lose = params[0, i] - missing[i]
        if missing[i] <= 0.0 or may_lose < 0.0:
            continue
        slope, slack = params[2, i], params[3, i]
        linear = 2.0 * slope * slack + may_lose
        root = math.sqrt(may_lose * (4.0 * slope * slack + may_lose))
        rows[0, i] = 1.0
        rows[1, i] = params[1, i] - (linear + root) / (2.0 * slope * slope)
    return rows


@jit(error_model="numpy")
def _stall_loss(
    state: NDArray[np.float64],
    resident: NDArray[np.bool_],
    restore_s: NDArray[np.float64],
    dt_s: float,
    rate: float,
) -> float:
    # QoE that a second of stall costs a resident request, on average over them. The
    # stall is as long as restoring a non-resident request takes on average, or a
    # resident one if all are: a short stall may hide behind the readers' backlogs.
    residents = resident.sum()
    if residents == 0:
        return 0.0
    stall_s, count = 0.0, 0
    for i in range(resident.size):
        if not resident[i] or residents == resident.size:
            stall_s += restore_s[i]
            count += 1
    if stall_s <= 0.0:
        return 0.0
    stall_s /= count

    loss = 0.0
    for i in range(resident.size):
        if resident[i]:
            age_s, backlog = max(0.0, state[0, i]), max(0.0, state[1, i] - state[2, i])
            ttft_s, tds = state[4, i], state[5, i]
            for extra_s, sign in ((0.0, 1.0), (stall_s, -1.0)):
                saturation, slope, slack = forecast_row(
                    age_s, backlog, ttft_s, tds, state[6, i] + extra_s, dt_s
                )
                deficit = tds - rate
                short = deficit * slope - slack
                gain = saturation - short * short / deficit if short > 0.0 else saturation
                loss += sign * gain
    return max(0.0, loss) / (residents * stall_s)
