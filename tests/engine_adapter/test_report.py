"""The adapter's counters."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from engine_adapter.report import Report, read_report, write_report
from engine_adapter.report_files import ReportFiles, numbered, scratch_report


def test_summary(tmp_path: Path) -> None:
    """Shares and percentiles follow from the counters, and the file holds them."""
    report = Report(observe_s=0.5, snapshot_s=0.1, decide_s=0.3, apply_s=0.1, engine_s=100.0)
    report.planning_s = 0.45
    for i in range(200):
        report.add_iteration(i / 1000)
    for qoe in (0.0, 0.05, 0.95, 1.0):
        report.add_reader(qoe)
    summary = report.summary()
    assert summary["adapter_s"] == pytest.approx(1.0)
    assert summary["adapter_share"] == pytest.approx(0.01)
    assert summary["planning_share"] == pytest.approx(0.0045)
    assert summary["iterations"] == 200
    assert summary["iteration_p50_s"] == 0.1 and summary["iteration_p99_s"] == 0.198
    assert summary["iteration_max_s"] == 0.199
    assert summary["finished"] == 4 and summary["qoe_area_sum"] == 2.0
    assert summary["qoe_area_tenths"] == [2, 0, 0, 0, 0, 0, 0, 0, 0, 2]
    path = tmp_path / "adapter.json"
    write_report(str(path), summary)
    assert json.loads(path.read_text()) == summary
    assert list(tmp_path.iterdir()) == [path]


def test_the_report_itself_counts() -> None:
    """Writing it is part of the iteration in which that happens."""
    report = Report()
    report.spend("observe", 0.001)
    report.add_iteration(0.001)
    report.spend("observe", 0.5)
    report.last_iteration(0.501)
    assert report.summary()["iteration_max_s"] == pytest.approx(0.501)
    assert report.adapter_s == pytest.approx(0.501)


def test_empty() -> None:
    """Nothing done, nothing divided by zero."""
    summary = Report().summary()
    for name in ("planning_share", "adapter_share", "iteration_p99_s"):
        assert summary[name] == 0.0


def test_recent_iterations() -> None:
    """Percentiles are about the last few thousand iterations."""
    report = Report()
    for i in range(10_000):
        report.add_iteration(1.0 if i < 5000 else 0.0)
    assert report.summary()["iteration_max_s"] == 0.0
    assert report.iterations == 10_000


def test_the_two_processes_meet_at_a_file(tmp_path: Path) -> None:
    """A report that is written is read; a missing or broken one is none; instances differ."""
    path = str(tmp_path / "report.json")
    assert read_report(path) is None
    write_report(path, Report(plans=3).summary())
    assert read_report(path) == Report(plans=3).summary()
    (tmp_path / "report.json").write_text("{")
    assert read_report(path) is None
    assert scratch_report("a", 0) == scratch_report("a", 0)
    assert len({scratch_report(name, engine) for name in "ab" for engine in (0, 1)}) == 4


def test_each_data_parallel_engine_has_its_file() -> None:
    """A regression test: all of them wrote to one, and the last to write was shown."""
    assert numbered("out/report.json", 0) == "out/report.json"
    assert numbered("out/report.json", 2) == str(Path("out/report.2.json"))
    assert numbered("report", 1) == "report.1"


def test_only_files_that_were_asked_for_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A report of the user's is written once more at the end, one that only serves /metrics goes.

    With several API servers nothing is written to the temporary folder, a regression test: that
    file stayed there.
    """
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    for name in ("temporary", "mine", "shared"):
        (tmp_path / name).mkdir()

    def files(name: str) -> list[str]:
        return sorted(file.name for file in (tmp_path / name).iterdir())

    summary = {**Report().summary(), "events": {}, "unfinished": 0, "requests": 0}
    scratch = ReportFiles(None, 1, "abc")
    scratch.write(summary)
    assert files("temporary") == ["andes_opt-abc-1.json"]
    scratch.close(dict)
    assert not files("temporary")

    mine = ReportFiles(str(tmp_path / "mine" / "report.json"), 0, "abc")
    mine.write(summary)
    mine.close(lambda: {"plans": 7})
    assert read_report(str(tmp_path / "mine" / "report.json")) == {"plans": 7}

    assert not ReportFiles(None, 0, "").wanted
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "shared"))
    several = ReportFiles(None, 0, "abc")
    assert several.wanted
    several.write(summary)
    assert all(name.endswith(".db") for name in files("shared")) and files("shared")
    several.close(lambda: summary)
    assert not files("temporary")
