"""
The simulated engine's inner loop, compiled: continuous batching over paged KV blocks.

All state lives in four arrays, so that a call costs microseconds whatever it carries:
``ints`` and ``floats`` hold one column per request (rows named below), ``scalars`` and
``clock`` the engine's counters. :func:`run` iterates until something happens that a
policy wants to know of; :func:`apply` carries out a decision; :func:`gather` copies what
a snapshot shows. The rules follow vLLM V1's ``Scheduler.schedule``: running requests
first, in order, each with the tokens it lacks; when KV blocks run out the last running
request is preempted to the head of the waiting queue; only a step without preemption
admits, from the head of the queue, while blocks, token budget and batch limit allow.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from andes_opt.compilation import jit
from andes_opt.qoe import advance, token_window_area

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]

# Rows of `ints`, one column per request.
PROMPT, OUTPUT, GENERATED, COMPUTED, BLOCKS, STATE, PREEMPTIONS = range(7)
NEXT, PREVIOUS, CHUNK, TOKEN_OFFSET = range(7, 11)
NUM_INTS = 11

# Rows of `floats`, one column per request; times since the request's arrival unless absolute.
ARRIVAL, TTFT, TDS, DIGESTED, AREA, UPDATED, LAST_DIGEST, DIGEST_SUM, WINDOW_AREA = range(9)
FIRST_TOKEN, LAST_TOKEN = 9, 10
NUM_FLOATS = 11

# Values of STATE beyond those of snapshot.State.
WAITING, RUNNING, PREEMPTED, HELD, FUTURE, FINISHED, REJECTED = range(7)

# `scalars`: integer counters and sizes.
(
    NUM_BLOCKS,
    BLOCK_TOKENS,
    MAX_BATCH,
    TOKEN_BUDGET,
    SWAPS,
    FREE_BLOCKS,
    NUM_RUNNING,
    NUM_ACTIVE,
    NUM_ADMIT,
    NEXT_ADMIT,
    NEXT_ARRIVAL,
    WAIT_HEAD,
    WAIT_TAIL,
    PLANNED,
    COUNTDOWN,
    MUST_ASK,
    JUST_ASKED,
    ITERATIONS,
    PREEMPTIONS_SEEN,
    TOKENS_DELIVERED,
    NUM_SAMPLES,
    NUM_FINISHED,
    IDLE_STEPS,
    NUM_HELD,
    TOKENS_BY_LAST_ARRIVAL,
) = range(25)
NUM_SCALARS = 25

# `clock`: time and coefficients.
NOW, BASE_S, REQUEST_S, CONTEXT_S, PREFILL_S, SWAP_S, SWAP_DEBT_S, BUSY_S, HIT_SHARE = range(9)
NUM_CLOCK = 9

# What `run` returns.
DONE, ASK, SAMPLES_FULL, STARVED = range(4)

#: A policy that leaves the engine empty so often in a row, with requests waiting, is in error.
MAX_IDLE_STEPS = 10_000

#: Columns of a timeline sample: end of the iteration (s), requests decoding, prompt tokens
#: computed, KV blocks in use, requests waiting or preempted, requests held.
SAMPLE_COLUMNS = 6


@jit
def _push_front(ints: Ints, scalars: Ints, i: int) -> None:
    head = scalars[WAIT_HEAD]
    ints[PREVIOUS, i], ints[NEXT, i] = -1, head
    if head >= 0:
        ints[PREVIOUS, head] = i
    else:
        scalars[WAIT_TAIL] = i
    scalars[WAIT_HEAD] = i


@jit
def _push_back(ints: Ints, scalars: Ints, i: int) -> None:
    tail = scalars[WAIT_TAIL]
    ints[PREVIOUS, i], ints[NEXT, i] = tail, -1
    if tail >= 0:
        ints[NEXT, tail] = i
    else:
        scalars[WAIT_HEAD] = i
    scalars[WAIT_TAIL] = i


@jit
def _unlink(ints: Ints, scalars: Ints, i: int) -> None:
    before, after = ints[PREVIOUS, i], ints[NEXT, i]
    if before >= 0:
        ints[NEXT, before] = after
    else:
        scalars[WAIT_HEAD] = after
    if after >= 0:
        ints[PREVIOUS, after] = before
    else:
        scalars[WAIT_TAIL] = before


@jit
def _evict(ints: Ints, scalars: Ints, clock: Floats, i: int) -> None:
    """Take request i off the GPU and put it at the head of the queue; the caller unlists it."""
    if scalars[SWAPS]:
        clock[SWAP_DEBT_S] += ints[COMPUTED, i] * clock[SWAP_S]
    else:
        # Whole blocks of what the prefix cache will still have when the request comes back.
        hit = int(clock[HIT_SHARE] * ints[COMPUTED, i]) // scalars[BLOCK_TOKENS]
        ints[COMPUTED, i] = hit * scalars[BLOCK_TOKENS]
    scalars[FREE_BLOCKS] += ints[BLOCKS, i]
    ints[BLOCKS, i] = 0
    ints[STATE, i] = PREEMPTED
    ints[PREEMPTIONS, i] += 1
    scalars[PREEMPTIONS_SEEN] += 1
    _push_front(ints, scalars, i)


@jit
def _advance_reader(ints: Ints, floats: Floats, i: int, age: float) -> None:
    """Let the reader of request i digest up to ``age`` seconds after its arrival."""
    floats[DIGESTED, i], floats[AREA, i] = advance(
        floats[UPDATED, i],
        age,
        ints[GENERATED, i],
        floats[DIGESTED, i],
        floats[AREA, i],
        floats[TTFT, i],
        floats[TDS, i],
    )
    floats[UPDATED, i] = age


@jit
def _deliver(
    ints: Ints, floats: Floats, scalars: Ints, clock: Floats, i: int, token_times: Floats
) -> None:
    """Request i's next token reaches its client now."""
    generated = ints[GENERATED, i]
    age = clock[NOW] - floats[ARRIVAL, i]
    _advance_reader(ints, floats, i, age)

    spacing = 1.0 / floats[TDS, i]
    begun = max(age, floats[TTFT, i])
    if generated > 0:
        begun = max(begun, floats[LAST_DIGEST, i] + spacing)
    else:
        floats[FIRST_TOKEN, i] = age
    horizon = floats[TTFT, i] + ints[OUTPUT, i] * spacing
    floats[WINDOW_AREA, i] += token_window_area(horizon - begun, floats[TDS, i])
    floats[LAST_DIGEST, i] = begun
    floats[DIGEST_SUM, i] += begun
    floats[LAST_TOKEN, i] = age
    if token_times.size:
        token_times[ints[TOKEN_OFFSET, i] + generated] = age
    ints[GENERATED, i] = generated + 1
    scalars[TOKENS_DELIVERED] += 1


