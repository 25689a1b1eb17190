"""The page on the simulator's speed, in small."""

from __future__ import annotations

import sys

import pytest

from benchmarks import simulator_speed


def test_the_page_names_its_command_and_measures_every_case(tmp_path, monkeypatch):
    """A short look writes all four tables, with the command on top; no time is judged."""
    path = tmp_path / "results" / "speed.md"
    monkeypatch.setattr(sys, "argv", ["simulator_speed", str(path), "--requests", "30"])
    simulator_speed.main()
    text = path.read_text()
    assert text.splitlines()[2].startswith(
        "Written by `python -m benchmarks.simulator_speed --requests 30`"
    )
    for heading in ("CPU time", "Against the number", "Memory", "Where the time goes"):
        assert f"\n## {heading}" in text
    for name, *_ in simulator_speed.CASES:
        assert f"| {name} " in text
    assert "| andes_opt/" in text


def test_results_are_measured_by_their_arrays():
    """A result's size is that of its arrays: 13 columns of at most 8 bytes."""
    result = simulator_speed.timed(simulator_speed.FCFS, 4.0, 50).result
    assert simulator_speed.size_of(result) == pytest.approx(50 * 12 * 8, rel=0.1)
