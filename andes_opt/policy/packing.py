"""What several policies need: packing requests in order, and the preemption cap."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from andes_opt.compilation import jit
from andes_opt.snapshot import Action, Decision

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from andes_opt.snapshot import Snapshot


@jit
def fits_in_order(
    order: NDArray[np.int64], weights: NDArray[np.int64], capacity: int, slots: int
) -> NDArray[np.bool_]:
    """
    The longest prefix of ``order`` that fits.

    Parameters
    ----------
    order
        Request indices, first to last, (n,).
    weights
        KV tokens each request holds if served, (n,).
    capacity, slots
        KV tokens there are, and requests that may be served at once.

    Returns
    -------
    NDArray[np.bool_]
        True for the requests of the prefix, (n,).
    """
    serve = np.zeros(weights.size, dtype=np.bool_)
    for i in order:
        if slots == 0 or weights[i] > capacity:
            break
        serve[i] = True
        capacity -= weights[i]
        slots -= 1
    return serve


@jit
def limit_evictions(
    serve: NDArray[np.bool_],
    resident: NDArray[np.bool_],
    urgency: NDArray[np.int64],
    weights: NDArray[np.int64],
    capacity: int,
    slots: int,
    allowed: int,
) -> NDArray[np.bool_]:
    """
    Change a plan so that it evicts at most ``allowed`` resident requests.

    The least urgent resident requests are evicted, as many as are allowed; the others stay
    served. The plan's new requests are admitted by urgency into what is left. Residents beyond
    ``slots`` are evicted in any case.

    Parameters
    ----------
    serve
        The plan, (n,).
    resident
        True for requests whose KV is on the GPU, (n,).
    urgency
        Request indices, most urgent first, (n,).
    weights, capacity, slots
        KV tokens per request, KV tokens there are, and the most requests served at once.
    allowed
        Evictions allowed, >= 0.

    Returns
    -------
    NDArray[np.bool_]
        The changed plan, (n,).
    """
    evictions = 0
    for i in range(serve.size):
        evictions += resident[i] and not serve[i]
    allowed = max(allowed, resident.sum() - slots)
    kept = serve.copy()
    if evictions <= allowed:
        return kept

    for position in range(urgency.size):
        i = urgency[position]
        if resident[i] and not serve[i] and evictions > allowed:
            kept[i] = True
            evictions -= 1
    for i in range(serve.size):
        if resident[i] and kept[i]:
            capacity -= weights[i]
            slots -= 1
    for position in range(urgency.size):
        i = urgency[position]
        if not resident[i] and serve[i]:
            kept[i] = weights[i] <= capacity and slots > 0
            if kept[i]:
                capacity -= weights[i]
                slots -= 1
    return kept


def serve_in_order(snapshot: Snapshot, order: NDArray[np.int64]) -> Decision:
    """
    The decision to serve the longest prefix of ``order`` that fits.

    Parameters
    ----------
    snapshot
        The engine now.
    order
        Request indices, most urgent first, (n,).

    Returns
    -------
    Decision
        The other requests wait; the policy is asked again after each iteration.
    """
    serve = fits_in_order(order, snapshot.need_tokens, snapshot.capacity_tokens, snapshot.max_batch)
    return Decision(
        action=np.where(serve, Action.SERVE, Action.WAIT).astype(np.int8),
        order=order,
        replan_after=1,
    )


def slack_s(snapshot: Snapshot) -> NDArray[np.float64]:
    """
    Seconds until each reader has nothing to read, if its request is not served, (n,).

    This is the time until the first token is due, plus the time that the undigested tokens last,
    less the time that restoring the request takes. It is negative if it is too late already.
    """
    before_s = np.maximum(0.0, snapshot.arrival_s + snapshot.ttft_s - snapshot.time_s)
    backlog_s = np.maximum(0.0, snapshot.generated_tokens - snapshot.digested) / snapshot.tds
    return np.asarray(before_s + backlog_s - snapshot.restore_s)