@jit
def _lacking(ints: Ints, i: int) -> int:
    """Tokens of request i that are known but not yet in its KV cache, >= 1."""
    return ints[PROMPT, i] + ints[GENERATED, i] - ints[COMPUTED, i]


@jit
def _blocks_for(tokens: int, block_tokens: int) -> int:
    return (tokens + block_tokens - 1) // block_tokens


@jit
def _short_of_blocks(ints: Ints, scalars: Ints, running: Ints) -> bool:
    """True if the running requests need more blocks in this iteration than are free."""
    budget = scalars[TOKEN_BUDGET]
    needed = 0
    for k in range(scalars[NUM_RUNNING]):
        if budget == 0:
            break
        i = running[k]
        chunk = min(_lacking(ints, i), budget)
        budget -= chunk
        needed += _blocks_for(ints[COMPUTED, i] + chunk, scalars[BLOCK_TOKENS]) - ints[BLOCKS, i]
    return needed > scalars[FREE_BLOCKS]


@jit
def _take_blocks(ints: Ints, scalars: Ints, i: int, chunk: int) -> bool:
    """Give request i the blocks for ``chunk`` more tokens; False if there are too few."""
    total = _blocks_for(ints[COMPUTED, i] + chunk, scalars[BLOCK_TOKENS])
    needed = total - ints[BLOCKS, i]
    if needed > scalars[FREE_BLOCKS]:
        return False
    scalars[FREE_BLOCKS] -= needed
    ints[BLOCKS, i] = total
    return True


@jit
def _schedule_running(ints: Ints, scalars: Ints, clock: Floats, running: Ints) -> tuple[int, bool]:
    """Give the running requests their tokens; returns (budget left, preempted any)."""
    budget = scalars[TOKEN_BUDGET]
    preempted = False
    k = 0
    while k < scalars[NUM_RUNNING] and budget > 0:
        i = running[k]
        chunk = min(_lacking(ints, i), budget)
        while not _take_blocks(ints, scalars, i, chunk):
            scalars[NUM_RUNNING] -= 1
            victim = running[scalars[NUM_RUNNING]]
            ints[CHUNK, victim] = 0
            _evict(ints, scalars, clock, victim)
            preempted = True
            if victim == i:
                break
        if ints[STATE, i] != RUNNING:
            break
        ints[CHUNK, i] = chunk
        budget -= chunk
        k += 1
    # Requests that the budget did not reach compute nothing in this iteration.
    for rest in range(k, scalars[NUM_RUNNING]):
        ints[CHUNK, running[rest]] = 0
    return budget, preempted


