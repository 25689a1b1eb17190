"""
What a policy sees and what it answers: the contract between policies and engines.

The same policy object runs in the simulator and inside vLLM, so a snapshot holds
nothing that a live engine would not know at that moment.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from andes_opt.latency import LatencyModel
    from andes_opt.plan import Plan

#: ``replan_after`` of a pass-through that need not be asked again, whatever happens.
NEVER = 2**62


class Action(IntEnum):
    """
    What to do with a request.

    WAIT evicts a resident one; HOLD keeps its KV and its place in the batch, and computes nothing.
    """

    WAIT = 0
    SERVE = 1
    HOLD = 2


class State(IntEnum):
    """Where a request stands in the engine."""

    WAITING = 0
    RUNNING = 1
    PREEMPTED = 2
    HELD = 3


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """
    The engine at one moment. Arrays are (n,), one entry per unfinished request, in
    arrival order; nothing in them comes from the future.

    Parameters
    ----------
    time_s
        Now, on the engine's clock.
    request_id
        The engine's number of each request, int64, unique for a run.
    arrival_s
        Arrival on the engine's clock.
    prompt_tokens, generated_tokens
        Prompt length, and tokens of the reply that have reached the client.
    kv_tokens
        KV tokens resident on the GPU (whole blocks), 0 if none.
    need_tokens
        KV tokens held if served now: whole blocks of the context plus one block, at most
        ``capacity_tokens``. The engine lets a request in if its whole context fits, so it can
        play a plan whose requests need at most ``capacity_tokens`` together.
    state
        :class:`State` of each request.
    ttft_s, tds
        The reader's target.
    digested, area
        Tokens that the reader has digested so far, fractions allowed, and the integral of
        that number over time (docs/model.md, Quality of experience).
    preemptions
        How often each request has been preempted.
    restore_s
        Seconds from being served to the next token beyond a normal iteration: prompt to
        compute, KV to swap in or to recompute; 0 for a request that is running.
    capacity_tokens, block_tokens
        KV tokens there are for plans (without those that letting requests in leaves free), and
        tokens per block.
    max_batch
        Places in the batch: most requests the engine runs and holds at once.
    token_budget
        Most tokens (decode and prefill) of one iteration.
    latency
        The latency model.
    requests_seen, preemptions_seen
        Arrivals and preemptions since the start.
    oracle_output_tokens
        True output lengths; None unless the run says oracle=true; never live.
    """

    time_s: float
    request_id: NDArray[np.int64]
    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    generated_tokens: NDArray[np.int64]
    kv_tokens: NDArray[np.int64]
    need_tokens: NDArray[np.int64]
    state: NDArray[np.int8]
    ttft_s: NDArray[np.float64]
    tds: NDArray[np.float64]
    digested: NDArray[np.float64]
    area: NDArray[np.float64]
    preemptions: NDArray[np.int64]
    restore_s: NDArray[np.float64]
    capacity_tokens: int
    block_tokens: int
    max_batch: int
    token_budget: int
    latency: LatencyModel
    requests_seen: int
    preemptions_seen: int
    oracle_output_tokens: NDArray[np.int64] | None = None

    @property
    def num_requests(self) -> int:
        """Number of unfinished requests n."""
        return int(self.request_id.size)


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """
    A policy's answer. The engine evicts, then holds, then admits in ``order`` while KV
    and token budget allow.

    A held request keeps its place in the batch, as it does in vLLM, where it stays one of at most
    ``max_num_seqs`` running requests. So a decision serves and holds at most
    ``Snapshot.max_batch`` requests together. The simulator and the vLLM adapter refuse another
    (:func:`check_places`).

    Parameters
    ----------
    action
        :class:`Action` of each request of the snapshot, (n,) int8; None for
        pass-through: the engine's own first-come-first-served.
    order
        Indices into the snapshot, most urgent first, (n,); empty with pass-through.
    plan
        The solver's plan behind the decision, if there was one.
    replan_after
        Iterations after which the engine asks again, >= 1. An arrival, a finish or a KV
        shortage asks sooner, except after a pass-through for :data:`NEVER`.
    """

    action: NDArray[np.int8] | None = None
    order: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    plan: Plan | None = None
    replan_after: int = 1

    @property
    def final(self) -> bool:
        """
        True if the engine need not ask again: pass-through for exactly :data:`NEVER`.

        A plan covers the requests that it was made for, so that it can't be final, and any
        other large number means no more than "when something happens".
        """
        return self.action is None and self.replan_after == NEVER


def check_places(action: NDArray[np.int8], max_batch: int) -> None:
    """
    Check that the requests which a decision serves or holds have a place in the batch each.

    Parameters
    ----------
    action
        :class:`Action` of each request, (n,).
    max_batch
        Places in the batch, as in the snapshot.

    Raises
    ------
    ValueError
        If there are more of them than places.
    """
    if np.count_nonzero(action) > max_batch:
        served, held = (int(np.count_nonzero(action == a)) for a in (Action.SERVE, Action.HOLD))
        raise ValueError(
            f"a decision serves {served} and holds {held} requests, with {max_batch} places in the "
            "batch: a held request keeps its place, so need serve + hold <= max_batch."
        )


class Starved(RuntimeError):
    """A policy left its engine empty for good while requests waited."""


@runtime_checkable
class Policy(Protocol):
    """Decides which requests get the KV cache. A fresh object per run; it may keep state."""

    def decide(self, snapshot: Snapshot) -> Decision:
        """Answer a snapshot with a decision."""
        ...

    def finished(self, request_id: int) -> None:
        """A request has left the engine (done, aborted): drop what is kept for it."""
        ...
