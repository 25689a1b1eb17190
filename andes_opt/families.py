"""
Named families of random instances, for benchmarks and tests of solvers.

``make(family, n, seed)`` gives the same instance for the same arguments on every machine
with the same numpy. In the *forecast* families the gains are QoE forecasts of random readers (of
the populations in :mod:`andes_opt.readers`; waiting, running and preempted) with ShareGPT-like
lengths. The others are tables of numbers, each of which is difficult in one way.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from andes_opt import checks
from andes_opt.forecast import QoEForecast
from andes_opt.formulation import most_that_fit
from andes_opt.instance import GainTable, Instance
from andes_opt.latency import LatencyModel
from andes_opt.lengths import TableLengths
from andes_opt.readers import Mixture, reading, speaking

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

#: What each family is, by name.
FAMILIES: dict[str, str] = {
    "hard": "QoE forecasts; compute and memory both bind; memory fits 20-45 % of all context",
    "memory_only": "QoE forecasts on a fast engine: only memory binds",
    "batch_only": "QoE forecasts with memory for everyone: only the batch size binds",
    "tight": "as hard, but memory fits only 5-10 % of all context",
    "blocks": "as hard, with weights and capacity in whole blocks of 16 tokens",
    "equal_weights": "as hard, but every request needs the same memory",
    "preemption_cost": "as hard, plus a constant per resident request and a restore cost per slot",
    "subset_sum": "adversarial: gain proportional to weight, even weights, odd capacity",
    "strongly_correlated": "adversarial: gain = weight + constant, usually with n <= 200",
    "profit_ceiling": "adversarial: gain = weight rounded up to a multiple of 3",
    "circle": "adversarial: gain on a circle arc over weight, all efficient requests alike",
    "few_weights": "adversarial: weights are small multiples of two large numbers",
    "ties": "small integers as gains and weights: many optimal plans",
    "negative": "gains of either sign that fall with the batch size",
    "not_monotone": "gains that rise and fall with the batch size, without a pattern",
    "exactly": "as hard, but exactly B requests must be served, B from a narrow range",
    "exactly_negative": "random gains of either sign, exactly B requests, wide range of B",
}

#: The families that the certification study runs: at least six kinds of difficulty.
ADVERSARIAL = ("subset_sum", "strongly_correlated", "profit_ceiling", "circle", "few_weights")

_DT_S = 50.0


def make(family: str, n: int, seed: int) -> Instance:
    """
    One instance of a family.

    Parameters
    ----------
    family
        A key of :data:`FAMILIES`.
    n
        Number of requests, >= 0.
    seed
        Seed, >= 0. Equal arguments give equal instances; different families are
        independent of each other for the same seed.

    Raises
    ------
    ValueError
        If the family is unknown, or n or the seed is negative.
    """
    if family not in FAMILIES:
        raise ValueError(f"family = {family!r} not understood: need one of {', '.join(FAMILIES)}.")
    checks.whole("n", n, 0)
    checks.seed("seed", seed)
    # A hash that is the same in every process, unlike hash().
    rng = np.random.default_rng([zlib.crc32(family.encode()), n, seed])
    return _MAKERS[family](rng, n)


def _forecast_instance(
    rng: np.random.Generator,
    n: int,
    *,
    memory: tuple[float, float] = (0.20, 0.45),
    compute_binds: bool = True,
    block_tokens: int = 1,
    equal: bool = False,
    exactly: bool = False,
    costs: bool = False,
) -> Instance:
    """An instance of random readers on an engine; see :data:`FAMILIES`."""
    prompt, output = TableLengths("sharegpt").sample(rng, n)
    share = rng.uniform(0.0, 1.0)
    readers = Mixture([reading(), speaking()], [max(share, 0.01), max(1 - share, 0.01)])
    ttft_s, tds = readers.sample(rng, prompt)

    # Three kinds of requests. Waiting: nothing yet. Running: text comes, on average as fast
    # as it is read. Preempted: text came, then stopped; its memory must come back.
    kind = rng.choice(3, size=n, p=[0.35, 0.45, 0.20])
    age_s = np.where(kind == 0, rng.exponential(6.0, n), ttft_s + rng.exponential(40.0, n))
    speed = tds * rng.uniform(0.4, 1.6, n)
    produced = np.minimum(np.floor(speed * np.maximum(age_s - ttft_s, 0.0)), output - 1.0)
    delivered = np.where(kind == 0, 0.0, np.maximum(produced, 0.0))
    readable = tds * np.maximum(age_s - ttft_s, 0.0)
    digested = np.minimum(delivered, readable) * rng.uniform(0.7, 1.0, n)
    # The area lies between that of reading at the last moment and that of reading at once.
    fastest = digested * np.maximum(age_s - ttft_s - 0.5 * digested / tds, 0.0)
    slowest = 0.5 * digested**2 / tds
    area = slowest + rng.uniform(0.0, 1.0, n) * np.maximum(fastest - slowest, 0.0)
    context = prompt + delivered.astype(np.int64)
    restore_s = np.where(kind == 0, 1.5e-4 * prompt, 0.0) + np.where(
        kind == 2, 3e-5 * context + 0.02, 0.0
    )

    weights = context + block_tokens
    weights = -(-weights // block_tokens) * block_tokens
    if equal:
        weights = np.full(n, 320, dtype=np.int64)
    total = int(weights.sum())
    capacity = int(total * rng.uniform(*memory)) // block_tokens * block_tokens
    mean = total / n if n else 0.0
    fits = max(1.0, capacity / mean) if n else 1.0
    if compute_binds:
        # Iteration time reaches the readers' speed at 1.0-1.6 times the number of requests that
        # fit by mean weight, so that both bind: with less memory only memory would, with more
        # only the batch size.
        per_request_s = (0.21 - 0.06) / (fits * rng.uniform(1.0, 1.6))
        latency = LatencyModel(0.060, per_request_s, 4e-7, 1.5e-4)
    else:
        latency = LatencyModel(0.020, 1e-6, 1e-9, 1e-5)
    gains: QoEForecast | GainTable = QoEForecast(
        age_s,
        delivered,
        digested,
        area,
        ttft_s,
        tds,
        restore_s,
        dt_s=_DT_S,
        latency=latency,
        capacity_tokens=capacity,
        mean_need_tokens=mean,
    )
    most = most_that_fit(weights, capacity)
    first, last = 1, max(1, most)
    if exactly:
        first = max(1, int(0.6 * min(fits, most)))
        last = max(first, min(most, int(1.1 * fits)))
    if costs and n:
        constant = np.where(kind == 1, 0.05 * rng.random(n), 0.0)
        slope = np.where(kind != 1, 2e-5 * restore_s, 0.0)
        others = np.arange(first, last + 1)[:, None] - 1
        gains = GainTable(gains.table(first, last) + constant - slope * others, first)
    return Instance(weights, capacity, first, last, gains, exactly)


def _falling(
    rng: np.random.Generator, base: NDArray[np.float64], last: int, strength: float = 0.5
) -> GainTable:
    """A table (last + 1, n) that starts at ``base`` and never rises with the batch size."""
    n = base.size
    steps = rng.random((last + 1, 1)) * rng.uniform(0.5, 1.5, (last + 1, n))
    steps[0] = 0.0
    fall = np.cumsum(steps, axis=0)
    span = np.abs(base).max(initial=1.0) * strength / max(fall.max(initial=1.0), 1e-9)
    return GainTable(base - span * fall, 0)


def _adversarial(
    rng: np.random.Generator,
    n: int,
    weights: NDArray[np.int64],
    gains: NDArray[np.floating[Any]],
) -> Instance:
    """Gains that do not fall with B, so that the knapsack alone is hard."""
    total = int(weights.sum())
    capacity = min(200_000, max(1, int(total * rng.uniform(0.25, 0.6))))
    last = max(1, int(n * rng.uniform(0.2, 1.0)))
    table = np.broadcast_to(gains, (last, n)) if rng.random() < 0.5 else None
    if table is None:
        # A slow common fall keeps the difficulty at every batch size.
        table = gains * (1.0 - 0.05 * np.linspace(0.0, 1.0, last)[:, None])
    return Instance(weights, capacity, 1, last, GainTable(table, 1))


def _subset_sum(rng: np.random.Generator, n: int) -> Instance:
    weights = 2 * rng.integers(50, 10_000, n)
    instance = _adversarial(rng, n, weights, weights / 1000.0)
    return Instance(
        instance.weights,
        instance.capacity | 1,
        instance.min_batch,
        instance.max_batch,
        instance.gains,
    )


def _strongly_correlated(rng: np.random.Generator, n: int) -> Instance:
    weights = rng.integers(1, 20_000, n)
    return _adversarial(rng, n, weights, (weights + 2_000.0) / 1000.0)


def _profit_ceiling(rng: np.random.Generator, n: int) -> Instance:
    weights = rng.integers(1, 20_000, n)
    return _adversarial(rng, n, weights, np.ceil(weights / 3.0) * 0.003)


def _circle(rng: np.random.Generator, n: int) -> Instance:
    # Pisinger's circle instances: g = d sqrt(R^2 - (w - 2R)^2), weights up to R.
    radius = 20_000
    weights = rng.integers(1, radius, n)
    gains = np.sqrt(4.0 * radius**2 - (weights - 2.0 * radius) ** 2) / 1500.0
    return _adversarial(rng, n, weights, gains)


def _few_weights(rng: np.random.Generator, n: int) -> Instance:
    base = rng.integers(500, 2_000, 2)
    weights = base[rng.integers(0, 2, n)] * rng.integers(1, 10, n)
    return _adversarial(rng, n, weights, weights / 1000.0 + rng.random(n) * 0.1)


def _ties(rng: np.random.Generator, n: int) -> Instance:
    weights = rng.integers(1, 6, n)
    base = rng.integers(0, 5, n).astype(np.float64)
    last = max(1, int(n * rng.uniform(0.3, 1.2)))
    fall = np.cumsum(rng.random((last + 1, n)) < 0.5 / last, axis=0)
    capacity = int(weights.sum() * rng.uniform(0.1, 0.7))
    return Instance(weights, capacity, 0, last, GainTable(base - fall, 0))


def _negative(rng: np.random.Generator, n: int) -> Instance:
    weights = rng.integers(1, 1_000, n)
    last = max(1, int(n * rng.uniform(0.3, 1.2)))
    table = _falling(rng, rng.normal(0.1, 0.4, n), last)
    return Instance(weights, int(weights.sum() * rng.uniform(0.1, 0.6)), 0, last, table)


def _not_monotone(rng: np.random.Generator, n: int) -> Instance:
    weights = rng.integers(1, 1_000, n)
    last = max(1, int(n * rng.uniform(0.2, 0.6)))
    drift = np.cumsum(rng.normal(0.0, 0.02, (last + 1, n)), axis=0)
    table = GainTable(rng.normal(0.3, 0.3, n) + drift, 0)
    return Instance(weights, int(weights.sum() * rng.uniform(0.1, 0.5)), 0, last, table)


def _exactly_negative(rng: np.random.Generator, n: int) -> Instance:
    weights = rng.integers(1, 1_000, n)
    last = max(1, int(n * rng.uniform(0.3, 0.8)))
    table = _falling(rng, rng.normal(-0.1, 0.4, n), last)
    capacity = int(weights.sum() * rng.uniform(0.1, 0.6))
    return Instance(weights, capacity, max(0, last // 4), last, table, True)


_MAKERS: dict[str, Callable[[np.random.Generator, int], Instance]] = {
    "hard": _forecast_instance,
    "memory_only": lambda rng, n: _forecast_instance(rng, n, compute_binds=False),
    "batch_only": lambda rng, n: _forecast_instance(rng, n, memory=(1.01, 1.2)),
    "tight": lambda rng, n: _forecast_instance(rng, n, memory=(0.05, 0.10)),
    "blocks": lambda rng, n: _forecast_instance(rng, n, block_tokens=16),
    "equal_weights": lambda rng, n: _forecast_instance(rng, n, equal=True),
    "preemption_cost": lambda rng, n: _forecast_instance(rng, n, costs=True),
    "subset_sum": _subset_sum,
    "strongly_correlated": _strongly_correlated,
    "profit_ceiling": _profit_ceiling,
    "circle": _circle,
    "few_weights": _few_weights,
    "ties": _ties,
    "negative": _negative,
    "not_monotone": _not_monotone,
    "exactly": lambda rng, n: _forecast_instance(rng, n, exactly=True),
    "exactly_negative": _exactly_negative,
}
