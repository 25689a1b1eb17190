"""
What the simulated engine and the vLLM adapter both keep of a request, and show to policies.

The state of requests is a NumPy array of records. A class lists the fields, :func:`records` makes
the array, and compiled functions read and write the fields by name
(``request.prompt_tokens``). The functions here take all records that have the fields of
:class:`RequestState`.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any, get_type_hints

import numpy as np
from numba import config

from andes_opt.compilation import inner, jit
from andes_opt.qoe import advance, digestion_start, ideal_area_capped, token_window_area
from andes_opt.snapshot import Snapshot, State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

#: Values of ``RequestState.state``.
WAITING, RUNNING, PREEMPTED, HELD = (int(state) for state in State)


class RequestState:
    """A request and its reader."""

    request_id: int
    arrival_s: float  # on the engine's clock; all ages are seconds since then
    prompt_tokens: int
    generated_tokens: int  # that have reached the client
    computed_tokens: int  # whose KV is on the GPU or swapped out
    num_blocks: int  # of KV on the GPU
    state: int
    preemptions: int

    ttft_s: float
    tds: float
    read_until_s: float  # age up to which `digested` and `area` are computed
    digested: float
    area: float
    last_token_s: float  # age at which the last token came
    last_token_area: float  # the area at that age


class ScoredRequest(RequestState):
    """A request whose length is known, so that all three QoE scores can be computed."""

    output_tokens: int  # of the whole reply
    first_token_s: float  # age at which the first token came
    digestion_start_s: float  # age at which the reader begins the last token
    digestion_start_sum_s: float  # over all tokens
    window_area: float  # the area at the end of the ideal reader's window


def records(fields: type, count: int) -> Any:
    """
    A NumPy array of records, all fields 0.

    Parameters
    ----------
    fields
        A class whose annotations, with those of its bases, name the fields: int, float or bool.
    count
        How many.
    """
    return np.zeros(count, dtype=_record_type(fields))


@cache
def _record_type(fields: type) -> np.dtype[np.void]:
    kind = np.dtype(list(get_type_hints(fields).items()), align=True)
    # Plain Python (NUMBA_DISABLE_JIT) reads fields by name from np.record alone, which compiled
    # functions accept too, but microseconds slower a call.
    return np.dtype((np.record, kind)) if getattr(config, "DISABLE_JIT", 0) else kind


@inner
def blocks_for(tokens: int, block_tokens: int) -> int:
    """Blocks that hold the KV of some tokens."""
    return (tokens + block_tokens - 1) // block_tokens


@inner
def to_restore(lacking_tokens: int, generated_tokens: int) -> int:
    """
    Tokens that a request computes before its next one, beyond a normal iteration.

    Parameters
    ----------
    lacking_tokens
        Known tokens, prompt and reply, whose KV is not there.
    generated_tokens
        Tokens of the reply so far. A request that has some and lacks the last one's KV alone
        decodes: that is a normal iteration.
    """
    if lacking_tokens <= 1 and generated_tokens > 0:
        return 0
    return max(0, lacking_tokens)


@inner
def prompt_s(
    tokens: float,
    token_budget: int,
    batch: int,
    per_token_s: float,
    mixed_base_s: float,
    mixed_per_request_s: float,
) -> float:
    """
    Seconds that computing tokens of a prompt adds to the iterations of other requests.

    Parameters
    ----------
    tokens
        Tokens to compute.
    token_budget
        Most of them in an iteration.
    batch
        Requests that decode beside them.
    per_token_s, mixed_base_s, mixed_per_request_s
        As in ``LatencyModel``.
    """
    if tokens <= 0:
        return 0.0
    iterations = math.ceil(tokens / token_budget)
    mixed_s = mixed_base_s + mixed_per_request_s * batch
    return max(0.0, tokens * per_token_s + iterations * mixed_s)


@inner
def read_on(request: RequestState, age_s: float) -> None:
    """Let the reader of a request read up to an age, with what has been delivered."""
    request.digested, request.area = advance(
        request.read_until_s,
        age_s,
        request.generated_tokens,
        request.digested,
        request.area,
        request.ttft_s,
        request.tds,
    )
    request.read_until_s = age_s


@inner
def deliver(request: RequestState, tokens: int, age_s: float) -> None:
    """Count tokens that reach the client at an age; only :func:`area_scores` is kept up."""
    read_on(request, age_s)
    request.last_token_s = age_s
    request.last_token_area = request.area
    request.generated_tokens += tokens


@inner
def deliver_scored(request: ScoredRequest, age_s: float) -> None:
    """Count a token that reaches the client at an age; all three :func:`scores` are kept up."""
    previous_s = request.digestion_start_s
    if request.generated_tokens == 0:
        request.first_token_s = age_s
        previous_s = -np.inf
    deliver(request, 1, age_s)
    start_s = digestion_start(age_s, previous_s, request.ttft_s, request.tds)
    request.digestion_start_s = start_s
    request.digestion_start_sum_s += start_s
    end_s = request.ttft_s + request.output_tokens * (1.0 / request.tds)
    request.window_area += token_window_area(end_s - start_s, request.tds)


@jit
def area_scores(requests: Sequence[RequestState]) -> NDArray[np.float64]:
    """
    QoE (`area`) of the tokens so far, (n,); 1 if nothing could be read by the last one.

    Parameters
    ----------
    requests
        Records with the fields of :class:`RequestState`.
    """
    scores = np.ones(len(requests))
    for k in range(len(requests)):
        request = requests[k]
        ideal = ideal_area_capped(
            request.last_token_s, request.ttft_s, request.tds, request.generated_tokens
        )
        if ideal > 0.0:
            scores[k] = min(1.0, request.last_token_area / ideal)
    return scores


def scores(requests: Any) -> list[NDArray[np.float64]]:
    """
    The scores `area`, `delay` and `window` (:mod:`andes_opt.qoe`) of complete replies, (n,) each.

    Parameters
    ----------
    requests
        Records of :class:`ScoredRequest`.
    """
    n, tds = requests["output_tokens"], requests["tds"]
    due_sum_s = n * requests["ttft_s"] + n * (n - 1) / (2 * tds)
    worst_s = n * requests["digestion_start_s"] - due_sum_s
    late_s = requests["digestion_start_sum_s"] - due_sum_s
    # Sums of times carry rounding of their own size: below that, nothing was late.
    tiny_s = 1e-12 * np.maximum(1.0, requests["digestion_start_sum_s"])
    delay = 1 - np.divide(late_s, worst_s, out=np.zeros_like(late_s), where=worst_s > tiny_s)
    window = requests["window_area"] * 2 * tds / (n.astype(np.float64) ** 2)
    return [np.clip(score, 0.0, 1.0) for score in (area_scores(requests), delay, window)]


def columns(count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """
    Arrays for the columns of a snapshot, which :func:`show` fills.

    Parameters
    ----------
    count
        Requests in the snapshot.
    """
    return np.empty((7, count), dtype=np.int64), np.empty((6, count))


@inner
def show(
    request: RequestState,
    block_tokens: int,
    need_tokens: int,
    restore_s: float,
    k: int,
    integers: NDArray[np.int64],
    reals: NDArray[np.float64],
) -> None:
    """
    Fill entry k of a snapshot's columns.

    Parameters
    ----------
    request
        The request.
    block_tokens, need_tokens, restore_s
        Tokens per KV block, and what the request needs if it is served, as in ``Snapshot``.
    k
        Its place in the snapshot.
    integers, reals
        Of :func:`columns`; the order of their rows is that in :func:`snapshot_of`.
    """
    integers[0, k] = request.request_id
    integers[1, k] = request.prompt_tokens
    integers[2, k] = request.generated_tokens
    integers[3, k] = request.num_blocks * block_tokens
    integers[4, k] = need_tokens
    integers[5, k] = request.state
    integers[6, k] = request.preemptions
    reals[0, k] = request.arrival_s
    reals[1, k] = request.ttft_s
    reals[2, k] = request.tds
    reals[3, k] = request.digested
    reals[4, k] = request.area
    reals[5, k] = restore_s


def snapshot_of(integers: NDArray[np.int64], reals: NDArray[np.float64], **engine: Any) -> Snapshot:
    """
    A snapshot.

    Parameters
    ----------
    integers, reals
        As :func:`show` has filled them.
    **engine
        The other arguments of ``Snapshot``.
    """
    request_id, prompt_tokens, generated_tokens, kv_tokens, need_tokens, state, preemptions = (
        integers
    )
    arrival_s, ttft_s, tds, digested, area, restore_s = reals
    return Snapshot(
        request_id=request_id,
        arrival_s=arrival_s,
        prompt_tokens=prompt_tokens,
        generated_tokens=generated_tokens,
        kv_tokens=kv_tokens,
        need_tokens=need_tokens,
        state=state.astype(np.int8),
        ttft_s=ttft_s,
        tds=tds,
        digested=digested,
        area=area,
        preemptions=preemptions,
        restore_s=restore_s,
        **engine,
    )
