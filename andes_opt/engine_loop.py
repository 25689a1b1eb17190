"""
The simulated engine's inner loop, compiled: continuous batching over paged KV blocks.

:func:`run` iterates until a policy must be asked, :func:`gather` copies what the policy is
shown, and :func:`apply` carries out its decision. The rules follow vLLM V1's
``Scheduler.schedule``: running requests first, in order, each with the tokens it lacks; when KV
blocks run out, the last running request is preempted to the head of the waiting queue; only a
step without preemption admits, from the head of the queue, while blocks, token budget and batch
limit allow. The whole context of a request has to fit, prompt and reply so far, unless the profile
says that what the iteration computes will do (vLLM's ``scheduler_reserve_full_isl``). Swapping is
not vLLM V1's, but the Andes paper's engine: a preempted request keeps what it has computed, and
moving its KV delays the next iteration.

The state is an array of :class:`SimulatedRequest` records, one :class:`Engine` record, and lists
of places in the former: ``active[:engine.num_active]`` (arrived and not finished, by arrival),
``running[:engine.num_running]`` and ``admit[:engine.num_admit]`` (what a decision lets in, in
order). Waiting and preempted requests form a doubly linked list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from andes_opt.compilation import inner, jit
from andes_opt.request_state import (
    HELD,
    PREEMPTED,
    RUNNING,
    WAITING,
    ScoredRequest,
    blocks_for,
    deliver_scored,
    prompt_s,
    read_on,
    show,
    to_restore,
)
from andes_opt.snapshot import Action

if TYPE_CHECKING:
    from collections.abc import Sequence

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]

#: States of a request beyond those that a snapshot shows.
FUTURE, FINISHED, REJECTED = range(4, 7)

#: What :func:`run` returns.
DONE, ASK, SAMPLES_FULL, STARVED = range(4)

#: A policy that leaves the engine empty so often in a row, with requests waiting, is in error.
MAX_IDLE_STEPS = 10_000

SERVE, EVICT, HOLD = int(Action.SERVE), int(Action.WAIT), int(Action.HOLD)


class SimulatedRequest(ScoredRequest):
    """A request of the simulated engine."""

    chunk_tokens: int  # to compute in this iteration
    previous: int  # in the waiting queue; -1 if it is the first
    next: int  # in the waiting queue; -1 if it is the last
    token_offset: int  # place of its first token in `token_times`


class Engine:
    """The simulated engine."""

    # What it is, as in EngineProfile.
    num_blocks: int
    block_tokens: int
    max_batch: int
    token_budget: int
    max_context_tokens: int
    swaps: bool  # evicted KV goes to host memory; else it is computed again
    base_s: float
    per_request_s: float
    per_context_token_s: float
    per_prefill_token_s: float
    mixed_base_s: float
    mixed_per_request_s: float
    swap_s_per_token: float
    recompute_hit_share: float
    reserve_full_context: bool
    watermark_blocks: int

    # Where it is.
    now_s: float
    swap_debt_s: float  # for the next iteration to wait
    free_blocks: int
    num_active: int
    num_running: int
    num_held: int
    next_arrival: int
    first_waiting: int
    last_waiting: int

    # The decision in force.
    planned: bool  # False: first come, first served
    num_admit: int
    next_admit: int
    countdown: int  # iterations until the policy is asked again; negative: never
    must_ask: bool
    just_asked: bool

    # What it has done.
    iterations: int
    busy_s: float
    preemptions: int
    num_finished: int
    tokens_delivered: int
    tokens_by_last_arrival: int
    idle_steps: int  # in a row
    num_samples: int


class Sample:
    """The engine at the end of an iteration: a row of the timeline."""

    time_s: float
    decoding: float  # requests
    prefill_tokens: float  # computed in the iteration
    kv_tokens: float  # in whole blocks
    waiting: float  # requests, the preempted ones among them
    held: float  # requests


Requests: TypeAlias = "Sequence[SimulatedRequest]"


@jit
def run(
    requests: Requests,
    engines: Sequence[Engine],
    active: Ints,
    running: Ints,
    admit: Ints,
    token_times: Floats,
    samples: Sequence[Sample],
) -> int:
    """
    Iterate until a policy must be asked, the samples are full, or all work is done.

    Parameters
    ----------
    requests, engines, active, running, admit
        The state (see the module); ``engines`` has one entry.
    token_times
        Where to write each token's age, or empty.
    samples
        Where to write a row per iteration, or empty.

    Returns
    -------
    int
        DONE, ASK, SAMPLES_FULL, or STARVED: the policy in charge left requests waiting
        and the engine empty for :data:`MAX_IDLE_STEPS` steps in a row.
    """
    engine = engines[0]
    while True:
        _arrive(requests, engine, active)
        if engine.num_active == 0:
            if engine.next_arrival >= len(requests):
                return DONE
            engine.now_s = max(engine.now_s, requests[engine.next_arrival].arrival_s)
            continue
        if len(samples) and engine.num_samples == len(samples):
            return SAMPLES_FULL
        if _policy_is_due(requests, engine, running):
            return ASK
        engine.just_asked = False

        _schedule(requests, engine, active, running, admit)
        if engine.num_running == 0:
            # The decision in force leaves the engine idle. Time passes as for an empty
            # iteration, and the policy is asked again.
            engine.idle_steps += 1
            if engine.idle_steps > MAX_IDLE_STEPS:
                return STARVED
            engine.now_s += engine.base_s + engine.swap_debt_s
            engine.swap_debt_s = 0.0
            engine.must_ask = True
            continue
        engine.idle_steps = 0

        decoding, prefill_tokens = _compute(requests, engine, running)
        _deliver(requests, engine, active, running, token_times)
        if len(samples):
            _sample(engine, decoding, prefill_tokens, samples[engine.num_samples])


@inner
def _arrive(requests: Requests, engine: Engine, active: Ints) -> None:
    """Let the requests in that have arrived by now."""
    while (
        engine.next_arrival < len(requests)
        and requests[engine.next_arrival].arrival_s <= engine.now_s
    ):
        i = engine.next_arrival
        engine.next_arrival += 1
        if requests[i].state == REJECTED:
            continue
        requests[i].state = WAITING
        _push_back(requests, engine, i)
        active[engine.num_active] = i
        engine.num_active += 1
        engine.must_ask = True


@inner
def _policy_is_due(requests: Requests, engine: Engine, running: Ints) -> bool:
    """True if the policy must be asked before the next iteration."""
    if engine.countdown < 0 or engine.just_asked:
        return False
    if engine.must_ask or engine.countdown == 0:
        return True
    return _short_of_blocks(requests, engine, running)


@inner
def _short_of_blocks(requests: Requests, engine: Engine, running: Ints) -> bool:
    """True if the running requests need more blocks in this iteration than are free."""
    budget = engine.token_budget
    needed = 0
    for i in running[: engine.num_running]:
        if budget == 0:
            break
        request = requests[i]
        chunk = min(_lacking(request), budget)
        budget -= chunk
        needed += blocks_for(request.computed_tokens + chunk, engine.block_tokens)
        needed -= request.num_blocks
    return needed > engine.free_blocks


@inner
def _lacking(request: SimulatedRequest) -> int:
    """Tokens of a request that are known but not yet in its KV cache, >= 1."""
    return request.prompt_tokens + request.generated_tokens - request.computed_tokens


@inner
def _schedule(requests: Requests, engine: Engine, active: Ints, running: Ints, admit: Ints) -> None:
    """Decide what the next iteration computes: every running request's ``chunk_tokens``."""
    if engine.num_held > 0 and not engine.planned:
        _resume_held(requests, engine, active, running)
    preemptions = engine.preemptions
    budget = _schedule_running(requests, engine, running)
    if engine.preemptions > preemptions:
        engine.must_ask = True  # the engine had to overrule the decision in force
    else:
        _admit(requests, engine, running, admit, budget)
    if engine.countdown >= 0:
        engine.countdown -= 1


