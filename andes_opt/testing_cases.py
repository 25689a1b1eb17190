"""The instances of the conformance checks, and their optimum by plain enumeration."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from andes_opt.instance import GainTable, Instance

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: Most requests that :func:`enumerate_optimum` accepts.
MAX_ENUMERATED = 12

#: Kinds of gains that :func:`random_instance` makes.
KINDS = ("monotone", "negative", "non-monotone")


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """
    A named instance with its optimum.

    Parameters
    ----------
    name
        What the case is about.
    instance
        The instance.
    optimum
        Largest value over all batch sizes; -inf if no plan exists.
    """

    name: str
    instance: Instance
    optimum: float


def enumerate_optimum(instance: Instance) -> float:
    """
    The optimum of a small instance by trying every selection at every batch size.

    Parameters
    ----------
    instance
        At most 12 requests.

    Returns
    -------
    float
        The optimum; -inf if no plan exists.

    Raises
    ------
    ValueError
        If the instance has more than 12 requests.
    """
    n = instance.num_requests
    if n > MAX_ENUMERATED:
        raise ValueError(f"{n} requests are too many to enumerate: at most {MAX_ENUMERATED}.")
    selections = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    counts = selections.sum(axis=1)
    fits = selections @ instance.weights <= instance.capacity

    best = -math.inf
    for batch_size in range(instance.min_batch, instance.max_batch + 1):
        allowed = fits & (counts == batch_size if instance.exactly else counts <= batch_size)
        if allowed.any():
            values = selections[allowed] @ instance.gains_at(batch_size)
            best = max(best, float(values.max()))
    return best


@functools.cache
def cases() -> tuple[Case, ...]:
    """The conformance cases: named odd ones, and random ones of several kinds."""
    named = [(name, make()) for name, make in _NAMED.items()]
    for kind, exactly, seed in itertools.product(KINDS, (False, True), range(4)):
        title = f"random, {kind}{', exactly' if exactly else ''} #{seed}"
        named.append((title, random_instance(seed, kind=kind, exactly=exactly)))
    return tuple(Case(name, instance, enumerate_optimum(instance)) for name, instance in named)


def _case(
    weights: list[int],
    capacity: int,
    batches: tuple[int, int],
    rows: list[list[float]],
    *,
    exactly: bool = False,
) -> Instance:
    """An instance whose rows start at the smallest batch size; the last row is repeated."""
    low, high = batches
    rows = rows + rows[-1:] * (high - low + 1 - len(rows))
    values = np.array(rows, dtype=np.float64).reshape(high - low + 1, len(weights))
    return Instance(
        np.array(weights, dtype=np.int64), capacity, low, high, GainTable(values, low), exactly
    )


_NAMED: Mapping[str, Callable[[], Instance]] = {
    "no requests": lambda: _case([], 100, (0, 5), [[]]),
    "no requests, at least one slot": lambda: _case([], 100, (1, 5), [[]]),
    "no requests, exactly none": lambda: _case([], 100, (0, 3), [[]], exactly=True),
    "no requests, exactly one": lambda: _case([], 100, (1, 3), [[]], exactly=True),
    "no memory": lambda: _case([3, 4], 0, (1, 2), [[1, 1]]),
    "no slots": lambda: _case([3, 4], 100, (0, 0), [[1, 1]]),
    "nothing fits": lambda: _case([30, 40, 50], 29, (1, 3), [[1, 2, 3]]),
    "nothing fits, exactly none": lambda: _case([30, 40], 29, (0, 2), [[1, 2]], exactly=True),
    "nothing fits, exactly one": lambda: _case([30, 40], 29, (1, 2), [[1, 2]], exactly=True),
    "everything fits": lambda: _case([3, 4, 5], 100, (1, 3), [[1, 2, 3]]),
    "everything fits just": lambda: _case([3, 4, 5], 12, (1, 3), [[1, 2, 3]]),
    "everything but one token fits": lambda: _case([3, 4, 5], 11, (1, 3), [[1, 2, 3]]),
    "one request": lambda: _case([7], 7, (1, 1), [[0.5]]),
    "one misfit that greedy takes": lambda: _case([1, 100], 100, (1, 2), [[0.02, 1]]),
    "slots bind, memory doesn't": lambda: _case(
        [1, 1, 9, 9, 9], 100, (1, 2), [[1, 1.1, 5, 6, 7], [0.9, 1, 4, 5, 6]]
    ),
    "both bind": lambda: _case(
        [2, 3, 4, 7, 8, 9], 20, (1, 4), [[2, 2.9, 4.1, 6.9, 8.2, 9], [1.9, 2.8, 4, 6.8, 8, 8.8]]
    ),
    "all requests alike": lambda: _case([5] * 8, 21, (1, 8), [[1.0] * 8]),
    "equal weights": lambda: _case([5] * 6, 16, (1, 6), [[3, 1, 2, 6, 5, 4]]),
    "equal densities": lambda: _case([2, 4, 6, 8, 10], 17, (1, 5), [[1, 2, 3, 4, 5]]),
    "subset sum": lambda: _case(
        [31, 37, 41, 43, 47, 53, 59, 61], 149, (1, 8), [[31, 37, 41, 43, 47, 53, 59, 61]]
    ),
    "no gain": lambda: _case([1, 2, 3], 6, (1, 3), [[0, 0, 0]]),
    "only losses": lambda: _case([1, 2, 3], 6, (1, 3), [[-1, -2, -0.5]]),
    "only losses, exactly two": lambda: _case([1, 2, 3], 6, (2, 2), [[-1, -2, -0.5]], exactly=True),
    "gains and losses": lambda: _case([1, 2, 3, 4], 6, (1, 4), [[1, -2, 3, -0.5]]),
    "larger batches are worthless": lambda: _case(
        [1, 1, 1, 1], 4, (1, 4), [[3, 2, 1, 1], [1, 1, 0.5, 0.5], [0.1] * 4, [-1] * 4]
    ),
    "more slots than requests": lambda: _case([2, 3, 4], 7, (1, 40), [[1, 2, 2.5]]),
    "more slots than requests, exactly": lambda: _case(
        [2, 3, 4], 7, (1, 40), [[1, 2, 2.5]], exactly=True
    ),
    "more slots than requests, and better": lambda: _case(
        [2, 3, 4], 7, (1, 6), [[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1], [4, 5, 6]]
    ),
    "at least more slots than requests": lambda: _case([2, 3], 9, (5, 7), [[1, 2], [0.5, 1]]),
    "at least more slots than requests, exactly": lambda: _case(
        [2, 3], 9, (5, 7), [[1, 2]], exactly=True
    ),
    "exactly two of which only the lightest fit": lambda: _case(
        [2, 3, 40, 50], 5, (2, 2), [[0.1, 0.1, 9, 9]], exactly=True
    ),
    "exactly three, too heavy": lambda: _case([20, 30, 40], 89, (3, 3), [[1, 2, 3]], exactly=True),
    "exactly, larger batches don't fit": lambda: _case(
        [5, 6, 7, 8], 18, (2, 4), [[1, 2, 3, 4], [1, 2, 3, 4], [9, 9, 9, 9]], exactly=True
    ),
    "exactly two at a loss": lambda: _case(
        [5, 6, 7, 8], 14, (2, 4), [[-1, 2, -3, -4], [-2, 1, -3, -5]], exactly=True
    ),
    "best at the largest batch": lambda: _case(
        [2, 3, 4], 9, (1, 3), [[1, 1, 1], [0.5, 3, 1], [3, 3, 3]]
    ),
    "worse in the middle": lambda: _case(
        [2, 3, 4, 5], 14, (1, 4), [[9, 9, 9, 10], [1, 1, 1, 1], [1, 1, 1, 1], [3, 3, 3, 2]]
    ),
    "tiny and huge gains": lambda: _case(
        [3, 4, 5, 6], 11, (1, 3), [[1e-7, 2e-7, 1e6, 1.5e6], [1e-7, 1e-7, 9e5, 1e6]]
    ),
    "tiny gains": lambda: _case([3, 4, 5, 6], 11, (1, 3), [[1e-7, 3e-7, 2e-7, 4e-7]]),
    "blocks of sixteen": lambda: _case(
        [16, 32, 48, 64, 160], 224, (1, 4), [[0.2, 0.3, 0.55, 0.7, 1.9]]
    ),
}


def random_instance(seed: int, *, kind: str = "monotone", exactly: bool = False) -> Instance:
    """
    A random instance small enough to enumerate: 6 to 9 requests, 1 to 5 batch sizes.

    Parameters
    ----------
    seed
        Seed, >= 0.
    kind
        ``"monotone"``: positive gains, none of which rises with the batch size;
        ``"negative"``: the same, but many are negative; ``"non-monotone"``: positive gains that
        rise and fall.
    exactly
        Whether plans serve exactly as many requests as the batch size.

    Raises
    ------
    ValueError
        If the kind is unknown.
    """
    if kind not in KINDS:
        raise ValueError(f"kind = {kind!r} not understood: need one of {', '.join(KINDS)}.")
    rng = np.random.default_rng([seed, KINDS.index(kind), exactly])
    n = int(rng.integers(6, 10))
    weights = rng.integers(1, 60, n)
    capacity = int(weights.sum() * rng.uniform(0.2, 0.7))
    min_batch = int(rng.integers(1, 4))
    max_batch = min_batch + int(rng.integers(0, 5))
    table = rng.uniform(0, 1, (max_batch - min_batch + 1, n)) * (0.3 + weights / 60)
    if kind == "negative":
        table -= 0.4
    if kind != "non-monotone":
        table = np.sort(table, axis=0)[::-1]
    return Instance(weights, capacity, min_batch, max_batch, GainTable(table, min_batch), exactly)


def large_instance(n: int) -> Instance:
    """
    An instance on which memory and slots both bind, with ragged numbers and unknown optimum.

    Parameters
    ----------
    n
        Number of requests, >= 1.
    """
    rng = np.random.default_rng(n)
    weights = rng.integers(20, 900, n)
    worth = rng.uniform(0.2, 1.0, n) * (0.5 + weights / 900)
    sizes = np.arange(1, max(2, n // 2) + 1)
    table = worth * (1.2 - sizes / sizes.size)[:, None] - 0.01
    return Instance(
        weights, int(0.35 * weights.sum()), 1, int(sizes[-1]), GainTable(table, 1), False
    )
