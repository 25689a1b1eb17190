"""What the simulator is told of a live run."""

from __future__ import annotations

import polars as pl
import pytest

from experiments.live.fidelity import pause_between_plans_s


@pytest.mark.parametrize(
    ("plan_s", "limit", "pause_s"),
    [
        (0.002, 0.01, 0.2),  # 2 ms are 1 % of 200 ms
        (0.004, 0.01, 0.4),
        (0.008, 0.01, 0.8),
        (0.008, 1.0, 0.0),
    ],
)
def test_the_pause_between_two_plans_follows_from_the_limit(plan_s, limit, pause_s):
    """
    The pause is what the adapter keeps, by all the time that its limit bounds.

    A regression test: it was derived from snapshots and deciding, without reordering the queues.
    """
    results = pl.DataFrame(
        {
            "arm": ["andes", "andes", "fcfs"],
            "adapter_plans": [10.0, 30.0, 0.0],
            "adapter_planning_s": [10 * plan_s, 30 * plan_s, 0.0],
            "adapter_engine_s": [40.0, 40.0, 40.0],
            "adapter_iterations": [1000.0, 1000.0, 1000.0],
        }
    )
    assert pause_between_plans_s(results, "andes", limit) == pytest.approx(pause_s)
    assert pause_between_plans_s(results, "fcfs", limit) == 0.0