@inner
def _resume_held(requests: Requests, engine: Engine, active: Ints, running: Ints) -> None:
    """Run held requests again, oldest first; they have kept their places in the batch."""
    for i in active[: engine.num_active]:
        if requests[i].state == HELD and _lacking(requests[i]) <= 1:
            _append_running(requests, engine, running, i)
    for i in active[: engine.num_active]:
        if requests[i].state == HELD:  # prompts under way come last, as in a plan
            _append_running(requests, engine, running, i)
    engine.num_held = 0


@inner
def _append_running(requests: Requests, engine: Engine, running: Ints, i: int) -> None:
    requests[i].state = RUNNING
    running[engine.num_running] = i
    engine.num_running += 1


@inner
def _schedule_running(requests: Requests, engine: Engine, running: Ints) -> int:
    """Give the running requests their tokens; returns the token budget that is left."""
    budget = engine.token_budget
    k = 0
    while k < engine.num_running and budget > 0:
        request = requests[running[k]]
        chunk = min(_lacking(request), budget)
        while request.state == RUNNING and not _take_blocks(request, engine, chunk):
            engine.num_running -= 1
            _evict(requests, engine, running[engine.num_running])
        if request.state != RUNNING:
            break
        request.chunk_tokens = chunk
        budget -= chunk
        k += 1
    # Requests that the budget did not reach compute nothing in this iteration.
    for i in running[k : engine.num_running]:
        requests[i].chunk_tokens = 0
    return budget


