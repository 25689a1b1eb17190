"""The scheduler that the authors of Andes released; it differs from their paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from andes_opt import checks
from andes_opt.compilation import jit
from andes_opt.forecast import QoEForecast, mean_tokens
from andes_opt.latency import LatencyModel
from andes_opt.snapshot import Action, Decision

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from andes_opt.snapshot import Snapshot

#: Share of the memory up to which the released packing passes over requests that do not fit.
_FULL = 0.9


class AndesReleased:
    """
    The scheduler released with Andes (github.com/AmberLJC/vllm-0.6.1), after its behaviour.

    While less than ``kv_pressure`` of the KV cache is in use, and whenever there were more than
    ``preemption_cap`` preemptions per request, no request is evicted and arrivals are let in.
    Otherwise requests are ranked by their gain over the *square* of their KV tokens, which
    favours short contexts, and packed in that order. Requests that do not fit are passed over
    until 90 % of the memory is used; the first one after that ends the packing. The gain is the
    average-QoE forecast over ``dt_s`` at one fixed token latency, so no batch size is chosen. A
    running request's gain is multiplied by ``resident_factor``. Our forecast replaces theirs,
    which approximates the same areas.

    Parameters
    ----------
    dt_s
        Horizon of the forecast in seconds, > 0.
    token_latency_s
        Seconds per token that the forecast assumes, > 0.
    resident_factor
        By how much the gain of a running request is multiplied, >= 0.
    kv_pressure
        Share of the KV cache in use from which on requests are chosen, in (0, 1].
    preemption_cap
        Preemptions per request above which no request is evicted, >= 0.

    Raises
    ------
    ValueError
        If an option is out of range.
    """

    def __init__(
        self,
        *,
        dt_s: float = 50.0,
        token_latency_s: float = 0.05,
        resident_factor: float = 1.5,
        kv_pressure: float = 0.9,
        preemption_cap: float = 2.0,
    ) -> None:
        checks.positive("dt_s", dt_s)
        checks.positive("token_latency_s", token_latency_s)
        checks.non_negative("resident_factor", resident_factor)
        checks.share("kv_pressure", kv_pressure)
        checks.non_negative("preemption_cap", preemption_cap)
        self._dt_s = dt_s
        self._latency = LatencyModel(token_latency_s, 0.0, 0.0, 0.0)
        self._resident_factor = resident_factor
        self._kv_pressure = kv_pressure
        self._preemption_cap = preemption_cap

    def decide(self, snapshot: Snapshot) -> Decision:
        """Pass through below the pressure or beyond the cap; else rank and pack."""
        resident = snapshot.kv_tokens > 0
        # A block per running request counts as used: its next token may need it.
        used = snapshot.kv_tokens.sum() + resident.sum() * snapshot.block_tokens
        beyond = snapshot.preemptions_seen > self._preemption_cap * snapshot.requests_seen
        if beyond or used < self._kv_pressure * snapshot.capacity_tokens:
            return Decision(replan_after=1)

        forecast = QoEForecast(
            snapshot.time_s - snapshot.arrival_s,
            snapshot.generated_tokens,
            snapshot.digested,
            snapshot.area,
            snapshot.ttft_s,
            snapshot.tds,
            np.zeros(snapshot.num_requests),
            dt_s=self._dt_s,
            latency=self._latency,
            capacity_tokens=snapshot.capacity_tokens,
            mean_need_tokens=mean_tokens(snapshot.need_tokens),
        )
        need = snapshot.need_tokens
        gains = forecast(1) * np.where(resident, self._resident_factor, 1.0)
        order = np.argsort(-gains / need.astype(np.float64) ** 2, kind="stable")
        serve = _pack_until_full(order, need, snapshot.capacity_tokens, snapshot.max_batch)
        return Decision(
            action=np.where(serve, Action.SERVE, Action.WAIT).astype(np.int8),
            order=order,
            replan_after=1,
        )

    def finished(self, request_id: int) -> None:
        """Nothing is kept."""


@jit
def _pack_until_full(
    order: NDArray[np.int64], weights: NDArray[np.int64], capacity: int, slots: int
) -> NDArray[np.bool_]:
    serve = np.zeros(weights.size, dtype=np.bool_)
    used = 0
    for i in order:
        if slots > 0 and used + weights[i] <= capacity:
            serve[i] = True
            used += weights[i]
            slots -= 1
        elif used >= _FULL * capacity:
            break
    return serve