@jit
def _admit(
    ints: Ints, scalars: Ints, clock: Floats, running: Ints, admit: Ints, budget: int
) -> None:
    """Admit waiting requests in order while blocks, budget and batch limit allow."""
    while budget > 0 and scalars[NUM_RUNNING] < scalars[MAX_BATCH]:
        if scalars[PLANNED]:
            if scalars[NEXT_ADMIT] >= scalars[NUM_ADMIT]:
                return
            i = admit[scalars[NEXT_ADMIT]]
        else:
            i = scalars[WAIT_HEAD]
            if i < 0:
                return
        if ints[STATE, i] != WAITING and ints[STATE, i] != PREEMPTED:
            scalars[NEXT_ADMIT] += 1
            continue
        chunk = min(_lacking(ints, i), budget)
        if not _take_blocks(ints, scalars, i, chunk):
            return
        if ints[STATE, i] == PREEMPTED and scalars[SWAPS]:
            clock[SWAP_DEBT_S] += ints[COMPUTED, i] * clock[SWAP_S]
        if scalars[PLANNED]:
            scalars[NEXT_ADMIT] += 1
        _unlink(ints, scalars, i)
        ints[STATE, i] = RUNNING
        ints[CHUNK, i] = chunk
        running[scalars[NUM_RUNNING]] = i
        scalars[NUM_RUNNING] += 1
        budget -= chunk


@jit
def _resume_held(ints: Ints, scalars: Ints, active: Ints, running: Ints) -> None:
    """Pass-through knows no held requests: they run again, oldest first, as slots allow."""
    for k in range(scalars[NUM_ACTIVE]):
        i = active[k]
        if ints[STATE, i] == HELD and scalars[NUM_RUNNING] < scalars[MAX_BATCH]:
            ints[STATE, i] = RUNNING
            running[scalars[NUM_RUNNING]] = i
            scalars[NUM_RUNNING] += 1
            scalars[NUM_HELD] -= 1


@jit
def _compute(
    ints: Ints, floats: Floats, scalars: Ints, clock: Floats, running: Ints, token_times: Floats
) -> tuple[int, int, bool]:
    """
    Run the scheduled iteration: the clock moves, tokens are delivered.

    Returns (requests decoding, prompt tokens computed, any finished).
    """
    decoding, prefill, context = 0, 0, 0
    for k in range(scalars[NUM_RUNNING]):
        i = running[k]
        if ints[CHUNK, i] == 1 and ints[GENERATED, i] > 0 and _lacking(ints, i) == 1:
            decoding += 1
            context += ints[COMPUTED, i] + 1
        else:
            prefill += ints[CHUNK, i]
    elapsed = (
        clock[BASE_S]
        + clock[REQUEST_S] * decoding
        + clock[CONTEXT_S] * context
        + clock[PREFILL_S] * prefill
        + clock[SWAP_DEBT_S]
    )
    clock[SWAP_DEBT_S] = 0.0
    clock[NOW] += elapsed
    clock[BUSY_S] += elapsed
    scalars[ITERATIONS] += 1

    finished = False
    kept = 0
    for k in range(scalars[NUM_RUNNING]):
        i = running[k]
        ints[COMPUTED, i] += ints[CHUNK, i]
        if ints[CHUNK, i] > 0 and _lacking(ints, i) == 0:
            _deliver(ints, floats, scalars, clock, i, token_times)
            if ints[GENERATED, i] == ints[OUTPUT, i]:
                scalars[FREE_BLOCKS] += ints[BLOCKS, i]
                ints[BLOCKS, i] = 0
                ints[STATE, i] = FINISHED
                scalars[NUM_FINISHED] += 1
                finished = True
                continue
        running[kept] = i
        kept += 1
    scalars[NUM_RUNNING] = kept
    if clock[NOW] <= floats[ARRIVAL, -1]:
        scalars[TOKENS_BY_LAST_ARRIVAL] = scalars[TOKENS_DELIVERED]
    return decoding, prefill, finished


