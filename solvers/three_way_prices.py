"""
Prices of the three-way step: a proven bound on every batch size, and a plan by rounding.

As in :mod:`solvers.prices`, a price lambda >= 0 on memory and mu >= 0 on slots proves

    value  <=  lambda M + mu B + sum max(0, g_i - lambda w_i - mu, h_i - lambda v_i)

for gains g, h and weights w, v of serving and holding: with prices each request chooses for itself
(the multiple-choice knapsack's Lagrangian; Kellerer, Pferschy, Pisinger, *Knapsack Problems*,
Springer 2004, section 11.2). For given lambda a request prefers serving to its next best choice
by d_i, and the best mu is the B-th largest d_i; in lambda the bound is convex and piecewise
linear, so intersecting the best line on either side ends at the minimum. The limit on served and
held requests together has no price: the bound holds without it, and rounding respects it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from andes_opt.compilation import jit
from andes_opt.snapshot import Action
from solvers._exact.problem import UNIT_ROUNDOFF
from solvers._exact.selection import slot_price_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAX_ROUNDS = 60
_WAIT, _SERVE, _HOLD = int(Action.WAIT), int(Action.SERVE), int(Action.HOLD)
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
    capacity, slots, places
        KV tokens there are, the most requests to serve, and the most to serve or hold.
    """

    serve_gains: NDArray[np.float64]
    hold_gains: NDArray[np.float64]
    serve_weights: NDArray[np.int64]
    hold_weights: NDArray[np.int64]
    capacity: int
    slots: int
    places: int

    def used(self, action: NDArray[np.int8]) -> int:
        """KV tokens that actions (n,) need."""
        served, held = action == Action.SERVE, action == Action.HOLD
        return int(self.serve_weights[served].sum() + self.hold_weights[held].sum())

    def fits(self, action: NDArray[np.int8]) -> bool:
        """Whether actions (n,) respect memory, slots and places."""
        served = int((action == Action.SERVE).sum())
        taken = int(np.count_nonzero(action))
        return served <= self.slots and taken <= self.places and self.used(action) <= self.capacity

    def value(self, action: NDArray[np.int8]) -> float:
        """Sum of the gains of actions, (n,)."""
        served, held = action == Action.SERVE, action == Action.HOLD
        return float(self.serve_gains[served].sum() + self.hold_gains[held].sum())


class _Choices(NamedTuple):
    """What requests may choose, for compiled code: gains and KV tokens of both choices, (n,)."""

    serve_gains: NDArray[np.float64]
    hold_gains: NDArray[np.float64]
    serve_weights: NDArray[np.float64]
    hold_weights: NDArray[np.float64]


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
        Actions, (n,), at the end of the search: a choice that fits memory and slots, and one
        that does not fit memory (the same if the memory does not bind).
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
    light = np.empty(step.serve_gains.size, dtype=np.int8)
    heavy = np.empty_like(light)
    # Copies, because compiled code tells read-only arrays from others.
    choices = _Choices(
        np.array(step.serve_gains),
        np.array(step.hold_gains),
        step.serve_weights.astype(np.float64),
        step.hold_weights.astype(np.float64),
    )
    bound, memory_price, slot_price = _search(
        choices,
        float(step.capacity),
        step.slots,
        light,
        heavy,
        np.empty_like(light),
        np.empty((3, light.size)),
    )
    return Prices(bound, memory_price, slot_price, light, heavy)


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
    served = action == Action.SERVE
    excess = step.used(action) - step.capacity
    too_many = int(served.sum()) - step.slots
    crowd = int(np.count_nonzero(action)) - step.places
    if excess > 0 or too_many > 0 or crowd > 0:
        # Give up what is worth least at these prices until the rest fits.
        gains = np.where(served, step.serve_gains, step.hold_gains)
        weights = np.where(served, step.serve_weights, step.hold_weights)
        worth = gains - memory_price * weights - slot_price * served
        taken = np.flatnonzero(action != Action.WAIT)
        for request in taken[np.argsort(worth[taken], kind="stable")].tolist():
            if excess <= 0 and too_many <= 0 and crowd <= 0:
                break
            if excess > 0 or crowd > 0 or served[request]:
                action[request] = Action.WAIT
                excess -= int(weights[request])
                too_many -= int(served[request])
                crowd -= 1
    _fill(step, action, memory_price, slot_price)
    if _exchange(step, action, memory_price, slot_price):
        _fill(step, action, memory_price, slot_price)
    return action if step.value(action) > step.value(best) else best


