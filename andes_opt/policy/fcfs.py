"""First come, first served: what vLLM does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from andes_opt.snapshot import NEVER, Decision

if TYPE_CHECKING:
    from andes_opt.snapshot import Snapshot


class FCFS:
    """Leaves every decision to the engine's own first-come-first-served, for good."""

    def decide(self, snapshot: Snapshot) -> Decision:
        """Pass through, and never ask again."""
        return Decision(replan_after=NEVER)

    def finished(self, request_id: int) -> None:
        """Nothing is kept."""
