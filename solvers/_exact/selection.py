"""The k-th largest of many numbers, which is what a slot price is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from andes_opt.compilation import jit
from solvers._exact.jit import as_int, inner, part

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SAMPLE = 64


@part
def slot_price_of(
    scores: NDArray[np.float64],
    top: float,
    count: int,
    slots: int,
    exactly: bool,
    spare: NDArray[np.float64],
) -> float:
    """
    The best slot price at a memory price: the ``slots``-th largest score.

    Parameters
    ----------
    scores
        What each request is worth beyond the memory that it takes; the first ``count``
        entries, which may be reordered.
    top
        The largest score.
    count, slots
        Requests and slots.
    exactly
        If False the price is >= 0, and 0 where there are slots for all.
    spare
        Scratch, (count,).
    """
    price = 0.0
    if slots == 0:
        price = top
    elif slots < count:
        price = kth_largest(scores, count, slots, spare)
    elif exactly:
        price = kth_largest(scores, count, count, spare)
    return price if exactly else max(price, 0.0)


@jit(error_model="numpy")
def kth_largest(values: NDArray[np.float64], n: int, k: int, spare: NDArray[np.float64]) -> float:
    """
    The k-th largest (1 <= k <= n) of ``values[:n]``, which it may reorder.

    Long inputs are first cut down by two pivots from a sample that enclose the rank in all
    likelihood (Floyd and Rivest 1975); the pass has no branch to mispredict.
    """
    if n > 4 * _SAMPLE:
        stride = n // _SAMPLE
        for j in range(_SAMPLE):
            spare[j] = values[j * stride]
        _sort_descending(spare, as_int(0), as_int(_SAMPLE - 1))
        rank = k * _SAMPLE // n
        upper = spare[rank - _SAMPLE // 10] if rank >= _SAMPLE // 10 else np.inf
        reach = rank + _SAMPLE // 10
        lower = spare[reach] if reach < _SAMPLE else -np.inf
        above = as_int(0)
        kept = as_int(0)
        for i in range(n):
            value = values[i]
            above += value > upper
            spare[kept] = value
            kept += (value <= upper) & (value >= lower)
        if above < k <= above + kept:
            return _quickselect(spare, kept, k - above)
    return _quickselect(values, n, k)


@inner
def _quickselect(values: NDArray[np.float64], n: int, k: int) -> float:
    low = as_int(0)
    high = n - 1
    target = k - 1
    while high - low > 16:
        middle = (low + high) >> 1
        a, b, c = values[low], values[middle], values[high]
        pivot = max(min(a, b), min(max(a, b), c))
        i = low
        j = high
        while i <= j:
            while values[i] > pivot:
                i += 1
            while values[j] < pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if target <= j:
            high = j
        elif target >= i:
            low = i
        else:
            return values[target]
    _sort_descending(values, low, high)
    return values[target]


@inner
def _sort_descending(values: NDArray[np.float64], low: int, high: int) -> None:
    for i in range(low + 1, high + 1):
        value = values[i]
        j = i - 1
        while j >= low and values[j] < value:
            values[j + 1] = values[j]
            j -= 1
        values[j + 1] = value