@jit
def _search(
    choices: _Choices,
    capacity: float,
    slots: int,
    light: NDArray[np.int8],
    heavy: NDArray[np.int8],
    action: NDArray[np.int8],
    work: NDArray[np.float64],
) -> tuple[float, float, float]:
    """Bound, memory price, slot price; fills ``light`` and ``heavy``, the rest is scratch."""
    n = light.size
    slot_price, low_value, low_used = _choose(choices, slots, 0.0, heavy, work)
    best_bound = _bound(choices, capacity, slots, 0.0, slot_price)
    best_price, best_slot_price = 0.0, slot_price
    memory_binds = low_used > capacity
    # No gain per token exceeds `high`, so that nobody need be chosen there.
    low, high, high_value, high_used = 0.0, 0.0, 0.0, 0.0
    for i in range(n):
        light[i] = _WAIT if memory_binds else heavy[i]
        serve_density = choices.serve_gains[i] / choices.serve_weights[i]
        high = max(high, serve_density, choices.hold_gains[i] / choices.hold_weights[i])

    rounds = 0
    while memory_binds and rounds < _MAX_ROUNDS:
        rounds += 1
        price = (low_value - high_value) / (low_used - high_used)
        if not low < price < high:
            break
        slot_price, value, used = _choose(choices, slots, price, action, work)
        bound = _bound(choices, capacity, slots, price, slot_price)
        if bound < best_bound:
            best_bound, best_price, best_slot_price = bound, price, slot_price
        # No bound lies below the lines through both ends; where they meet, it is reached.
        expected = low_value + price * (capacity - low_used)
        end = heavy if used > capacity else light
        for i in range(n):
            end[i] = action[i]
        if used > capacity:
            low, low_value, low_used = price, value, used
        else:
            high, high_value, high_used = price, value, used
        if value + price * (capacity - used) <= expected + 1e-14 * abs(expected):
            break
    return best_bound, best_price, best_slot_price


@jit
def _choose(
    choices: _Choices,
    slots: int,
    price: float,
    action: NDArray[np.int8],
    work: NDArray[np.float64],
) -> tuple[float, float, float]:
    """What requests choose at a memory price, into ``action``; slot price, value, KV tokens."""
    serve_gains, hold_gains, serve_weights, hold_weights = choices
    n = serve_gains.size
    preference, scratch = work[0], work[1]
    largest = 0.0
    for i in range(n):
        held = hold_gains[i] - price * hold_weights[i]
        action[i] = _HOLD if held > 0.0 else _WAIT
        preference[i] = serve_gains[i] - price * serve_weights[i] - max(0.0, held)
        scratch[i] = preference[i]
        largest = max(largest, preference[i])
    slot_price = slot_price_of(scratch, largest, n, slots, False, work[2])
    left = slots
    for i in range(n):
        if preference[i] > slot_price:
            action[i] = _SERVE
            left -= 1
    if slot_price > 0.0:
        for i in range(n):
            if left > 0 and preference[i] == slot_price:
                action[i] = _SERVE
                left -= 1
    value = 0.0
    used = 0.0
    for i in range(n):
        if action[i] == _SERVE:
            value += serve_gains[i]
            used += serve_weights[i]
        elif action[i] == _HOLD:
            value += hold_gains[i]
            used += hold_weights[i]
    return slot_price, value, used


@jit
def _bound(
    choices: _Choices,
    capacity: float,
    slots: int,
    memory_price: float,
    slot_price: float,
) -> float:
    """What prices prove, with an allowance for every rounding on the way."""
    serve_gains, hold_gains, serve_weights, hold_weights = choices
    n = serve_gains.size
    base = memory_price * capacity + slot_price * slots
    total = 0.0
    size = 2.0 * base
    for i in range(n):
        served = serve_gains[i] - memory_price * serve_weights[i] - slot_price
        held = hold_gains[i] - memory_price * hold_weights[i]
        if served > 0.0 and served >= held:
            total += served
            size += abs(serve_gains[i]) + memory_price * serve_weights[i] + slot_price
        elif held > 0.0:
            total += held
            size += abs(hold_gains[i]) + memory_price * hold_weights[i]
    return base + total + UNIT_ROUNDOFF * (n + 8) * size


