"""
Lagrangian prices of one batch size: what a token of KV memory and a slot are worth.

For fixed B, put a price lambda >= 0 on memory and mu on slots. For every plan x that
respects both limits

    sum g_i x_i  <=  lambda M + mu B + sum max(0, g_i - lambda w_i - mu)  =:  L(lambda, mu),

so any pair of prices proves an upper bound (mu >= 0 for "at most B"; any mu for "exactly
B"). The best pair is the dual of the linear relaxation: for given lambda the best mu is the
B-th largest of g_i - lambda w_i, and in lambda alone L is convex and piecewise linear, so
a one-dimensional cutting-plane search (intersect the steepest line known on either side)
ends at the minimum after a handful of evaluations (Kellerer, Pferschy, Pisinger, *Knapsack
Problems*, Springer 2004, sections 3.3, 5.2 and 9.3 on cardinality).

Bounds are safe against rounding: an allowance for every operation that went into the sum
is added, about 1e-12 of the value at n = 1000.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from andes_opt.compilation import jit
from solvers._exact.jit import as_bool
from solvers._exact.prices import evaluate_prices, find_prices
from solvers._exact.problem import Dual, Knapsack

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def dual_bound(
    gains: ArrayLike, weights: ArrayLike, capacity: int, slots: int, *, exactly: bool = False
) -> tuple[float, float, float]:
    """
    Best Lagrangian bound at one batch size, with its prices.

    Parameters
    ----------
    gains
        Gains at this batch size, (n,).
    weights
        KV tokens, (n,), >= 1.
    capacity
        KV tokens there are.
    slots
        The batch size B: most requests served, or their exact number.
    exactly
        If False the bound holds for plans of at most ``slots`` requests and the slot price
        is >= 0; if True it holds for plans of exactly ``slots`` requests only, and
        the slot price may be negative.

    Returns
    -------
    bound, memory_price, slot_price
        An upper bound on the value (-inf if ``exactly`` is impossible), the price of a KV
        token, and the price of a slot.
    """
    gains_array, weights_array = _arrays(gains, weights)
    n = gains_array.size
    if exactly:
        lightest = np.sort(weights_array)[:slots]
        if slots > n or lightest.sum() > capacity:
            return -np.inf, 0.0, 0.0
    bound, memory_price, slot_price = _best_prices(
        gains_array, weights_array, float(capacity), min(slots, n), exactly
    )
    return float(bound), float(memory_price), float(slot_price)


def price_bound(
    gains: ArrayLike,
    weights: ArrayLike,
    capacity: int,
    slots: int,
    memory_price: float,
    slot_price: float,
) -> float:
    """
    The bound L(memory_price, slot_price) that given prices prove at one batch size.

    It holds for plans of exactly ``slots`` requests, and for plans of at most ``slots`` if
    ``slot_price`` >= 0. Prices found for another batch size are welcome: any pair is valid.

    Parameters
    ----------
    gains, weights, capacity, slots
        As for :func:`dual_bound`.
    memory_price
        Price of a KV token, >= 0.
    slot_price
        Price of a slot.

    Raises
    ------
    ValueError
        If the memory price is negative or a price is not finite.
    """
    if not (0 <= memory_price < np.inf and np.isfinite(slot_price)):
        raise ValueError(f"prices ({memory_price}, {slot_price}) not understood.")
    gains_array, weights_array = _arrays(gains, weights)
    return float(
        _bound(gains_array, weights_array, float(capacity), slots, memory_price, slot_price)
    )


def _arrays(gains: ArrayLike, weights: ArrayLike) -> tuple[NDArray[np.float64], ...]:
    return (
        np.ascontiguousarray(gains, dtype=np.float64),
        np.ascontiguousarray(weights, dtype=np.float64),
    )


@jit
def _best_prices(
    gains: NDArray[np.float64],
    weights: NDArray[np.float64],
    capacity: float,
    slots: int,
    exactly: bool,
) -> Dual:
    knapsack = Knapsack(gains, weights, capacity, slots, exactly)
    return find_prices(knapsack, -1.0, np.empty((5, gains.size)))


@jit
def _bound(
    gains: NDArray[np.float64],
    weights: NDArray[np.float64],
    capacity: float,
    slots: int,
    memory_price: float,
    slot_price: float,
) -> float:
    knapsack = Knapsack(gains, weights, capacity, slots, as_bool(False))
    return evaluate_prices(knapsack, memory_price, slot_price)
