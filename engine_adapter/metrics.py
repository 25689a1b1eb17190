"""The adapter's counters as Prometheus metrics."""

from __future__ import annotations

import itertools
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.mmap_dict import MmapedDict, mmap_key

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from prometheus_client import Metric

PREFIX = "andes_opt"
#: Label with the number of a data-parallel engine, as in vLLM's own metrics.
_ENGINE = "engine"

_PARTS = ("observe", "snapshot", "decide", "apply")
_QUANTILES = {"0.5": "iteration_p50_s", "0.99": "iteration_p99_s", "1": "iteration_max_s"}


class _Shown(NamedTuple):
    """A metric: its name without prefix, its help, and where its value is in a report."""

    kind: type[CounterMetricFamily | GaugeMetricFamily]
    name: str
    text: str
    value: Callable[[Mapping[str, Any]], Any]  # a number, or one for each value of `label`
    label: str = ""


def _counter(key: str, name: str, text: str) -> _Shown:
    return _Shown(CounterMetricFamily, name, text, itemgetter(key))


def _gauge(key: str, name: str, text: str) -> _Shown:
    return _Shown(GaugeMetricFamily, name, text, itemgetter(key))


def _adapter(name: str, remark: str = "") -> tuple[_Shown, _Shown]:
    return (
        _Shown(
            CounterMetricFamily,
            f"{name}_seconds",
            f"Time that the adapter took on the engine's thread{remark}",
            lambda report: {part: report[f"{part}_s"] for part in _PARTS},
            "part",
        ),
        _gauge(
            "adapter_share",
            f"{name}_share",
            f"Share of the engine thread's time that the adapter took{remark}",
        ),
    )


_METRICS = (
    _counter("requests", "arrivals", "Requests that have come"),
    _counter("iterations", "iterations", "Calls of the scheduler"),
    _counter("passed_through", "passed_through", "Calls of the scheduler that were left to vLLM"),
    _counter("plans", "plans", "Plans made on the engine's thread and followed"),
    _counter("late_plans", "background_plans", "Plans made in the background and followed"),
    _counter(
        "late_rejected", "background_plans_rejected", "Background plans too old or without room"
    ),
    _counter(
        "late_age_s_sum", "background_plan_age_seconds", "Ages of the background plans followed"
    ),
    _counter("evicted", "evictions", "Requests that a plan took the KV cache away from"),
    _counter("engine_preemptions", "engine_preemptions", "Requests that vLLM itself preempted"),
    _counter("held", "held_iterations", "Requests held with their KV cache, over iterations"),
    _counter("rescues", "rescues", "Times that a plan moved nothing and vLLM took over"),
    _counter(
        "planning_s", "planning_seconds", "Time in plans on the engine's thread, which has a limit"
    ),
    _gauge(
        "planning_share",
        "planning_share",
        "Share of the engine thread's time in plans: what planning_share_limit bounds",
    ),
    *_adapter("adapter"),
    *_adapter("planner", "; old name, the next release drops it"),
    _Shown(
        GaugeMetricFamily,
        "iteration_seconds",
        "The adapter's time in one of the last 4096 iterations",
        lambda report: {quantile: report[key] for quantile, key in _QUANTILES.items()},
        "quantile",
    ),
    _gauge(
        "iteration_mean_s", "iteration_mean_seconds", "The adapter's time in an iteration, mean"
    ),
    _gauge("unfinished", "requests", "Requests that have not finished"),
    _Shown(
        CounterMetricFamily,
        "fallbacks",
        "Events that the adapter has logged, most of them failures to plan",
        lambda report: dict(sorted(report["events"].items())),
        "kind",
    ),
)


def metric_families(reports: Mapping[int, Mapping[str, Any]]) -> list[Metric]:
    """
    Returns the metrics of the engines of an instance, each under its label ``engine``.

    Parameters
    ----------
    reports
        The engine's number to what
        :meth:`engine_adapter.controller.StepController.summary` gives.
    """
    families = [_qoe_histogram(reports)]
    for shown in _METRICS:
        labels = [_ENGINE, shown.label] if shown.label else [_ENGINE]
        family = shown.kind(f"{PREFIX}_{shown.name}", shown.text, labels=labels)
        for engine, report in reports.items():
            value = shown.value(report)
            numbers = value if shown.label else {None: value}
            for label, number in numbers.items():
                own = [] if label is None else [label]
                family.add_metric([str(engine), *own], float(number))
        families.append(family)
    return families


class SharedMetrics:
    """
    An engine's metrics where several API servers show them: files of prometheus_client's.

    Each of the servers answers ``/metrics`` from the files of one folder, as described under
    "Multiprocess Mode" in prometheus_client's documentation.

    Parameters
    ----------
    folder
        That folder.
    engine
        The engine's number.
    """

    def __init__(self, folder: str, engine: int) -> None:
        self._engine = engine
        # Only this process writes series of this engine: a sum over processes is its value.
        self._files = {
            kind: MmapedDict(str(Path(folder) / f"{prefix}_andes-opt-{engine}.db"))
            for kind, prefix in (
                ("counter", "counter"),
                ("gauge", "gauge_sum"),
                ("histogram", "histogram"),
            )
        }

    def write(self, report: Mapping[str, Any]) -> None:
        """Write all metrics of a report."""
        for family in metric_families({self._engine: report}):
            file = self._files[family.type]
            below = 0.0
            for sample in family.samples:
                value = sample.value
                if "le" in sample.labels:  # in these files a bucket lacks what is in those below
                    value, below = value - below, value
                labels = sample.labels
                if not sample.name.endswith("_count"):  # which follows from the buckets
                    key = mmap_key(
                        family.name,
                        sample.name,
                        list(labels),
                        list(labels.values()),
                        family.documentation,
                    )
                    file.write_value(key, value, 0.0)


def _qoe_histogram(reports: Mapping[int, Mapping[str, Any]]) -> Metric:
    family = HistogramMetricFamily(
        f"{PREFIX}_qoe",
        "QoE (area) of the readers who left, as far as the engine sees it",
        labels=[_ENGINE],
    )
    for engine, report in reports.items():
        # Counts are of [0, 0.1), [0.1, 0.2) ...: a reading on an edge is in the bucket above.
        up_to = itertools.accumulate(report["qoe_area_tenths"])
        buckets = [(str((i + 1) / 10), float(count)) for i, count in enumerate(up_to)]
        family.add_metric(
            [str(engine)],
            buckets=[*buckets, ("+Inf", float(report["finished"]))],
            sum_value=float(report["qoe_area_sum"]),
        )
    return family
