"""
The one clock that the adapter asks.

On a real engine it is the machine's. An engine in virtual time owns one of its own, and charges
the adapter's work as it likes: not at all, by stated seconds, or as measured.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


class Clock(Protocol):
    """
    Time, and what the adapter's work costs.

    Attributes
    ----------
    waits
        True in virtual time, which does not pass while a planner beside the engine works: the
        adapter then waits for such a planner, and uses its plan once the time that it took has
        passed on this clock.
    """

    waits: bool

    def time_s(self) -> float:
        """Returns the time of day, in seconds since 1970: the clock of ``Request.arrival_time``."""
        ...

    def monotonic_s(self) -> float:
        """Returns the engine's time in seconds, which never goes back."""
        ...

    def cost_s(self, part: str) -> float:
        """
        Returns the reading of the timer of the adapter's work, in seconds; differences count.

        Parameters
        ----------
        part
            What the engine's thread has done since the last reading: ``"observe"``,
            ``"snapshot"``, ``"decide"`` or ``"apply"``, as in
            :class:`engine_adapter.report.Report`; empty for nothing of the adapter's. A clock in
            virtual time may add what it states for that part, once for each reading.
        """
        ...

    def solve_s(self, measured_s: float) -> float:
        """
        Returns for how long a planner beside the engine worked, on this clock.

        Parameters
        ----------
        measured_s
            How long it really took.
        """
        ...


class SystemClock:
    """The machine's clocks, for an engine that runs in real time."""

    waits = False

    def time_s(self) -> float:
        """Returns the machine's time of day."""
        return time.time()

    def monotonic_s(self) -> float:
        """Returns the machine's monotonic time."""
        return time.monotonic()

    def cost_s(self, part: str) -> float:
        """Returns the machine's finest timer; work takes as long as it takes."""
        del part
        return time.perf_counter()

    def solve_s(self, measured_s: float) -> float:
        """Returns the measured seconds."""
        return measured_s


class Stopwatch:
    """
    Shares out the engine thread's time in the adapter among the parts of its work.

    Parameters
    ----------
    clock
        The clock.
    spend
        Called with a part and the seconds that it took.

    Attributes
    ----------
    total_s
        Seconds of all parts.
    """

    def __init__(self, clock: Clock, spend: Callable[[str, float], None]) -> None:
        self._clock = clock
        self._spend = spend
        self._last_s = 0.0
        self.total_s = 0.0

    def start(self) -> None:
        """What was done since the last lap was not the adapter's work."""
        self._last_s = self._clock.cost_s("")

    def lap(self, part: str) -> None:
        """What was done since the last lap was this part's."""
        now_s = self._clock.cost_s(part)
        self._add(part, now_s - self._last_s)
        self._last_s = now_s

    def timed(self, part: str, took_s: float) -> None:
        """What was done since the last lap was this part's, and has been timed already."""
        self._add(part, took_s)
        self.start()

    def _add(self, part: str, took_s: float) -> None:
        self._spend(part, took_s)
        self.total_s += took_s
