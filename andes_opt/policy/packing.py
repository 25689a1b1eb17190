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
def fill_up(
    serve: NDArray[np.bool_],
    resident: NDArray[np.bool_],
    order: NDArray[np.int64],
    weights: NDArray[np.int64],
    room: tuple[int, int, int],
    reserve: int,
) -> NDArray[np.int8]:
    """
    Serve a plan, and let others into what it leaves.

    Residents come first; those that still fit are held; then others come in, who with holding
    leave a reserve, unless the engine would be idle.

    Parameters
    ----------
    serve, resident
        The plan, and whose KV is on the GPU, (n,).
    order
        Requests that may be let in or held, most urgent first.
    weights
        KV tokens each request holds if served, (n,).
    room
        KV tokens, slots (requests that compute), and places (those that compute or are held).
    reserve
        KV tokens that holding and newcomers leave free.

    Returns
    -------
    NDArray[np.int8]
        An :class:`Action` per request, (n,).
    """
    capacity, slots, places = room
    action = np.zeros(serve.size, dtype=np.int8)
    for i in range(serve.size):
        if serve[i]:
            action[i] = Action.SERVE
            capacity -= weights[i]
            slots -= 1
            places -= 1
    for i in order:
        if action[i] == Action.WAIT and resident[i] and weights[i] <= capacity and slots > 0:
            action[i] = Action.SERVE
            capacity -= weights[i]
            slots -= 1
            places -= 1
    for i in order:
        idle = action[i] == Action.WAIT and resident[i]
        if idle and weights[i] + reserve <= capacity and places > 0:
            action[i] = Action.HOLD
            capacity -= weights[i]
            places -= 1
    empty = not action.any()
    slots = min(slots, places)
    for i in order:
        spare = 0 if empty else reserve
        if action[i] == Action.WAIT and weights[i] + spare <= capacity and slots > 0:
            action[i] = Action.SERVE
            capacity -= weights[i]
            slots -= 1
            empty = False
    return action


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


def displace(
    snapshot: Snapshot,
    entrants: NDArray[np.int64],
    willing: NDArray[np.bool_],
    text_s: NDArray[np.float64],
    spare_s: float,
) -> Decision:
    """
    The decision to let absent requests in, and to evict full buffers for them.

    Parameters
    ----------
    snapshot
        The engine now.
    entrants
        Request indices in the order in which absent requests come in, (n,).
    willing
        False for absent requests that stay out even if there is room, (n,); they come in all the
        same where the engine would be idle.
    text_s
        Seconds of text that each reader has in hand, (n,).
    spare_s
        A resident request with less text than this is not evicted.

    Returns
    -------
    Decision
        Residents stay, but for those with the most text, who make room for the first entrants;
        the policy is asked again after each iteration.
    """
    resident = snapshot.kv_tokens > 0
    coming = ~resident & willing
    if not (resident | coming).any():
        coming = ~resident  # an idle engine is of use to nobody
    by_text = np.argsort(-text_s, kind="stable")
    serve = _displace(
        entrants[coming[entrants]],
        by_text[(resident & (text_s >= spare_s))[by_text]],
        resident,
        snapshot.need_tokens,
        snapshot.capacity_tokens,
        snapshot.max_batch,
    )
    # Residents in front: the engine's own victims are the last in the order.
    order = np.concatenate((np.flatnonzero(resident), entrants[~resident[entrants]]))
    return Decision(
        action=np.where(serve, Action.SERVE, Action.WAIT).astype(np.int8),
        order=order,
        replan_after=1,
    )


@jit
def _displace(
    entrants: NDArray[np.int64],
    victims: NDArray[np.int64],
    resident: NDArray[np.bool_],
    weights: NDArray[np.int64],
    capacity: int,
    slots: int,
) -> NDArray[np.bool_]:
    serve = resident.copy()
    free, places = capacity, slots
    for i in range(resident.size):
        if resident[i]:
            free -= weights[i]
            places -= 1
    next_victim = 0
    # Residents may have outgrown the cache: the fullest buffers go first, then the newest.
    while (free < 0 or places < 0) and next_victim < victims.size:
        i = victims[next_victim]
        next_victim += 1
        serve[i] = False
        free += weights[i]
        places += 1
    for i in range(resident.size - 1, -1, -1):
        if free >= 0 and places >= 0:
            break
        if serve[i]:
            serve[i] = False
            free += weights[i]
            places += 1
    for i in entrants:
        end, room, open_places = next_victim, free, places
        while end < victims.size and (room < weights[i] or open_places < 1):
            room += weights[victims[end]]
            open_places += 1
            end += 1
        if room < weights[i] or open_places < 1:
            break
        for victim in victims[next_victim:end]:
            serve[victim] = False
        next_victim = end
        serve[i] = True
        free = room - weights[i]
        places = open_places - 1
    return serve


def backlog_s(snapshot: Snapshot) -> NDArray[np.float64]:
    """Seconds for which each reader has text in hand, (n,)."""
    tokens = np.maximum(0.0, snapshot.generated_tokens - snapshot.digested)
    return np.asarray(tokens / snapshot.tds)


def slack_s(snapshot: Snapshot) -> NDArray[np.float64]:
    """
    Seconds until each reader has nothing to read, if its request is not served, (n,).

    This is the time until the first token is due, plus the time that the undigested tokens last,
    less the time that restoring the request takes. It is negative if it is too late already.
    """
    before_s = np.maximum(0.0, snapshot.arrival_s + snapshot.ttft_s - snapshot.time_s)
    return np.asarray(before_s + backlog_s(snapshot) - snapshot.restore_s)
