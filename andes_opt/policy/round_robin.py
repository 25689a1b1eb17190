"""Round-robin: every request gets the GPU for a quantum of tokens, in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from andes_opt import checks
from andes_opt.policy.packing import fits_in_order
from andes_opt.snapshot import Action, Decision

if TYPE_CHECKING:
    from andes_opt.snapshot import Snapshot


class RoundRobin:
    """
    Serve from the head of a queue; a request that has had its quantum goes to the tail.

    This is the fair baseline of the Andes paper (arXiv 2404.16283v1, section 6.1), which found
    turns of 50 iterations, that is 50 tokens, best. Arrivals join the tail. The room that a
    finished request leaves goes to the next in the queue at once.

    Parameters
    ----------
    quantum_tokens
        Tokens of a turn, >= 1.

    Raises
    ------
    ValueError
        If the quantum is < 1.
    """

    def __init__(self, quantum_tokens: int = 50) -> None:
        checks.whole("quantum_tokens", quantum_tokens, 1)
        self._quantum = quantum_tokens
        self._tickets: dict[int, int] = {}  # request -> its number in the queue
        self._turn_ends: dict[int, int] = {}  # request -> generated tokens that end its turn
        self._next_ticket = 0

    def decide(self, snapshot: Snapshot) -> Decision:
        """Serve the longest prefix of the queue that fits."""
        ids = snapshot.request_id.tolist()
        generated = snapshot.generated_tokens.tolist()
        for request, tokens in zip(ids, generated, strict=True):
            if request not in self._tickets or tokens >= self._turn_ends[request]:
                self._enqueue(request, tokens)

        tickets = np.array([self._tickets[request] for request in ids], dtype=np.int64)
        order = np.argsort(tickets, kind="stable")
        serve = fits_in_order(
            order, snapshot.need_tokens, snapshot.capacity_tokens, snapshot.max_batch
        )
        left = [self._turn_ends[ids[i]] - generated[i] for i in np.flatnonzero(serve)]
        return Decision(
            action=np.where(serve, Action.SERVE, Action.WAIT).astype(np.int8),
            order=order,
            replan_after=min(left, default=1),
        )

    def finished(self, request_id: int) -> None:
        """Forget the request's place in the queue."""
        self._tickets.pop(request_id, None)
        self._turn_ends.pop(request_id, None)

    def _enqueue(self, request: int, generated_tokens: int) -> None:
        self._tickets[request] = self._next_ticket
        self._turn_ends[request] = generated_tokens + self._quantum
        self._next_ticket += 1
