"""Least attained service: the requests with the fewest tokens come first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from andes_opt import checks
from andes_opt.policy.packing import serve_in_order

if TYPE_CHECKING:
    from andes_opt.snapshot import Decision, Snapshot


class LeastAttained:
    """
    Serve in order of the tokens that a request has received.

    Without knowledge of reply lengths, least attained service (foreground-background) favours
    short replies; FastServe (arXiv 2305.05920) schedules LLM requests by a multi-level form of it.

    Parameters
    ----------
    grain_tokens
        Tokens are compared in whole multiples of this, >= 1. Among equals a resident request
        goes first, then the one that arrived first.

    Raises
    ------
    ValueError
        If the grain is not a whole number >= 1.
    """

    def __init__(self, grain_tokens: int = 64) -> None:
        checks.whole("grain_tokens", grain_tokens, 1)
        self._grain_tokens = grain_tokens

    def decide(self, snapshot: Snapshot) -> Decision:
        """Serve the longest prefix of the order that fits."""
        grains = snapshot.generated_tokens // self._grain_tokens
        absent = snapshot.kv_tokens == 0
        return serve_in_order(snapshot, np.lexsort((snapshot.arrival_s, absent, grains)))

    def finished(self, request_id: int) -> None:
        """Nothing is kept."""
