"""The clock of an engine in virtual time: it jumps, and charges the adapter as it is told."""

from __future__ import annotations

import time


class VirtualClock:
    """
    Virtual time, as :class:`engine_adapter.clock.Clock` describes it.

    Parameters
    ----------
    charge_s
        Seconds that a plan takes of the engine's thread; None for the measured time.
    background_s
        Seconds that a planner beside it takes for a plan; None for the measured time.

    Attributes
    ----------
    now_s
        Virtual time, which only the engine that runs moves.
    """

    waits = True

    def __init__(self, charge_s: float | None = 0.0, background_s: float | None = 0.0) -> None:
        self._charge_s = charge_s
        self._background_s = background_s
        self._spent_s = 0.0
        self.now_s = 0.0

    def time_s(self) -> float:
        """Returns virtual time: arrivals are on the same clock."""
        return self.now_s

    def monotonic_s(self) -> float:
        """Returns virtual time."""
        return self.now_s

    def cost_s(self, part: str) -> float:
        """Returns the timer of the adapter's work: the machine's, or what was spent so far."""
        del part
        return time.perf_counter() if self._charge_s is None else self._spent_s

    def solve_s(self, measured_s: float) -> float:
        """Returns what a planner beside the engine is charged for a plan."""
        return measured_s if self._background_s is None else self._background_s

    def spend(self, seconds: float) -> None:
        """Let the engine's thread work for so long; without effect where work is measured."""
        self._spent_s += seconds
