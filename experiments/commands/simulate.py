"""``andes-opt simulate``: a workload, an engine, a policy; one row per request."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig

from andes_opt.metrics import summarise
from experiments.runs.progress import jit_seconds
from experiments.runs.records import recorded_run
from experiments.runs.resume import resumable, said
from experiments.runs.run_columns import run_columns
from experiments.runs.simulation import request_rows, run_simulation, sentence, write_details

if TYPE_CHECKING:
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
    return summary