@inner
def _take_blocks(request: SimulatedRequest, engine: Engine, chunk: int) -> bool:
    """Give a request the blocks for ``chunk`` more tokens; False if there are too few."""
    total = blocks_for(request.computed_tokens + chunk, engine.block_tokens)
    needed = total - request.num_blocks
    if needed > engine.free_blocks:
        return False
    engine.free_blocks -= needed
    request.num_blocks = total
    return True


@inner
def _evict(requests: Requests, engine: Engine, i: int) -> None:
    """Take request i off the GPU and put it at the head of the queue; the caller unlists it."""
    request = requests[i]
    if engine.swaps:
        engine.swap_debt_s += request.computed_tokens * engine.swap_s_per_token
    else:
        # Whole blocks of what the prefix cache will still have when the request comes back.
        hit = int(engine.recompute_hit_share * request.computed_tokens) // engine.block_tokens
        request.computed_tokens = hit * engine.block_tokens
    engine.free_blocks += request.num_blocks
    request.num_blocks = 0
    request.state = PREEMPTED
    request.preemptions += 1
    engine.preemptions += 1
    _push_front(requests, engine, i)


@inner
def _admit(requests: Requests, engine: Engine, running: Ints, admit: Ints, budget: int) -> None:
    """Admit waiting requests in order while blocks, budget and batch limit allow."""
    # A held request keeps its place in the batch.
    while budget > 0 and engine.num_running + engine.num_held < engine.max_batch:
        if not engine.planned:
            i = engine.first_waiting
            if i < 0:
                return
        elif engine.next_admit < engine.num_admit:
            i = admit[engine.next_admit]
        else:
            return
        request = requests[i]
        if request.state != WAITING and request.state != PREEMPTED:
            engine.next_admit += 1
            continue
        chunk = min(_lacking(request), budget)
        if not _fits(request, engine, chunk):
            return
        _take_blocks(request, engine, chunk)
        if request.state == PREEMPTED and engine.swaps:
            engine.swap_debt_s += request.computed_tokens * engine.swap_s_per_token
        if engine.planned:
            engine.next_admit += 1
        _unlink(requests, engine, i)
        _append_running(requests, engine, running, i)
        request.chunk_tokens = chunk
        budget -= chunk


@inner
def _fits(request: SimulatedRequest, engine: Engine, chunk: int) -> bool:
    """True if the blocks allow to let a request in that computes ``chunk`` tokens."""
    tokens = request.computed_tokens + chunk
    if engine.reserve_full_context:
        tokens = request.prompt_tokens + request.generated_tokens
    needed = blocks_for(tokens, engine.block_tokens)
    if engine.num_running > 0:
        needed += engine.watermark_blocks
    return needed <= engine.free_blocks


