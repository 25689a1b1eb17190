"""
From a configuration to a simulation, and its rows.

The cells of studies build theirs themselves (:mod:`experiments.studies.measurements`): their kept
results must not hang on this package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from andes_opt.metrics import counted
from andes_opt.simulator import TIMELINE_COLUMNS, SimulationResult, simulate
from experiments.configuration.compose import build
from experiments.runs.columns import REQUEST_COLUMNS, frame
from experiments.runs.files import TIMELINE, TOKENS, write_atomically
from experiments.runs.progress import bar

if TYPE_CHECKING:
    from pathlib import Path

    from omegaconf import DictConfig

    from andes_opt.engine import EngineProfile
    from andes_opt.snapshot import Policy


def run_simulation(
    config: DictConfig,
    *,
    engine: EngineProfile | None = None,
    policy: Policy | None = None,
    description: str = "simulating",
) -> SimulationResult:
    """
    Simulate what a configuration describes.

    Parameters
    ----------
    config
        With the nodes ``workload``, ``engine``, ``policy`` and ``seed`` of
        ``conf/simulate.yaml``; its other options have their defaults where they are absent.
    engine, policy
        In place of the configuration's own.
    description
        What the progress bar says.

    Raises
    ------
    UsageError
        If a constructor or the trace refuses its options.
    """
    workload = build(config, "workload")
    engine = build(config, "engine") if engine is None else engine
    policy = build(config, "policy") if policy is None else policy
    requests = workload.generate(config.seed)
    counted(requests.arrival_s, config.get("skip_s", 0.0))  # refused now rather than in an hour
    with bar(requests.num_requests, description) as progress:
        return simulate(
            requests,
            engine,
            policy,
            solver_time=config.get("solver_time", "free"),
            oracle=config.get("oracle", False),
            record_tokens=config.get("tokens", False),
            record_timeline=config.get("timeline", False),
            progress=lambda finished: progress.update(finished - progress.n),
        )


def write_details(result: SimulationResult, folder: Path) -> None:
    """Write ``timeline.parquet`` and ``tokens.parquet``, as far as they were recorded."""
    if result.timeline is not None:
        timeline = pl.DataFrame(result.timeline, schema=list(TIMELINE_COLUMNS))
        write_atomically(folder / TIMELINE, timeline.write_parquet)
    if result.token_times_s is not None:
        times = result.token_times_s
        request = np.repeat(np.arange(len(times)), [t.size for t in times])
        tokens = pl.DataFrame({"request": request, "time_s": np.concatenate(times)})
        write_atomically(folder / TOKENS, tokens.write_parquet)


def sentence(summary: dict[str, float]) -> str:
    """Return what came out of a simulated or emulated run, for people."""
    if summary["rejected"] == summary["requests"]:
        return (
            f"All {summary['requests']:.0f} requests were rejected: each needs more than "
            "engine.capacity_tokens or engine.max_context_tokens."
        )
    return (
        f"QoE area {summary['qoe_area_mean']:.3f}, delay {summary['qoe_delay_mean']:.3f}, "
        f"window {summary['qoe_window_mean']:.3f}; TTFT p50 {summary['ttft_p50_s']:.2f} s, "
        f"p90 {summary['ttft_p90_s']:.2f} s; {summary['tokens_per_s']:.0f} tokens/s; "
        f"{summary['preemptions_per_request']:.2f} preemptions per request; "
        f"{summary['rejected']:.0f} rejected."
    )


def request_rows(result: SimulationResult, run: dict[str, Any]) -> pl.DataFrame:
    """Return a row per request of a simulation, after the columns of its run."""
    columns = {name: getattr(result, name) for name in REQUEST_COLUMNS if name != "request"}
    return frame({"request": np.arange(result.arrival_s.size), **columns}, **run)
