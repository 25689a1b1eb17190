"""
Prices of the three-way step: a proven bound on every batch size, and a plan by rounding.

As in :mod:`solvers.prices`, a price lambda >= 0 on memory and mu >= 0 on slots proves

    value  <=  lambda M + mu B + sum max(0, g_i - lambda w_i - mu, h_i - lambda v_i)

for gains g, h and weights w, v of serving and holding: with prices each request chooses for itself
(the multiple-choice knapsack's Lagrangian; Kellerer, Pferschy, Pisinger, *Knapsack Problems*,
Springer 2004, section 11.2). For given lambda a request prefers serving to its next best choice
by d_i, and the best mu is the B-th largest d_i; in lambda the bound is convex and piecewise
linear, so intersecting the best line on either side ends at the minimum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from andes_opt.snapshot import Action

if TYPE_CHECKING:
    from numpy.typing import NDArray

_UNIT_ROUNDOFF = 2.0**-53
_MAX_ROUNDS = 60
#: Moves of each direction that an exchange looks at.
_EXCHANGED = 64


@dataclass(frozen=True, slots=True, eq=False)
class ThreeWayStep:
    """
    The three-way problem at one batch size.

    Parameters
    ----------
    serve_gains, hold_gains
        Gains, (n,); -inf where the choice is not allowed.
    serve_weights, hold_weights
        KV tokens, (n,).
    capacity, slots
        KV tokens there are, and the most requests to serve.
    """

    serve_gains: NDArray[np.float64]
    hold_gains: NDArray[np.float64]
    serve_weights: NDArray[np.int64]
    hold_weights: NDArray[np.int64]
    capacity: int
    slots: int

    def used(self, action: NDArray[np.int8]) -> int:
        """KV tokens that actions (n,) need."""
        served, held = action == Action.SERVE, action == Action.HOLD
        return int(self.serve_weights[served].sum() + self.hold_weights[held].sum())

    def fits(self, action: NDArray[np.int8]) -> bool:
        """Whether actions (n,) respect memory and slots."""
        served = int((action == Action.SERVE).sum())
        return served <= self.slots and self.used(action) <= self.capacity

    def value(self, action: NDArray[np.int8]) -> float:
        """Sum of the gains of actions, (n,)."""
        served, held = action == Action.SERVE, action == Action.HOLD
        return float(self.serve_gains[served].sum() + self.hold_gains[held].sum())


@dataclass(frozen=True, slots=True, eq=False)
class Prices:
    """
    The best prices found, and the choices they lead to.

    Parameters
    ----------
    bound
        What the prices prove; rounding is allowed for.
    memory_price, slot_price
        lambda and mu.
    light, heavy
        Actions, (n,), at the end of the search: a choice that fits, and one that does not
        (the same if the memory does not bind).
    """

    bound: float
    memory_price: float
    slot_price: float
    light: NDArray[np.int8]
    heavy: NDArray[np.int8]


def find_prices(step: ThreeWayStep) -> Prices:
    """
    The prices with the best bound.

    Parameters
    ----------
    step
        The step.
    """
    action, slot_price, value, used = _choose(step, 0.0)
    if used <= step.capacity:
        return Prices(_bound(step, 0.0, slot_price), 0.0, slot_price, action, action)

    # Every gain per token is below `high`, so that nobody is chosen there.
    positive = np.concatenate(
        [step.serve_gains / step.serve_weights, step.hold_gains / np.maximum(step.hold_weights, 1)]
    )
    high, high_value, high_used = float(positive.max()), 0.0, 0
    low, low_value, low_used = 0.0, value, used
    light = np.full(action.size, Action.WAIT, dtype=np.int8)
    heavy = action
    best = (_bound(step, 0.0, slot_price), 0.0, slot_price)
    for _ in range(_MAX_ROUNDS):
        price = (low_value - high_value) / (low_used - high_used)
        if not low < price < high:
            break
        action, slot_price, value, used = _choose(step, price)
        best = min(best, (_bound(step, price, slot_price), price, slot_price))
        # The value of the line through both ends at this price: no lower bound is possible.
        expected = low_value + price * (step.capacity - low_used)
        if used > step.capacity:
            low, low_value, low_used, heavy = price, value, used, action
        else:
            high, high_value, high_used, light = price, value, used, action
        if value + price * (step.capacity - used) <= expected + 1e-14 * abs(expected):
            break
    return Prices(*best, light, heavy)


def round_to_plan(step: ThreeWayStep, prices: Prices) -> NDArray[np.int8]:
    """
    A feasible choice near the prices' own: both ends repaired and filled, one exchange.

    Parameters
    ----------
    step
        The step.
    prices
        Its prices.
    """
    candidates = [
        repair(step, action, prices.memory_price, prices.slot_price)
        for action in (prices.light, prices.heavy)
    ]
    return max(candidates, key=step.value)


def repair(
    step: ThreeWayStep, action: NDArray[np.int8], memory_price: float, slot_price: float
) -> NDArray[np.int8]:
    """
    A feasible choice near a given one, improved by single moves and one exchange.

    Parameters
    ----------
    step
        The step.
    action
        Any choice, (n,).
    memory_price, slot_price
        What a token and a slot count for in the order of the moves.
    """
    action = action.copy()
    best = np.full(action.size, Action.WAIT, dtype=np.int8)  # always feasible
    if not step.fits(action):
        # Give up what is worth least at these prices until the rest fits.
        served = action == Action.SERVE
        gains = np.where(served, step.serve_gains, step.hold_gains)
        weights = np.where(served, step.serve_weights, step.hold_weights)
        worth = gains - memory_price * weights - slot_price * served
        for request in np.argsort(worth, kind="stable"):
            if step.fits(action):
                break
            needs_slot = (action == Action.SERVE).sum() > step.slots
            needs_memory = step.used(action) > step.capacity
            if needs_memory or (needs_slot and served[request]):
                action[request] = Action.WAIT
    _fill(step, action, memory_price, slot_price)
    if _exchange(step, action, memory_price, slot_price):
        _fill(step, action, memory_price, slot_price)
    return action if step.value(action) > step.value(best) else best


def _choose(step: ThreeWayStep, price: float) -> tuple[NDArray[np.int8], float, float, int]:
    """What requests choose at a memory price: actions, slot price, value, KV tokens."""
    held_worth = np.maximum(0.0, step.hold_gains - price * step.hold_weights)
    preference = step.serve_gains - price * step.serve_weights - held_worth
    n = preference.size
    slot_price = 0.0
    if step.slots == 0:
        slot_price = max(0.0, float(preference.max(initial=0.0)))
    elif step.slots < n:
        slot_price = max(0.0, float(-np.partition(-preference, step.slots - 1)[step.slots - 1]))

    action = np.where(held_worth > 0, Action.HOLD, Action.WAIT).astype(np.int8)
    served = np.flatnonzero(preference > slot_price)
    if served.size < step.slots and slot_price > 0:
        ties = np.flatnonzero(preference == slot_price)
        served = np.concatenate([served, ties[: step.slots - served.size]])
    action[served[: step.slots]] = Action.SERVE
    return action, slot_price, step.value(action), step.used(action)


def _bound(step: ThreeWayStep, memory_price: float, slot_price: float) -> float:
    """What prices prove, with an allowance for every rounding on the way."""
    served = step.serve_gains - memory_price * step.serve_weights - slot_price
    held = step.hold_gains - memory_price * step.hold_weights
    worth = np.maximum(0.0, np.maximum(served, held))
    base = memory_price * step.capacity + slot_price * step.slots
    chosen = worth > 0
    gains = np.where(served > held, step.serve_gains, step.hold_gains)[chosen]
    weights = np.where(served > held, step.serve_weights, step.hold_weights)[chosen]
    size = 2 * base + float(np.abs(gains).sum() + memory_price * weights.sum())
    size += slot_price * worth.size
    return float(base + worth.sum() + _UNIT_ROUNDOFF * (worth.size + 8) * size)


def _moves(
    step: ThreeWayStep, action: NDArray[np.int8]
) -> tuple[
    NDArray[np.int64], NDArray[np.int8], NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]
]:
    """Every change of one request: request, new action, change of value, tokens and slots."""
    n = action.size
    requests = np.arange(n)
    gains = np.stack([np.zeros(n), step.serve_gains, step.hold_gains])
    weights = np.stack([np.zeros(n, dtype=np.int64), step.serve_weights, step.hold_weights])
    value, tokens, slot = gains[action, requests], weights[action, requests], action == Action.SERVE
    found = []
    for new in (Action.WAIT, Action.SERVE, Action.HOLD):
        who = np.flatnonzero((action != new) & np.isfinite(gains[new]))
        found.append(
            (
                who,
                np.full(who.size, new, dtype=np.int8),
                gains[new][who] - value[who],
                weights[new][who] - tokens[who],
                int(new == Action.SERVE) - slot[who].astype(np.int64),
            )
        )
    return tuple(np.concatenate(column) for column in zip(*found, strict=True))  # type: ignore[return-value]


def _fill(
    step: ThreeWayStep, action: NDArray[np.int8], memory_price: float, slot_price: float
) -> None:
    """Single moves that gain and fit, the most worthwhile at the prices first."""
    while True:
        requests, new, gain, tokens, slots = _moves(step, action)
        free = step.capacity - step.used(action)
        open_slots = step.slots - int((action == Action.SERVE).sum())
        useful = np.flatnonzero((gain > 0) & (tokens <= free) & (slots <= open_slots))
        if useful.size == 0:
            return
        worth = gain - memory_price * tokens - slot_price * slots
        touched = np.zeros(action.size, dtype=np.bool_)
        for move in useful[np.argsort(-worth[useful], kind="stable")]:
            fits = tokens[move] <= free and slots[move] <= open_slots
            if fits and not touched[requests[move]]:
                action[requests[move]] = new[move]
                touched[requests[move]] = True
                free -= int(tokens[move])
                open_slots -= int(slots[move])


def _exchange(
    step: ThreeWayStep, action: NDArray[np.int8], memory_price: float, slot_price: float
) -> bool:
    """The best pair of moves of two requests, one that gains and one that gives room."""
    requests, new, gain, tokens, slots = _moves(step, action)
    free = step.capacity - step.used(action)
    open_slots = step.slots - int((action == Action.SERVE).sum())
    worth = gain - memory_price * tokens - slot_price * slots
    order = np.argsort(-worth, kind="stable")
    ups = order[gain[order] > 0][:_EXCHANGED]
    downs = order[(gain[order] <= 0) & ((tokens[order] < 0) | (slots[order] < 0))][:_EXCHANGED]
    total = gain[ups][:, None] + gain[downs][None, :]
    possible = (
        (tokens[ups][:, None] + tokens[downs][None, :] <= free)
        & (slots[ups][:, None] + slots[downs][None, :] <= open_slots)
        & (requests[ups][:, None] != requests[downs][None, :])
        & (total > 0)
    )
    if not possible.any():
        return False
    up, down = np.unravel_index(np.argmax(np.where(possible, total, -np.inf)), total.shape)
    for move in (ups[up], downs[down]):
        action[requests[move]] = new[move]
    return True
