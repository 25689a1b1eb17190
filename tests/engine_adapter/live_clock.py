"""A clock that a test owns: time is what it says, and the adapter's work costs what it states."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(eq=False)
class StatedClock:
    """
    Virtual time.

    Parameters
    ----------
    cost_of_s
        Part of the adapter's work to what it costs each time, in seconds; others are free.
    solve_of_s
        What a plan of the background costs; None for what it took.
    """

    cost_of_s: dict[str, float] = field(default_factory=dict)
    solve_of_s: float | None = None
    waits: bool = True
    now_s: float = 0.0
    spent_s: float = 0.0

    def time_s(self) -> float:
        """Returns the time of day: the engine's."""
        return self.now_s

    def monotonic_s(self) -> float:
        """Returns the engine's time."""
        return self.now_s

    def cost_s(self, part: str) -> float:
        """Returns the timer of the adapter's work after adding what the part costs."""
        self.spent_s += self.cost_of_s.get(part, 0.0)
        return self.spent_s

    def solve_s(self, measured_s: float) -> float:
        """Returns what a plan of the background costs."""
        return measured_s if self.solve_of_s is None else self.solve_of_s
