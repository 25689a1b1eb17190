"""A rule of thumb: small contexts come first, and residents stay."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from andes_opt import checks
from andes_opt.policy.andes import calm_iterations
from andes_opt.policy.packing import backlog_s, fill_up, fits_in_order
from andes_opt.snapshot import Decision, State

if TYPE_CHECKING:
    from andes_opt.snapshot import Snapshot


class Thumb:
    """
    Serve by a rank of fifteen lines: no forecast, no knapsack, no learnt lengths.

    A request's rank is its KV tokens to a power, times what its reader has in hand; residents have
    theirs divided, preempted ones multiplied. The longest prefix by rank that fits, with room to
    grow, is served. Then residents take what is left, then they are held, then others come in. It
    shows how much of a policy's gain needs an optimiser: any policy here should beat it.

    Parameters
    ----------
    size_power
        Power of the KV tokens in the rank, >= 0.
    text_weight
        Growth of the rank per second of text in hand, >= 0.
    resident_divisor, preempted_factor
        What a resident's rank is divided by, and a preempted one's multiplied by, > 0.
    growth_tokens
        Tokens that each request of the prefix has room to grow by, >= 0.
    reserve
        Share of the KV cache that holding and newcomers leave free, in [0, 1).
    readmit_s
        Seconds of text in hand up to which a preempted request may come back, >= 0.
    kv_pressure
        Share of the KV cache below which everybody is served, as in Andes, in (0, 1].

    Raises
    ------
    ValueError
        If an option is out of range.
    """

    def __init__(
        self,
        *,
        size_power: float = 0.75,
        text_weight: float = 0.2,
        resident_divisor: float = 3.0,
        preempted_factor: float = 2.0,
        growth_tokens: int = 24,
        reserve: float = 0.03,
        readmit_s: float = 12.0,
        kv_pressure: float = 0.9,
    ) -> None:
        for name, value in (
            ("size_power", size_power),
            ("text_weight", text_weight),
            ("readmit_s", readmit_s),
        ):
            checks.non_negative(name, value)
        checks.positive("resident_divisor", resident_divisor)
        checks.positive("preempted_factor", preempted_factor)
        checks.whole("growth_tokens", growth_tokens, 0)
        checks.fraction("reserve", reserve)
        checks.share("kv_pressure", kv_pressure)
        self._size_power = size_power
        self._text_weight = text_weight
        self._resident_divisor = resident_divisor
        self._preempted_factor = preempted_factor
        self._growth_tokens = growth_tokens
        self._reserve = reserve
        self._readmit_s = readmit_s
        self._kv_pressure = kv_pressure

    def decide(self, snapshot: Snapshot) -> Decision:
        """Pass through without pressure; else pack by rank and fill up."""
        if (calm := calm_iterations(snapshot, self._kv_pressure)) > 0:
            return Decision(replan_after=calm)
        resident = snapshot.kv_tokens > 0
        preempted = snapshot.state == State.PREEMPTED
        text_s = backlog_s(snapshot)
        rank = snapshot.need_tokens**self._size_power * (1.0 + self._text_weight * text_s)
        rank[resident] /= self._resident_divisor
        rank[preempted] *= self._preempted_factor
        barred = preempted & (text_s > self._readmit_s)
        order = np.lexsort((rank, barred))
        allowed = order[: max(1, int((~barred).sum()))]  # an idle engine takes a barred one
        weights, capacity = snapshot.need_tokens, snapshot.capacity_tokens
        places = snapshot.max_batch
        grown = weights + self._growth_tokens
        serve = fits_in_order(allowed[~barred[allowed]], grown, capacity, places)
        room = capacity, places, places
        action = fill_up(serve, resident, allowed, weights, room, int(self._reserve * capacity))
        return Decision(action=action, order=order, replan_after=1)

    def finished(self, request_id: int) -> None:
        """Nothing is kept."""
