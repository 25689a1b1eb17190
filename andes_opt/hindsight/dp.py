"""
The best service of a single request at given prices: the inner problem of the hindsight bound.

:mod:`andes_opt.hindsight` puts prices on engine time and lets every request buy the service that
is worth most to it. This module finds that service by dynamic programming over the request's
tokens and their lateness. It rounds in the request's favour throughout, so that the result is an
upper bound on every grid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from andes_opt.compilation import jit
from andes_opt.qoe import token_window_area

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Seconds by which slot boundaries are moved in the request's favour, so that rounding of a
#: time can't put work into a slot with a higher price than its own.
_BLUR_S = 1e-7


@jit
def cheapest_so_far(
    arrival_s: float, prices: NDArray[np.float64], slot_s: float, out: NDArray[np.float64]
) -> int:
    """
    The lowest price between a request's arrival and the end of each slot.

    Parameters
    ----------
    arrival_s
        The arrival.
    prices
        Price of a second of engine time in each slot, (slots,), >= 0.
    slot_s
        Seconds of a slot; the first starts at 0.
    out
        Overwritten from the returned slot on: the running minimum.

    Returns
    -------
    int
        The slot of the arrival; the number of slots if it lies behind them all.
    """
    first = int(max(0.0, arrival_s - _BLUR_S) / slot_s)
    lowest = np.inf
    for slot in range(first, prices.size):
        lowest = min(lowest, prices[slot])
        out[slot] = lowest
    return min(first, prices.size)


@jit
def _most_profit(
    arrival_s: float,
    ttft_s: float,
    tds: float,
    work_s: NDArray[np.float64],
    earliest_s: NDArray[np.float64],
    lowest: NDArray[np.float64],
    slot_s: float,
    after: NDArray[np.float64],
) -> float:
    """
    Upper bound on window QoE minus the price of the work, over all services of a request.

    Cell 0 stands for lateness 0, cell k for lateness in ((k-1) width, k width]. ``after``
    is scratch: on return, ``after[k]`` is the profit of the whole reply if nothing is less
    late than cell k.
    """
    n = work_s.size
    cells = after.size - 1
    width_s = n / tds / cells
    horizon_s = ttft_s + n / tds
    scale = 2.0 * tds / (float(n) * n)
    after[:] = 0.0
    for j in range(n - 1, -1, -1):
        due_s = ttft_s + j / tds
        best = 0.0  # stop before this token
        for k in range(cells, -1, -1):
            latest_s = due_s + k * width_s
            if latest_s + _BLUR_S < earliest_s[j]:
                break  # and so are all cells of less lateness: out of reach
            soonest_s = max(due_s + max(0, k - 1) * width_s, earliest_s[j])
            slot = int((arrival_s + latest_s + _BLUR_S) / slot_s)
            price = lowest[slot] if slot < lowest.size else 0.0
            value = scale * token_window_area(horizon_s - soonest_s, tds)
            best = max(best, value - price * work_s[j] + after[k])
            after[k] = best
        else:
            continue
        # The cells out of reach at this token fall to the first one in reach.
        after[: k + 1] = best
    return after[0]


@jit
def most_profits(
    arrival_s: NDArray[np.float64],
    ttft_s: NDArray[np.float64],
    tds: NDArray[np.float64],
    offsets: NDArray[np.int64],
    work_s: NDArray[np.float64],
    earliest_s: NDArray[np.float64],
    prices: NDArray[np.float64],
    slot_s: float,
    cells: int,
) -> NDArray[np.float64]:
    """
    For each request, the most window QoE it can get minus what the work for it costs.

    Parameters
    ----------
    arrival_s, ttft_s, tds
        The requests, (n,).
    offsets
        Request i's tokens are ``offsets[i]`` to ``offsets[i + 1]`` of the next two, (n + 1,).
    work_s
        Least engine time that each token takes: its share of the iteration.
    earliest_s
        Seconds since arrival before which no engine can deliver each token.
    prices, slot_s
        Price of a second of engine time by slot, (slots,); 0 behind the last slot.
    cells
        Cells of the lateness grid. More make the bound tighter; any number leaves it valid.

    Returns
    -------
    NDArray[np.float64]
        Upper bounds >= 0, (n,).
    """
    profit = np.empty(arrival_s.size)
    lowest = np.zeros(prices.size)
    after = np.empty(cells + 1)
    for i in range(arrival_s.size):
        cheapest_so_far(arrival_s[i], prices, slot_s, lowest)
        tokens = slice(offsets[i], offsets[i + 1])
        profit[i] = _most_profit(
            arrival_s[i],
            ttft_s[i],
            tds[i],
            work_s[tokens],
            earliest_s[tokens],
            lowest,
            slot_s,
            after,
        )
    return profit
