"""What the adapter did and what that cost: counters, and the file they are written to."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

#: Iterations over which percentiles of the adapter's own time are taken.
_RECENT = 4096


@dataclass(slots=True)
class Report:
    """
    Counters since the engine started.

    Parameters
    ----------
    iterations, passed_through
        Calls of the scheduler, and those in which it was left alone.
    plans, late_plans, late_rejected
        Decisions of the engine's thread that were applied, those of the background, and
        background plans that were too old or no longer fitted.
    evicted, held, engine_preemptions
        Evictions ordered, requests held (summed over iterations), and preemptions that the
        engine made on its own.
    observe_s, snapshot_s, decide_s, apply_s
        Time on the engine's thread: tracking requests and writing this report, taking snapshots,
        asking the policy, and reordering queues. Together they are all that the adapter does.
    planning_s
        Time on the engine's thread for all that can be put off: its own plans, from the snapshot
        to the reordered queues, snapshots for the background, and applying its plans. This is what
        ``planning_share_limit`` bounds.
    engine_s
        Time between the first and the last iteration, idle gaps and pauses of more than a
        minute left out.
    late_age_s_sum, late_age_s_max
        Age of background plans when they were applied.
    rescues
        Times that the engine took over because a plan moved nothing.
    resumed_tokens, resumed_cached_tokens
        Context of the preempted requests that came back, in tokens, and how much of it the
        prefix cache still had.
    finished, qoe_area_sum, qoe_area_tenths
        Readers who have left after at least one token, the sum of their QoE (`area`, as in
        docs/metrics.md, as far as the engine sees it: without the network), and how many of
        them scored in [0, 0.1), [0.1, 0.2), ... [0.9, 1].
    """

    iterations: int = 0
    passed_through: int = 0
    plans: int = 0
    late_plans: int = 0
    late_rejected: int = 0
    evicted: int = 0
    held: int = 0
    engine_preemptions: int = 0
    rescues: int = 0
    resumed_tokens: int = 0
    resumed_cached_tokens: int = 0
    observe_s: float = 0.0
    snapshot_s: float = 0.0
    decide_s: float = 0.0
    apply_s: float = 0.0
    planning_s: float = 0.0
    engine_s: float = 0.0
    late_age_s_sum: float = 0.0
    late_age_s_max: float = 0.0
    finished: int = 0
    qoe_area_sum: float = 0.0
    qoe_area_tenths: list[int] = field(default_factory=lambda: [0] * 10)
    _recent_s: NDArray[np.float64] = field(default_factory=lambda: np.zeros(_RECENT))

    @property
    def adapter_s(self) -> float:
        """All time that the adapter has taken on the engine's thread."""
        return self.observe_s + self.snapshot_s + self.decide_s + self.apply_s

    def spend(self, part: str, took_s: float) -> None:
        """Add to the time of a part: ``"observe"``, ``"snapshot"``, ``"decide"``, ``"apply"``."""
        name = f"{part}_s"
        setattr(self, name, getattr(self, name) + took_s)

    def add_reader(self, qoe_area: float) -> None:
        """Count a reader who left with a QoE in [0, 1]."""
        self.finished += 1
        self.qoe_area_sum += qoe_area
        self.qoe_area_tenths[min(9, int(10 * qoe_area))] += 1

    def add_iteration(self, own_s: float) -> None:
        """Count one iteration in which the adapter took ``own_s`` seconds."""
        self._recent_s[self.iterations % _RECENT] = own_s
        self.iterations += 1

    def last_iteration(self, own_s: float) -> None:
        """Correct what the adapter took in the iteration that was counted last."""
        self._recent_s[(self.iterations - 1) % _RECENT] = own_s

    def summary(self) -> dict[str, Any]:
        """Returns the counters, and what follows from them, ready for JSON."""
        names = [item.name for item in fields(self) if not item.name.startswith("_")]
        values: dict[str, Any] = {name: getattr(self, name) for name in names}
        values["qoe_area_tenths"] = list(self.qoe_area_tenths)
        recent = np.sort(self._recent_s[: self.iterations])
        values["adapter_s"] = self.adapter_s
        values["iteration_mean_s"] = self.adapter_s / max(1, self.iterations)
        for name in ("planning", "adapter"):
            share = values[f"{name}_s"] / self.engine_s if self.engine_s > 0 else 0.0
            values[f"{name}_share"] = share
        for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)):
            place = min(len(recent) - 1, int(share * len(recent)))
            values[f"iteration_{name}_s"] = float(recent[place]) if recent.size else 0.0
        return values


def write_report(path: str, values: Mapping[str, Any]) -> None:
    """Write values as JSON, so that a reader never sees half of them."""
    target = Path(path)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(dict(values), indent=1) + "\n", encoding="utf-8")
    partial.replace(target)


def read_report(path: str) -> dict[str, Any] | None:
    """Returns the counters in a file; None if there are none yet."""
    try:
        report: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return report
