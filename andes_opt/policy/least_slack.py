"""Least slack first: serve the readers who would fall behind soonest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from andes_opt import checks
from andes_opt.policy.packing import serve_in_order, slack_s

if TYPE_CHECKING:
    from andes_opt.snapshot import Decision, Snapshot


class LeastSlack:
    """
    Serve in order of the seconds until a reader has nothing left to read.

    The slack of a request is the time until its first token is due, or until its reader has
    digested what was delivered, minus the time that restoring it takes. Readers who are already
    late all have slack 0; among them, the longest wait goes first. This is earliest deadline
    first for token streams; it ignores memory and value.

    Parameters
    ----------
    grain_s
        Slacks are compared in whole multiples of this, > 0, and a resident request goes
        before others of the same. Without some grain two readers would swap places with
        every token.

    Raises
    ------
    ValueError
        If the grain is not a number > 0.
    """

    def __init__(self, grain_s: float = 3.0) -> None:
        checks.positive("grain_s", grain_s)
        self._grain_s = grain_s

    def decide(self, snapshot: Snapshot) -> Decision:
        """Serve the longest prefix of the order that fits."""
        grains = np.floor(np.maximum(slack_s(snapshot), 0.0) / self._grain_s)
        absent = snapshot.kv_tokens == 0
        return serve_in_order(snapshot, np.lexsort((snapshot.arrival_s, absent, grains)))

    def finished(self, request_id: int) -> None:
        """Nothing is kept."""