@jit
def _drop_finished(ints: Ints, scalars: Ints, active: Ints) -> None:
    kept = 0
    for k in range(scalars[NUM_ACTIVE]):
        i = active[k]
        if ints[STATE, i] != FINISHED:
            active[kept] = i
            kept += 1
    scalars[NUM_ACTIVE] = kept


@jit
def _arrive(ints: Ints, floats: Floats, scalars: Ints, clock: Floats, active: Ints) -> bool:
    """Let the requests in that have arrived by now; True if there were any."""
    arrived = False
    while (
        scalars[NEXT_ARRIVAL] < ints.shape[1]
        and floats[ARRIVAL, scalars[NEXT_ARRIVAL]] <= clock[NOW]
    ):
        i = scalars[NEXT_ARRIVAL]
        scalars[NEXT_ARRIVAL] += 1
        if ints[STATE, i] == REJECTED:
            continue
        ints[STATE, i] = WAITING
        _push_back(ints, scalars, i)
        active[scalars[NUM_ACTIVE]] = i
        scalars[NUM_ACTIVE] += 1
        arrived = True
    return arrived


@jit
def _sample(scalars: Ints, clock: Floats, decoding: int, prefill: int, samples: Floats) -> None:
    row = samples[scalars[NUM_SAMPLES]]
    row[0] = clock[NOW]
    row[1] = decoding
    row[2] = prefill
    row[3] = scalars[NUM_BLOCKS] - scalars[FREE_BLOCKS]
    row[4] = scalars[NUM_ACTIVE] - scalars[NUM_RUNNING] - scalars[NUM_HELD]
    row[5] = scalars[NUM_HELD]
    scalars[NUM_SAMPLES] += 1


@jit
def run(
    ints: Ints,
    floats: Floats,
    scalars: Ints,
    clock: Floats,
    active: Ints,
    running: Ints,
    admit: Ints,
    token_times: Floats,
    samples: Floats,
) -> int:
    """
    Iterate until a policy must be asked, the samples are full, or all work is done.

    Returns
    -------
    int
        DONE, ASK, SAMPLES_FULL, or STARVED: the policy in charge left requests waiting
        and the engine empty for :data:`MAX_IDLE_STEPS` steps in a row.
    """
    while True:
        if _arrive(ints, floats, scalars, clock, active):
            scalars[MUST_ASK] = 1
        if scalars[NUM_ACTIVE] == 0:
            if scalars[NEXT_ARRIVAL] >= ints.shape[1]:
                return DONE
            clock[NOW] = max(clock[NOW], floats[ARRIVAL, scalars[NEXT_ARRIVAL]])
            continue
        if samples.shape[0] and scalars[NUM_SAMPLES] == samples.shape[0]:
            return SAMPLES_FULL

        asks = scalars[COUNTDOWN] >= 0  # negative: the policy need never be asked again
        due = scalars[MUST_ASK] or scalars[COUNTDOWN] == 0
        if asks and not scalars[JUST_ASKED] and (due or _short_of_blocks(ints, scalars, running)):
            return ASK
        scalars[JUST_ASKED] = 0

        if scalars[NUM_HELD] > 0 and not scalars[PLANNED]:
            _resume_held(ints, scalars, active, running)
        budget, preempted = _schedule_running(ints, scalars, clock, running)
        if preempted:
            scalars[MUST_ASK] = 1  # the engine had to overrule the decision in force
        else:
            _admit(ints, scalars, clock, running, admit, budget)
        if asks:
            scalars[COUNTDOWN] -= 1

        if scalars[NUM_RUNNING] == 0:
            # Nothing to compute: the decision in force leaves the engine idle. Time passes
            # as for an empty iteration, and the policy is asked again.
            scalars[IDLE_STEPS] += 1
            if scalars[IDLE_STEPS] > MAX_IDLE_STEPS:
                return STARVED
            clock[NOW] += clock[BASE_S] + clock[SWAP_DEBT_S]
            clock[SWAP_DEBT_S] = 0.0
            scalars[MUST_ASK] = 1
            continue
        scalars[IDLE_STEPS] = 0

        decoding, prefill, finished = _compute(ints, floats, scalars, clock, running, token_times)
        if finished:
            _drop_finished(ints, scalars, active)
            scalars[MUST_ASK] = 1
        if samples.shape[0]:
            _sample(scalars, clock, decoding, prefill, samples)


