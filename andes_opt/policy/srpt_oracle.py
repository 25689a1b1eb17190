"""Shortest remaining reply first, with true reply lengths: what perfect prediction could gain."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from andes_opt import checks
from andes_opt.policy.packing import serve_in_order

if TYPE_CHECKING:
    from andes_opt.snapshot import Decision, Snapshot


class SRPTOracle:
    """
    Serve in order of the tokens that are still to come, the fewest first.

    This order minimises the mean completion time on a single machine; it ignores the readers. It
    needs true reply lengths (``oracle=true``), so it works in simulations only.

    Parameters
    ----------
    grain_tokens
        Remaining lengths are compared in whole multiples of this, >= 1, and a resident
        request goes before others of the same: nearly the same order with less swapping.

    Raises
    ------
    ValueError
        If the grain is < 1.
    """

    def __init__(self, grain_tokens: int = 16) -> None:
        checks.whole("grain_tokens", grain_tokens, 1)
        self._grain_tokens = grain_tokens

    def decide(self, snapshot: Snapshot) -> Decision:
        """
        Serve the longest prefix of the order that fits.

        Raises
        ------
        ValueError
            If the snapshot holds no true reply lengths.
        """
        lengths = snapshot.oracle_output_tokens
        if lengths is None:
            raise ValueError(
                "srpt_oracle needs the true reply lengths: set oracle=true "
                "(simulations only; a live engine doesn't know them)."
            )
        grains = (lengths - snapshot.generated_tokens) // self._grain_tokens
        absent = snapshot.kv_tokens == 0
        return serve_in_order(snapshot, np.lexsort((snapshot.arrival_s, absent, grains)))

    def finished(self, request_id: int) -> None:
        """Nothing is kept."""
