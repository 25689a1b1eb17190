"""Newest first: a newcomer takes the place of the reader with the most text in hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from andes_opt import checks
from andes_opt.policy.packing import backlog_s, displace
from andes_opt.snapshot import State

if TYPE_CHECKING:
    from andes_opt.snapshot import Decision, Snapshot


class NewestFirst:
    """
    Let the newest request in, and evict those whose readers have the most text for it.

    Last come, first served, is what many servers do under overload, since the oldest requests
    have been given up by then. Here a request that was evicted comes back as an old one does, but
    not before its reader has read up.

    Parameters
    ----------
    spare_s
        Seconds of text in hand from which on a resident request may be evicted, > 0. A
        preempted one comes back when less than half of it is left.

    Raises
    ------
    ValueError
        If ``spare_s`` is not a number > 0.
    """

    def __init__(self, spare_s: float = 10.0) -> None:
        checks.positive("spare_s", spare_s)
        self._spare_s = spare_s

    def decide(self, snapshot: Snapshot) -> Decision:
        """Let absent requests in, newest first, in exchange for the fullest buffers."""
        text_s = backlog_s(snapshot)
        satisfied = (snapshot.state == State.PREEMPTED) & (text_s >= 0.5 * self._spare_s)
        entrants = np.lexsort((-snapshot.arrival_s, satisfied))
        return displace(snapshot, entrants, ~satisfied, text_s, self._spare_s)

    def finished(self, request_id: int) -> None:
        """Nothing is kept."""
