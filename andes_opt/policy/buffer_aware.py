"""Buffer-aware: full buffers make room for empty ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from andes_opt import checks
from andes_opt.policy.packing import backlog_s, displace
from andes_opt.snapshot import State

if TYPE_CHECKING:
    from andes_opt.snapshot import Decision, Snapshot


class BufferAware:
    """
    Keep every reader's buffer from running empty, after TokenFlow (arXiv 2510.02758).

    Requests whose readers have the least text in hand come first, among equals those that
    arrived first. Room is made by evicting requests with more than ``high_s`` seconds of text, the
    fullest buffer first; they come back when less than ``low_s`` seconds are left. TokenFlow
    also overlaps moving KV with computing, which engines here do not.

    Parameters
    ----------
    high_s, low_s
        Seconds of text, 0 <= low_s < high_s.

    Raises
    ------
    ValueError
        If the marks are out of range.
    """

    def __init__(self, high_s: float = 10.0, low_s: float = 3.0) -> None:
        checks.positive("high_s", high_s)
        checks.non_negative("low_s", low_s)
        if low_s >= high_s:
            raise ValueError(f"low_s = {low_s} not understood: need less than high_s = {high_s}.")
        self._high_s = high_s
        self._low_s = low_s

    def decide(self, snapshot: Snapshot) -> Decision:
        """Let absent requests in, emptiest buffer first, in exchange for the fullest buffers."""
        text_s = backlog_s(snapshot)
        satisfied = (snapshot.state == State.PREEMPTED) & (text_s >= self._low_s)
        entrants = np.lexsort((snapshot.arrival_s, text_s))
        return displace(snapshot, entrants, ~satisfied, text_s, self._high_s)

    def finished(self, request_id: int) -> None:
        """Nothing is kept."""