class _Moves(NamedTuple):
    """Changes of one request each, (m,): the request, its new action, and what that changes."""

    requests: NDArray[np.int64]
    new: NDArray[np.int8]
    gain: NDArray[np.float64]
    tokens: NDArray[np.int64]
    slots: NDArray[np.int64]
    places: NDArray[np.int64]

    @classmethod
    def all(cls, step: ThreeWayStep, action: NDArray[np.int8]) -> _Moves:
        """Every possible change of one request."""
        n = action.size
        requests = np.arange(n)
        gains = np.stack([np.zeros(n), step.serve_gains, step.hold_gains])
        weights = np.stack([np.zeros(n, dtype=np.int64), step.serve_weights, step.hold_weights])
        value, tokens = gains[action, requests], weights[action, requests]
        served, taken = (action == Action.SERVE).astype(np.int64), (action != Action.WAIT)
        found = []
        for new in (Action.WAIT, Action.SERVE, Action.HOLD):
            who = np.flatnonzero((action != new) & np.isfinite(gains[new]))
            found.append(
                (
                    who,
                    np.full(who.size, new, dtype=np.int8),
                    gains[new][who] - value[who],
                    weights[new][who] - tokens[who],
                    int(new == Action.SERVE) - served[who],
                    int(new != Action.WAIT) - taken[who].astype(np.int64),
                )
            )
        return cls(*(np.concatenate(column) for column in zip(*found, strict=True)))


def _room(step: ThreeWayStep, action: NDArray[np.int8]) -> tuple[int, int, int]:
    """Tokens, slots and places that are free."""
    return (
        step.capacity - step.used(action),
        step.slots - int((action == Action.SERVE).sum()),
        step.places - int(np.count_nonzero(action)),
    )


def _fill(
    step: ThreeWayStep, action: NDArray[np.int8], memory_price: float, slot_price: float
) -> None:
    """Single moves that gain and fit, the most worthwhile at the prices first."""
    while True:
        moves = _Moves.all(step, action)
        free, open_slots, open_places = _room(step, action)
        useful = np.flatnonzero(
            (moves.gain > 0)
            & (moves.tokens <= free)
            & (moves.slots <= open_slots)
            & (moves.places <= open_places)
        )
        if useful.size == 0:
            return
        worth = moves.gain - memory_price * moves.tokens - slot_price * moves.slots
        useful = useful[np.argsort(-worth[useful], kind="stable")]
        touched = set()
        for request, choice, tokens, slots, places in zip(
            moves.requests[useful].tolist(),
            moves.new[useful].tolist(),
            moves.tokens[useful].tolist(),
            moves.slots[useful].tolist(),
            moves.places[useful].tolist(),
            strict=True,
        ):
            fits = tokens <= free and slots <= open_slots and places <= open_places
            if fits and request not in touched:
                action[request] = choice
                touched.add(request)
                free -= tokens
                open_slots -= slots
                open_places -= places


def _exchange(
    step: ThreeWayStep, action: NDArray[np.int8], memory_price: float, slot_price: float
) -> bool:
    """The best pair of moves of two requests, one that gains and one that gives room."""
    moves = _Moves.all(step, action)
    requests, gain = moves.requests, moves.gain
    worth = gain - memory_price * moves.tokens - slot_price * moves.slots
    order = np.argsort(-worth, kind="stable")
    gives = (moves.tokens < 0) | (moves.slots < 0) | (moves.places < 0)
    ups = order[gain[order] > 0][:_EXCHANGED]
    downs = order[(gain[order] <= 0) & gives[order]][:_EXCHANGED]
    total = gain[ups][:, None] + gain[downs][None, :]
    possible = (requests[ups][:, None] != requests[downs][None, :]) & (total > 0)
    for taken, room in zip(
        (moves.tokens, moves.slots, moves.places), _room(step, action), strict=True
    ):
        possible &= taken[ups][:, None] + taken[downs][None, :] <= room
    if not possible.any():
        return False
    up, down = np.unravel_index(np.argmax(np.where(possible, total, -np.inf)), total.shape)
    for move in (ups[up], downs[down]):
        action[requests[move]] = moves.new[move]
    return True
