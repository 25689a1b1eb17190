"""A rule of thumb: small contexts first, and those who are in stay in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from andes_opt import checks
from andes_opt.compilation import jit
from andes_opt.policy.andes import calm_iterations
from andes_opt.policy.packing import backlog_s
from andes_opt.snapshot import Action, Decision, State

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from andes_opt.snapshot import Snapshot

WAIT, SERVE, HOLD = int(Action.WAIT), int(Action.SERVE), int(Action.HOLD)


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
            ("reserve", reserve),
            ("readmit_s", readmit_s),
        ):
            checks.non_negative(name, value)
        checks.positive("resident_divisor", resident_divisor)
        checks.positive("preempted_factor", preempted_factor)
        checks.whole("growth_tokens", growth_tokens, 0)
        if reserve >= 1:
            raise ValueError(f"reserve = {reserve} not understood: need [0, 1).")
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
        room = snapshot.capacity_tokens, snapshot.max_batch
        action = _pack(
            order,
            barred,
            resident,
            snapshot.need_tokens,
            room,
            self._growth_tokens,
            int(self._reserve * snapshot.capacity_tokens),
        )
        return Decision(action=action, order=order, replan_after=1)

    def finished(self, request_id: int) -> None:
        """Nothing is kept."""


@jit
def _pack(
    order: NDArray[np.int64],
    barred: NDArray[np.bool_],
    resident: NDArray[np.bool_],
    weights: NDArray[np.int64],
    room: tuple[int, int],
    growth: int,
    reserve: int,
) -> NDArray[np.int8]:
    # Room is KV tokens and places. Barred requests come last in the order.
    capacity, places = room
    action = np.zeros(weights.size, np.int8)
    free = grown = capacity
    for i in order:
        grown -= weights[i] + growth
        if grown < 0 or places == 0 or barred[i]:
            break
        action[i] = SERVE
        free -= weights[i]
        places -= 1
    for then, least in ((SERVE, 0), (HOLD, reserve)):
        for i in order:
            idle = action[i] == WAIT and resident[i]
            if idle and places > 0 and weights[i] + least <= free:
                action[i] = then
                free -= weights[i]
                places -= 1
    served = bool((action == SERVE).any())
    for i in order:
        least = reserve if served else 0
        out = action[i] == WAIT and not (served and barred[i])
        if out and places > 0 and weights[i] + least <= free:
            action[i] = SERVE
            free -= weights[i]
            places -= 1
            served = True
    return action