@inner
def _compute(requests: Requests, engine: Engine, running: Ints) -> tuple[int, int]:
    """Let the time of the iteration pass; returns requests decoding and prompt tokens."""
    decoding, prefill, context = 0, 0, 0
    for i in running[: engine.num_running]:
        request = requests[i]
        chunk = request.chunk_tokens
        if chunk == 1 and request.generated_tokens > 0 and _lacking(request) == 1:
            decoding += 1
            context += request.computed_tokens + 1
        else:
            prefill += chunk
    elapsed_s = (
        engine.base_s
        + engine.per_request_s * decoding
        + engine.per_context_token_s * context
        + engine.per_prefill_token_s * prefill
        + engine.swap_debt_s
    )
    if prefill > 0:
        elapsed_s += engine.mixed_base_s + engine.mixed_per_request_s * decoding
    engine.swap_debt_s = 0.0
    engine.now_s += elapsed_s
    engine.busy_s += elapsed_s
    engine.iterations += 1
    return decoding, prefill


@inner
def _deliver(
    requests: Requests, engine: Engine, active: Ints, running: Ints, token_times: Floats
) -> None:
    """Deliver the tokens of the iteration; requests that have their last token leave."""
    finished = engine.num_finished
    kept = 0
    for i in running[: engine.num_running]:
        request = requests[i]
        request.computed_tokens += request.chunk_tokens
        if request.chunk_tokens > 0 and _lacking(request) == 0:
            _deliver_token(request, engine, token_times)
            if request.generated_tokens == request.output_tokens:
                engine.free_blocks += request.num_blocks
                request.num_blocks = 0
                request.state = FINISHED
                engine.num_finished += 1
                continue
        running[kept] = i
        kept += 1
    engine.num_running = kept
    if engine.now_s <= requests[-1].arrival_s:
        engine.tokens_by_last_arrival = engine.tokens_delivered
    if engine.num_finished > finished:
        _drop_finished(requests, engine, active)
        engine.must_ask = True


@inner
def _deliver_token(request: SimulatedRequest, engine: Engine, token_times: Floats) -> None:
    """Let a request's next token reach its client now."""
    age_s = engine.now_s - request.arrival_s
    if len(token_times):
        token_times[request.token_offset + request.generated_tokens] = age_s
    deliver_scored(request, age_s)
    engine.tokens_delivered += 1


@inner
def _drop_finished(requests: Requests, engine: Engine, active: Ints) -> None:
    kept = 0
    for i in active[: engine.num_active]:
        if requests[i].state != FINISHED:
            active[kept] = i
            kept += 1
    engine.num_active = kept


@inner
def _sample(engine: Engine, decoding: int, prefill_tokens: int, sample: Sample) -> None:
    sample.time_s = engine.now_s
    sample.decoding = decoding
    sample.prefill_tokens = prefill_tokens
    sample.kv_tokens = (engine.num_blocks - engine.free_blocks) * engine.block_tokens
    sample.waiting = engine.num_active - engine.num_running - engine.num_held
    sample.held = engine.num_held
    engine.num_samples += 1


@inner
def _push_front(requests: Requests, engine: Engine, i: int) -> None:
    first = engine.first_waiting
    requests[i].previous, requests[i].next = -1, first
    if first >= 0:
        requests[first].previous = i
    else:
        engine.last_waiting = i
    engine.first_waiting = i


@inner
def _push_back(requests: Requests, engine: Engine, i: int) -> None:
    last = engine.last_waiting
    requests[i].previous, requests[i].next = last, -1
    if last >= 0:
        requests[last].next = i
    else:
        engine.first_waiting = i
    engine.last_waiting = i


@inner
def _unlink(requests: Requests, engine: Engine, i: int) -> None:
    before, after = requests[i].previous, requests[i].next
    if before >= 0:
        requests[before].next = after
    else:
        engine.first_waiting = after
    if after >= 0:
        requests[after].previous = before
    else:
        engine.last_waiting = before


@inner
def _queue_by_arrival(requests: Requests, engine: Engine, active: Ints) -> None:
    """Queue all that wait in order of arrival: plans have evicted them in another order."""
    engine.first_waiting = engine.last_waiting = -1
    for i in active[: engine.num_active]:
        if requests[i].state == WAITING or requests[i].state == PREEMPTED:
            _push_back(requests, engine, i)


