"""The adapter's counters as Prometheus metrics."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from engine_adapter.metrics import SharedMetrics, metric_families
from engine_adapter.report import Report

if TYPE_CHECKING:
    from prometheus_client import Metric


def shown() -> dict[str, dict[str, float]]:
    """Samples of each metric: value of its label, "" for none but the engine's, to number."""
    return {
        family.name: {
            "".join(value for label, value in sample.labels.items() if label != "engine"): (
                sample.value
            )
            for sample in family.samples
        }
        for family in metric_families({0: counters()})
        if family.type != "histogram"
    }


def counters() -> dict[str, Any]:
    """What an engine reports after three readers, ten iterations and four events."""
    report = Report(plans=3, late_plans=2, held=7, evicted=5, engine_preemptions=1)
    report.decide_s, report.planning_s, report.engine_s = 0.25, 0.3, 50.0
    for qoe in (0.05, 0.55, 1.0):
        report.add_reader(qoe)
    for _ in range(10):
        report.add_iteration(0.002)
    events = {"planner failed": 3, "target not understood": 1}
    return {**report.summary(), "events": events, "unfinished": 4, "requests": 7}


def test_every_counter_has_its_metric() -> None:
    """Planned, held and preempted requests, plan seconds and fallbacks are what was counted."""
    found = shown()
    assert found["andes_opt_plans"] == {"": 3.0}
    assert found["andes_opt_background_plans"] == {"": 2.0}
    assert found["andes_opt_held_iterations"] == {"": 7.0}
    assert found["andes_opt_evictions"] == {"": 5.0}
    assert found["andes_opt_engine_preemptions"] == {"": 1.0}
    assert found["andes_opt_requests"] == {"": 4.0}
    assert found["andes_opt_arrivals"] == {"": 7.0}
    assert found["andes_opt_planning_seconds"] == {"": 0.3}
    assert found["andes_opt_planning_share"][""] == pytest.approx(0.006)
    for name in ("adapter", "planner"):  # the new name and the old one
        assert found[f"andes_opt_{name}_seconds"]["decide"] == 0.25
        assert found[f"andes_opt_{name}_share"][""] == pytest.approx(0.005)
    assert found["andes_opt_iteration_seconds"]["0.99"] == 0.002
    assert found["andes_opt_fallbacks"] == {"planner failed": 3.0, "target not understood": 1.0}


def test_every_metric_is_explained_and_old_names_say_so() -> None:
    """Each has a line of help; in that of an old name stands that it goes."""
    text = generate_latest(Shown()).decode()
    assert text.count("# HELP andes_opt_") == len(metric_families({0: counters()}))
    assert "# HELP andes_opt_planner_share Share of the engine thread's time" in text
    assert text.count("old name, the next release drops it") == 2
    assert 'andes_opt_fallbacks_total{engine="0",kind="planner failed"} 3.0' in text


class Shown:
    """A registry with the metrics of so many engines."""

    def __init__(self, engines: int = 1) -> None:
        self._engines = engines

    def collect(self) -> list[Metric]:
        """All of them; the plans of an engine are its number."""
        return metric_families({i: {**counters(), "plans": i} for i in range(self._engines)})


def test_engines_have_a_series_each() -> None:
    """
    Every sample of data-parallel engines has the engine's number.

    A regression test: there was one series, of the engine that wrote last.
    """
    text = generate_latest(Shown(engines=2)).decode()
    assert 'andes_opt_plans_total{engine="0"} 0.0' in text
    assert 'andes_opt_plans_total{engine="1"} 1.0' in text
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    assert all('engine="' in line for line in samples)
    assert len(samples) == len(set(samples))


def test_several_servers_show_the_same(tmp_path: Path) -> None:
    """
    With several API servers each answers from the engines' files what a single one would.

    A regression test: there were no metrics then.
    """
    for engine in (0, 1):
        shared = SharedMetrics(str(tmp_path), engine)
        for plans in (5, engine):  # the last write counts
            shared.write({**counters(), "plans": plans, "finished": plans + 3})
        shared.write({**counters(), "plans": engine})
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(tmp_path))
    assert _samples(registry) == _samples(Shown(engines=2))


def _samples(registry: Any) -> set[str]:
    text = generate_latest(registry).decode()
    return {line for line in text.splitlines() if not line.startswith("# HELP")}


def test_the_documentation_names_every_metric_and_no_other() -> None:
    """docs/live.md lists the metrics as Prometheus shows them."""
    text = (Path(__file__).parents[2] / "docs" / "live.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(andes_opt_[a-z_]+)", text))
    ends = {"counter": "_total"}
    assert named == {
        family.name + ends.get(family.type, "") for family in metric_families({0: counters()})
    }


def test_the_histogram_counts_readers_up_to_each_edge() -> None:
    """Buckets are cumulative, the last one holds all readers, and the sum is that of their QoE."""
    histogram = metric_families({0: counters()})[0]
    assert histogram.type == "histogram"
    *buckets, number, total = histogram.samples
    edges = [sample.labels["le"] for sample in buckets]
    assert edges == [*(str(i / 10) for i in range(1, 11)), "+Inf"]
    assert [sample.value for sample in buckets] == [1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3]
    assert (number.name, number.value) == ("andes_opt_qoe_count", 3.0)
    assert total.value == pytest.approx(1.6)
