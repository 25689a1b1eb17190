"""The adapter's counters as Prometheus metrics."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from engine_adapter.metrics import families, read_report, scratch_report
from engine_adapter.report import Report, write_report


def counters() -> dict[str, Any]:
    """What an engine reports after three readers, ten iterations and four events."""
    report = Report(plans=3, late_plans=2, held=7, evicted=5, engine_preemptions=1)
    report.decide_s, report.planning_s, report.engine_s = 0.25, 0.3, 50.0
    for qoe in (0.05, 0.55, 1.0):
        report.add_reader(qoe)
    for _ in range(10):
        report.add_iteration(0.002)
    events = {"planner failed": 3, "target not understood": 1}
    return {**report.summary(), "events": events, "unfinished": 4}


def test_every_counter_has_its_metric() -> None:
    """Planned, held and preempted requests, plan seconds and fallbacks are what was counted."""
    found = {family.name: family for family in families(counters())}
    assert found["andes_opt_plans"].samples == {"": 3.0}
    assert found["andes_opt_background_plans"].samples == {"": 2.0}
    assert found["andes_opt_held_iterations"].samples == {"": 7.0}
    assert found["andes_opt_evictions"].samples == {"": 5.0}
    assert found["andes_opt_engine_preemptions"].samples == {"": 1.0}
    assert found["andes_opt_requests"].samples == {"": 4.0}
    assert found["andes_opt_planning_seconds"].samples == {"": 0.3}
    assert found["andes_opt_planning_share"].samples[""] == pytest.approx(0.006)
    for name in ("adapter", "planner"):  # the new name and the old one
        assert found[f"andes_opt_{name}_seconds"].samples["decide"] == 0.25
        assert found[f"andes_opt_{name}_share"].samples[""] == pytest.approx(0.005)
    assert "old name" in found["andes_opt_planner_share"].help
    assert found["andes_opt_iteration_seconds"].samples["0.99"] == 0.002
    assert found["andes_opt_fallbacks"].label == "kind"
    assert found["andes_opt_fallbacks"].samples == {
        "planner failed": 3.0,
        "target not understood": 1.0,
    }
    assert all(family.help and family.kind for family in found.values())


def test_the_documentation_names_every_metric_and_no_other() -> None:
    """docs/live.md lists the metrics as Prometheus shows them."""
    text = (Path(__file__).parents[2] / "docs" / "live.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(andes_opt_[a-z_]+)", text))
    ends = {"counter": "_total"}
    shown = {family.name + ends.get(family.kind, "") for family in families(counters())}
    assert named == shown


def test_the_histogram_counts_readers_up_to_each_edge() -> None:
    """Buckets are cumulative, the last one holds all readers, and the sum is that of their QoE."""
    histogram = families(counters())[0]
    assert histogram.kind == "histogram"
    assert list(histogram.samples) == [*(f"{i / 10:g}" for i in range(1, 11)), "+Inf"]
    counts = list(histogram.samples.values())
    assert counts == sorted(counts)
    assert (histogram.samples["0.1"], histogram.samples["0.6"], counts[-1]) == (1.0, 2.0, 3.0)
    assert histogram.total == pytest.approx(1.6)


def test_the_two_processes_meet_at_a_file(tmp_path: Path) -> None:
    """A report that is written is read; a missing or broken one is none; instances differ."""
    path = str(tmp_path / "report.json")
    assert read_report(path) is None
    write_report(path, counters())
    read = read_report(path)
    assert read is not None
    assert families(read) == families(counters())
    (tmp_path / "report.json").write_text("{")
    assert read_report(path) is None
    assert scratch_report("a") == scratch_report("a") != scratch_report("b")
