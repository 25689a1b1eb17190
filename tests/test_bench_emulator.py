"""The page on the emulator's speed, and the tables on how close it is, in small."""

from __future__ import annotations

import sys

import pytest

from benchmarks import bench_emulator, emulator_closeness


@pytest.mark.live
def test_the_page_names_its_command_and_measures_every_case(tmp_path, monkeypatch):
    """A short look writes all three tables, with the command on top; no time is judged."""
    path = tmp_path / "results" / "speed.md"
    monkeypatch.setattr(sys, "argv", ["bench_emulator", str(path), "--requests", "20"])
    bench_emulator.main()
    text = path.read_text()
    assert text.splitlines()[2].startswith(
        "Written by `python -m benchmarks.bench_emulator --requests 20`"
    )
    for heading in ("CPU time", "Against the number", "Memory"):
        assert f"\n## {heading}" in text
    for name, _ in bench_emulator.CASES:
        assert f"| {name} " in text


@pytest.mark.live
@pytest.mark.parametrize("table", emulator_closeness.TABLES)
def test_the_tables_on_closeness(table, monkeypatch, capsys):
    """Each has a row for each policy or seed."""
    monkeypatch.setattr(sys, "argv", ["emulator_closeness", table, "--requests", "4"])
    emulator_closeness.main()
    assert len(capsys.readouterr().out.strip().splitlines()) == 2 + 3
