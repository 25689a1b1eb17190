"""The adapter's counters as Prometheus metrics, without Prometheus: names, kinds, samples."""

from __future__ import annotations

import itertools
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "andes_opt"


@dataclass(frozen=True, slots=True)
class Family:
    """
    One metric.

    Parameters
    ----------
    name
        As Prometheus shows it, but for the ``_total`` of counters.
    kind
        ``"counter"``, ``"gauge"`` or ``"histogram"``.
    help
        A line about it.
    label
        Name of its one label; empty for none.
    samples
        Value of the label -> number; for a histogram upper edge -> readings up to it.
    total
        Sum of all readings of a histogram.
    """

    name: str
    kind: str
    help: str
    label: str
    samples: Mapping[str, float]
    total: float = 0.0


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


def families(report: Mapping[str, Any]) -> list[Family]:
    """
    Metrics of one engine.

    Parameters
    ----------
    report
        What :meth:`engine_adapter.controller.StepController.summary` gives.
    """
    tenths = list(itertools.accumulate(report["qoe_area_tenths"]))
    edges = {f"{(i + 1) / 10:g}": float(count) for i, count in enumerate(tenths)}
    return [
        # Counts are of [0, 0.1), [0.1, 0.2) ...: a reading on an edge is in the bucket above.
        Family(
            f"{PREFIX}_qoe",
            "histogram",
            "QoE (area) of the readers who left, as far as the engine sees it",
            "",
            {**edges, "+Inf": float(report["finished"])},
            float(report["qoe_area_sum"]),
        ),
        *(
            Family(f"{PREFIX}_{name}", "counter", text, "", {"": float(report[key])})
            for key, (name, text) in _COUNTERS.items()
        ),
        *(
            Family(
                f"{PREFIX}_{name}_seconds",
                "counter",
                f"Time that the adapter took on the engine's thread{remark}",
                "part",
                {part: float(report[f"{part}_s"]) for part in _PARTS},
            )
            for name, remark in _ADAPTER_NAMES.items()
        ),
        Family(
            f"{PREFIX}_planning_share",
            "gauge",
            "Share of the engine thread's time in plans: what planning_share_limit bounds",
            "",
            {"": float(report["planning_share"])},
        ),
        *(
            Family(
                f"{PREFIX}_{name}_share",
                "gauge",
                f"Share of the engine thread's time that the adapter took{remark}",
                "",
                {"": float(report["adapter_share"])},
            )
            for name, remark in _ADAPTER_NAMES.items()
        ),
        Family(
            f"{PREFIX}_iteration_seconds",
            "gauge",
            "The adapter's time in one of the last 4096 iterations",
            "quantile",
            {quantile: float(report[key]) for quantile, key in _QUANTILES.items()},
        ),
        Family(
            f"{PREFIX}_requests",
            "gauge",
            "Requests that have not finished",
            "",
            {"": float(report["unfinished"])},
        ),
        Family(
            f"{PREFIX}_fallbacks",
            "counter",
            "Events that the adapter has logged, most of them failures to plan",
            "kind",
            {kind: float(count) for kind, count in sorted(report["events"].items())},
        ),
    ]


def scratch_report(instance: str) -> str:
    """
    Where an engine's counters are, if its settings don't say.

    The engine and the server that shows its metrics are two processes; both know the
    instance's name.

    Parameters
    ----------
    instance
        vLLM's name of the instance.
    """
    return str(Path(tempfile.gettempdir()) / f"{PREFIX}-{instance}.json")


def read_report(path: str) -> dict[str, Any] | None:
    """The counters in a file; None if there are none yet."""
    try:
        report: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return report
