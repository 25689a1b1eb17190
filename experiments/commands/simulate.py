"""``andes-opt simulate``: a workload, an engine, a policy; one row per request."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from andes_opt.metrics import summarise
from experiments.configuration.overrides import key_of
from experiments.runs.progress import jit_seconds
from experiments.runs.records import recorded_run
from experiments.runs.resume import resumable, said
from experiments.runs.run_columns import run_columns
from experiments.runs.simulation import request_rows, run_simulation, sentence, write_details

if TYPE_CHECKING:
    from hydra.conf import HydraConf
    from omegaconf import DictConfig


@resumable
def run(config: DictConfig) -> dict[str, float]:
    """Simulate, write the run's files, and return its summary."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    with recorded_run(folder) as record:
        with jit_seconds() as jit:
            result = run_simulation(config)
        summary = {**summarise(result, config.skip_s), "jit_s": jit.value}
        with said(sentence(summary), folder):
            record.keep(request_rows(result, run_columns(config, HydraConfig.get())))
            write_details(result, folder)
            record.finish(None, summary)
    for word in unused(config, HydraConfig.get()):
        print(f"{word} has no effect: the policy uses no solver.", file=sys.stderr)
    return summary


def unused(config: DictConfig, hydra_config: HydraConf) -> list[str]:
    """Return options of a solver that the run's policy does not use; in a sweep others may."""
    if "solver" in config.policy or hydra_config.mode == RunMode.MULTIRUN:
        return []
    words = hydra_config.overrides.task
    return [word for word in words if key_of(word) in ("solver", "objective", "isolation")]
