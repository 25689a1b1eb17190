"""The adapter's counters as Prometheus metrics."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prometheus_client import Metric

PREFIX = "andes_opt"


#: Counter of the report -> metric and its help.
_COUNTERS = {
    "iterations": ("iterations", "Calls of the scheduler"),
    "passed_through": ("passed_through", "Calls of the scheduler that were left to vLLM"),
    "plans": ("plans", "Plans made on the engine's thread and followed"),
    "late_plans": ("background_plans", "Plans made in the background and followed"),
    "late_rejected": ("background_plans_rejected", "Background plans too old or without room"),
    "late_age_s_sum": ("background_plan_age_seconds", "Ages of the background plans followed"),
    "evicted": ("evictions", "Requests that a plan took the KV cache away from"),
    "engine_preemptions": ("engine_preemptions", "Requests that vLLM itself preempted"),
    "held": ("held_iterations", "Requests held with their KV cache, summed over iterations"),
    "rescues": ("rescues", "Times that a plan moved nothing and vLLM took over"),
    "planning_s": ("planning_seconds", "Time in plans on the engine's thread, which has a limit"),
}
#: Names of what the adapter took in all, the old one for one release; remark in the help.
_ADAPTER_NAMES = {"adapter": "", "planner": "; old name, the next release drops it"}
_PARTS = ("observe", "snapshot", "decide", "apply")
_QUANTILES = {"0.5": "iteration_p50_s", "0.99": "iteration_p99_s", "1": "iteration_max_s"}


def metric_families(report: Mapping[str, Any]) -> list[Metric]:
    """
    Returns the metrics of one engine.

    Parameters
    ----------
    report
        What :meth:`engine_adapter.controller.StepController.summary` gives.
    """
    counters = [
        CounterMetricFamily(f"{PREFIX}_{name}", text, value=float(report[key]))
        for key, (name, text) in _COUNTERS.items()
    ]
    adapter: list[Metric] = []
    for name, remark in _ADAPTER_NAMES.items():
        seconds = f"Time that the adapter took on the engine's thread{remark}"
        share = f"Share of the engine thread's time that the adapter took{remark}"
        adapter += [
            _labelled(
                CounterMetricFamily(f"{PREFIX}_{name}_seconds", seconds, labels=["part"]),
                {part: report[f"{part}_s"] for part in _PARTS},
            ),
            GaugeMetricFamily(f"{PREFIX}_{name}_share", share, value=report["adapter_share"]),
        ]
    return [
        _qoe_histogram(report),
        *counters,
        GaugeMetricFamily(
            f"{PREFIX}_planning_share",
            "Share of the engine thread's time in plans: what planning_share_limit bounds",
            value=report["planning_share"],
        ),
        *adapter,
        _labelled(
            GaugeMetricFamily(
                f"{PREFIX}_iteration_seconds",
                "The adapter's time in one of the last 4096 iterations",
                labels=["quantile"],
            ),
            {quantile: report[key] for quantile, key in _QUANTILES.items()},
        ),
        GaugeMetricFamily(
            f"{PREFIX}_requests", "Requests that have not finished", value=report["unfinished"]
        ),
        _labelled(
            CounterMetricFamily(
                f"{PREFIX}_fallbacks",
                "Events that the adapter has logged, most of them failures to plan",
                labels=["kind"],
            ),
            dict(sorted(report["events"].items())),
        ),
    ]


def _qoe_histogram(report: Mapping[str, Any]) -> Metric:
    # Counts are of [0, 0.1), [0.1, 0.2) ...: a reading on an edge is in the bucket above.
    up_to = itertools.accumulate(report["qoe_area_tenths"])
    buckets = [(f"{(i + 1) / 10:g}", float(count)) for i, count in enumerate(up_to)]
    return HistogramMetricFamily(
        f"{PREFIX}_qoe",
        "QoE (area) of the readers who left, as far as the engine sees it",
        buckets=[*buckets, ("+Inf", float(report["finished"]))],
        sum_value=float(report["qoe_area_sum"]),
    )


def _labelled(
    family: CounterMetricFamily | GaugeMetricFamily, samples: Mapping[str, float]
) -> Metric:
    for label, number in samples.items():
        family.add_metric([label], float(number))
    return family