@jit
def apply(
    ints: Ints,
    scalars: Ints,
    clock: Floats,
    active: Ints,
    running: Ints,
    admit: Ints,
    action: NDArray[np.int8],
    order: Ints,
    countdown: int,
) -> bool:
    """
    Carry out a decision: evict, hold, then list what may be admitted, in order.

    ``action`` has a value per active request, or none at all for pass-through. Returns
    False, with nothing carried out, if ``order`` is not a permutation of these requests or
    an action is unknown.
    """
    if action.size > 0:
        if order.size != action.size:
            return False
        listed = np.zeros(action.size, dtype=np.bool_)
        for k in order:
            if k < 0 or k >= action.size or listed[k] or action[k] < 0 or action[k] > 2:
                return False
            listed[k] = True

    scalars[MUST_ASK] = 0
    scalars[JUST_ASKED] = 1
    scalars[COUNTDOWN] = countdown
    scalars[NEXT_ADMIT] = 0
    scalars[NUM_ADMIT] = 0

    if action.size == 0:
        scalars[PLANNED] = 0
        return True

    scalars[PLANNED] = 1
    # Newest first, so that the queue's head ends up with the oldest evicted request.
    for k in range(scalars[NUM_ACTIVE] - 1, -1, -1):
        i = active[k]
        resident = ints[STATE, i] == RUNNING or ints[STATE, i] == HELD
        if resident and action[k] == 0:
            _evict(ints, scalars, clock, i)
        elif resident and action[k] == 2:
            ints[STATE, i] = HELD

    # Who is to be served and has its KV here runs, the most urgent first; beyond the batch
    # limit it is held.
    scalars[NUM_RUNNING] = 0
    for position in range(order.size):
        k = order[position]
        i = active[k]
        if action[k] != 1:
            continue
        if ints[STATE, i] == WAITING or ints[STATE, i] == PREEMPTED:
            admit[scalars[NUM_ADMIT]] = i
            scalars[NUM_ADMIT] += 1
        elif scalars[NUM_RUNNING] < scalars[MAX_BATCH]:
            ints[STATE, i] = RUNNING
            running[scalars[NUM_RUNNING]] = i
            scalars[NUM_RUNNING] += 1
        else:
            ints[STATE, i] = HELD

    scalars[NUM_HELD] = 0
    for k in range(scalars[NUM_ACTIVE]):
        scalars[NUM_HELD] += ints[STATE, active[k]] == HELD
    return True


@jit
def gather(
    ints: Ints,
    floats: Floats,
    scalars: Ints,
    clock: Floats,
    active: Ints,
    out_ints: Ints,
    out_floats: Floats,
) -> None:
    """
    Copy what a snapshot shows of the active requests.

    ``out_ints`` (8, n): request id, prompt, generated, resident KV tokens, KV tokens
    needed if served, delivered, preemptions, state. ``out_floats`` (6, n): arrival,
    ttft, tds, digested, area, restore.
    """
    block_tokens = scalars[BLOCK_TOKENS]
    capacity = scalars[NUM_BLOCKS] * block_tokens
    for k in range(scalars[NUM_ACTIVE]):
        i = active[k]
        _advance_reader(ints, floats, i, clock[NOW] - floats[ARRIVAL, i])

        context = ints[PROMPT, i] + ints[GENERATED, i]
        need = (_blocks_for(context, block_tokens) + 1) * block_tokens
        lacking = _lacking(ints, i)
        # A decoding request lacks one token in every iteration; that is no restoring.
        work = lacking - 1 if ints[GENERATED, i] > 0 else lacking
        restore = work * clock[PREFILL_S]
        if ints[STATE, i] == PREEMPTED and scalars[SWAPS]:
            restore += ints[COMPUTED, i] * clock[SWAP_S]

        out_ints[0, k] = i
        out_ints[1, k] = ints[PROMPT, i]
        out_ints[2, k] = ints[GENERATED, i]
        out_ints[3, k] = ints[BLOCKS, i] * block_tokens
        out_ints[4, k] = min(need, capacity)
        out_ints[5, k] = ints[GENERATED, i]
        out_ints[6, k] = ints[PREEMPTIONS, i]
        out_ints[7, k] = ints[STATE, i]
        out_floats[0, k] = floats[ARRIVAL, i]
        out_floats[1, k] = floats[TTFT, i]
        out_floats[2, k] = floats[TDS, i]
        out_floats[3, k] = floats[DIGESTED, i]
        out_floats[4, k] = floats[AREA, i]
        out_floats[5, k] = restore