@jit
def apply(
    requests: Requests,
    engines: Sequence[Engine],
    active: Ints,
    running: Ints,
    admit: Ints,
    action: NDArray[np.int8],
    order: Ints,
    countdown: int,
) -> bool:
    """
    Carry out a decision: evict, hold, then list what may be admitted, in order.

    Parameters
    ----------
    requests, engines, active, running, admit
        The state (see the module).
    action
        A value of ``snapshot.Action`` for each active request, or none for pass-through; with
        a place in the batch for each request to serve or hold (``snapshot.check_places``).
    order
        Places in ``action``, most urgent first.
    countdown
        Iterations until the policy is asked again; negative: never.

    Returns
    -------
    bool
        False, with nothing carried out, if ``order`` does not list every request once or an
        action is unknown.
    """
    engine = engines[0]
    if not _understood(action, order):
        return False
    engine.must_ask = False
    engine.just_asked = True
    engine.countdown = countdown
    engine.next_admit = 0
    engine.num_admit = 0
    was_planned, engine.planned = engine.planned, action.size > 0
    if not engine.planned:
        if was_planned:
            _queue_by_arrival(requests, engine, active)
        return True

    # Newest first, so that the queue's head ends up with the oldest evicted request.
    for k in range(engine.num_active - 1, -1, -1):
        request = requests[active[k]]
        resident = request.state == RUNNING or request.state == HELD
        if resident and action[k] == EVICT:
            _evict(requests, engine, active[k])
        elif resident and action[k] == HOLD:
            request.state = HELD

    engine.num_running = 0
    for k in order:
        i = active[k]
        if action[k] != SERVE:
            continue
        if requests[i].state == WAITING or requests[i].state == PREEMPTED:
            admit[engine.num_admit] = i
            engine.num_admit += 1
        elif _lacking(requests[i]) <= 1:
            _append_running(requests, engine, running, i)
    # Prompts under way come last, so that they take no budget from replies under way.
    for k in order:
        i = active[k]
        resident = requests[i].state == RUNNING or requests[i].state == HELD
        if action[k] == SERVE and resident and _lacking(requests[i]) > 1:
            _append_running(requests, engine, running, i)

    engine.num_held = 0
    for i in active[: engine.num_active]:
        engine.num_held += requests[i].state == HELD
    return True


@inner
def _understood(action: NDArray[np.int8], order: Ints) -> bool:
    """True for pass-through, and for known actions in an order that lists each once."""
    if action.size == 0:
        return True
    if order.size != action.size:
        return False
    listed = np.zeros(action.size, dtype=np.bool_)
    for k in order:
        if k < 0 or k >= action.size or listed[k] or action[k] < 0 or action[k] > 2:
            return False
        listed[k] = True
    return True


@jit
def gather(
    requests: Requests,
    engines: Sequence[Engine],
    active: Ints,
    integers: Ints,
    reals: Floats,
) -> None:
    """
    Fill the columns of a snapshot of the active requests.

    Parameters
    ----------
    requests, engines, active
        The state (see the module).
    integers, reals
        Of :func:`andes_opt.request_state.columns`.
    """
    engine = engines[0]
    for k in range(engine.num_active):
        request = requests[active[k]]
        read_on(request, engine.now_s - request.arrival_s)
        context = request.prompt_tokens + request.generated_tokens
        # A request that fills the KV on its own still has to be served one day.
        usable = max(1, engine.num_blocks - engine.watermark_blocks)
        blocks = blocks_for(context, engine.block_tokens) + 1
        blocks = min(blocks, usable, blocks_for(engine.max_context_tokens, engine.block_tokens))

        restore_s = prompt_s(
            to_restore(_lacking(request), request.generated_tokens),
            engine.token_budget,
            engine.num_running,
            engine.per_prefill_token_s,
            engine.mixed_base_s,
            engine.mixed_per_request_s,
        )
        if request.state == PREEMPTED and engine.swaps:
            restore_s += request.computed_tokens * engine.swap_s_per_token
        show(
            request,
            engine.block_tokens,
            blocks * engine.block_tokens,
            restore_s,
            k,
            integers,
            reals,
        )
