"""
From a configuration to a simulation, and its rows.

The cells of studies build theirs themselves (:mod:`experiments.studies.measurements`): their kept
results must not hang on this package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from andes_opt.simulator import SimulationResult, simulate
from experiments.configuration.compose import build
from experiments.runs.columns import REQUEST_COLUMNS, frame
from experiments.runs.progress import bar

if TYPE_CHECKING:
    import polars as pl
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


def request_rows(result: SimulationResult, run: dict[str, Any]) -> pl.DataFrame:
    """Return a row per request of a simulation, after the columns of its run."""
    columns = {name: getattr(result, name) for name in REQUEST_COLUMNS if name != "request"}
    return frame({"request": np.arange(result.arrival_s.size), **columns}, **run)
