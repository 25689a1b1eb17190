"""The measurements behind docs/scaling.md, in small."""

from __future__ import annotations

import pytest

from benchmarks import scaling


def test_a_long_trace_is_replayed_from_its_file():
    """All requests of the file are served, and the line says what that took."""
    line = scaling.trace_line(60, ["policy=fcfs"])
    assert line["requests"] == 60
    assert line["CPU s"] > 0
    assert 0 < line["simulated h"] < 0.1
    assert line["window QoE"] == pytest.approx(1.0)


def test_sweeps_are_fitted_by_a_line(monkeypatch):
    """Start and slope come out of two sweeps; an outlook follows from them."""
    monkeypatch.setattr(
        scaling, "sweep", lambda _, runs, requests: scaling.Cost(3.0 + 0.5 * runs, 2.0 + 0.4 * runs)
    )
    fit = scaling.fitted("basic", 10)
    assert fit.run.wall_s == pytest.approx(0.5)
    assert fit.start.cpu_s == pytest.approx(2.0)
    outlook = scaling.outlook_table(10)
    assert outlook["cores"].to_list() == [1, 10, 100, 1000]
    # 10,000 runs of 0.4 s, and 2 s of starting each on Slurm.
    assert outlook["slurm, min"].to_list()[-1] == pytest.approx(24_000 / 1000 / 60)


def test_a_sweep_is_timed():
    """Two runs in a process of their own."""
    cost = scaling.sweep("basic", 2, 4)
    assert cost.cpu_s > 0
    assert cost.wall_s > 0
