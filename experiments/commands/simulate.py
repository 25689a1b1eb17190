"""``andes-opt simulate``: a workload, an engine, a policy; one row per request."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from andes_opt.metrics import summarise
from andes_opt.simulator import TIMELINE_COLUMNS
from experiments.configuration.overrides import key_of
from experiments.runs.files import TIMELINE, TOKENS, write_atomically
from experiments.runs.progress import jit_seconds
from experiments.runs.records import recorded_run
from experiments.runs.resume import resumable, say
from experiments.runs.run_columns import run_columns
from experiments.runs.simulation import request_rows, run_simulation

if TYPE_CHECKING:
    from hydra.conf import HydraConf
    from omegaconf import DictConfig

    from andes_opt.simulator import SimulationResult


@resumable
def run(config: DictConfig) -> dict[str, float]:
    """Simulate, write the run's files, and return its summary."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    with recorded_run(folder) as record:
        with jit_seconds() as jit:
            result = run_simulation(config)
        summary = {**summarise(result), "jit_s": jit.value}
        if result.timeline is not None:
            timeline = pl.DataFrame(result.timeline, schema=list(TIMELINE_COLUMNS))
            write_atomically(folder / TIMELINE, timeline.write_parquet)
        if result.token_times_s is not None:
            write_atomically(folder / TOKENS, _token_rows(result).write_parquet)
        record.finish(request_rows(result, run_columns(config, HydraConfig.get())), summary)
    say(_sentence(summary), folder)
    for word in unused(config, HydraConfig.get()):
        print(f"{word} has no effect: the policy uses no solver.", file=sys.stderr)
    return summary


def unused(config: DictConfig, hydra_config: HydraConf) -> list[str]:
    """Return options of a solver that the run's policy does not use; in a sweep others may."""
    if "solver" in config.policy or hydra_config.mode == RunMode.MULTIRUN:
        return []
    words = hydra_config.overrides.task
    return [word for word in words if key_of(word) in ("solver", "objective", "isolation")]


def _token_rows(result: SimulationResult) -> pl.DataFrame:
    times = result.token_times_s or []
    request = np.repeat(np.arange(len(times)), [t.size for t in times])
    return pl.DataFrame({"request": request, "time_s": np.concatenate(times)})


def _sentence(summary: dict[str, float]) -> str:
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
