"""From a snapshot to the knapsack of one scheduling step (docs/model.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from andes_opt.compilation import jit
from andes_opt.forecast import mean_tokens
from andes_opt.gains import token_rate
from andes_opt.instance import Instance

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from andes_opt.objective import Objective
    from andes_opt.snapshot import Snapshot


def step_instance(
    snapshot: Snapshot,
    objective: Objective,
    *,
    exactly: bool = False,
    prune_batch: bool = True,
    blocks: bool = True,
) -> Instance:
    """
    The knapsack of one scheduling step.

    Weights are the KV tokens that requests hold if served. max_batch is the engine's
    limit, or the most requests that fit if that is less. min_batch is 1, or with
    ``prune_batch`` the largest batch whose iteration is faster than the strictest
    reader (Andes, arXiv 2404.16283v1, section 4: batch size pruning): below it every
    gain is the same. Pruning applies only to objectives that say so (``saturates``),
    and then loses nothing unless ``exactly``. With no request, or none that fits, both
    are 0.

    Parameters
    ----------
    snapshot
        The engine at one moment.
    objective
        What to maximise.
    exactly
        If True a plan has to serve exactly ``batch_size`` requests, as in the paper.
    prune_batch
        Whether to leave out small batch sizes.
    blocks
        If True weights are the snapshot's ``need_tokens``, in whole blocks; if False
        the context and one token, for studies of the packing alone.

    Returns
    -------
    Instance
        Requests in the snapshot's order.
    """
    if blocks:
        weights = snapshot.need_tokens
    else:
        weights = snapshot.prompt_tokens + snapshot.generated_tokens + 1
    max_batch = min(snapshot.max_batch, most_that_fit(weights, snapshot.capacity_tokens))
    min_batch = min(1, max_batch)
    gains = objective.gains(snapshot)
    if prune_batch and objective.saturates and max_batch > 1:
        latency = snapshot.latency
        min_batch = _fast_batch(
            latency.base_s,
            latency.per_request_s,
            latency.per_context_token_s,
            snapshot.capacity_tokens,
            snapshot.need_tokens,
            snapshot.tds,
            max_batch,
        )
    return Instance(
        weights=weights,
        capacity=snapshot.capacity_tokens,
        min_batch=min_batch,
        max_batch=max_batch,
        gains=gains,
        exactly=exactly,
    )


def most_that_fit(weights: NDArray[np.int64], capacity: int) -> int:
    """
    The largest number of requests whose weights fit into ``capacity`` together.

    Parameters
    ----------
    weights
        KV tokens per request, (n,).
    capacity
        KV tokens there are.
    """
    return int(_count_that_fit(weights, capacity))


@jit
def _count_that_fit(weights: NDArray[np.int64], capacity: int) -> int:
    if weights.sum() <= capacity:
        return weights.size
    # Sorting would take longer than all the rest of the formulation: halve instead. All
    # of rest[:first] fit, rest[last:] don't, and what lies between is split by a pivot.
    rest = weights.copy()
    first, last, room = 0, rest.size, capacity
    while first < last:
        pivot = rest[(first + last) // 2]
        low, mid, high = first, first, last
        used = 0
        while mid < high:
            weight = rest[mid]
            if weight < pivot:
                rest[mid], rest[low] = rest[low], weight
                used += weight
                low += 1
                mid += 1
            elif weight > pivot:
                high -= 1
                rest[mid], rest[high] = rest[high], weight
            else:
                mid += 1
        if used > room:
            last = low
            continue
        room -= used
        equal = min(mid - low, room // pivot)
        room -= equal * pivot
        first = low + equal
        if first < mid:
            break
    return first


@jit
def _fast_batch(
    base_s: float,
    per_request_s: float,
    per_context_token_s: float,
    capacity_tokens: int,
    need_tokens: NDArray[np.int64],
    tds: NDArray[np.float64],
    max_batch: int,
) -> int:
    # The largest batch that gives each request more than the fastest reader's tokens/s,
    # else 1.
    mean_need_tokens = mean_tokens(need_tokens)
    scalars = np.array(
        [base_s, per_request_s, per_context_token_s, float(capacity_tokens), mean_need_tokens]
    )
    fastest = tds.max()
    batch_size = max_batch
    while batch_size > 1 and token_rate(scalars, batch_size) <= fastest:
        batch_size -= 1
    return batch_size
