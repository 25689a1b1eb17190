"""``andes-opt live``: a workload, a live vLLM engine, a policy; one engine start per run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig

from experiments.client.outcome import sentence
from experiments.live.engine import check_chosen
from experiments.live.process import exit_on_signals
from experiments.live.run import adapter_sentence, request_rate, run_columns, serve
from experiments.runs.records import recorded_run
from experiments.runs.resume import resumable, say

if TYPE_CHECKING:
    from omegaconf import DictConfig


@resumable
def run(config: DictConfig) -> dict[str, float]:
    """Serve, write the run's files, and return its summary."""
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    with exit_on_signals(), recorded_run(folder) as record:
        check_chosen(config)
        config = config.copy()
        rate = request_rate(config)
        if rate is not None:
            config.workload.rate = rate
        overrides = hydra_config.overrides.task
        columns = run_columns(config, overrides, hydra_config.runtime.choices)
        rows, values = serve(config, folder, columns)
        record.finish(rows, values)
    say(f"{sentence(values)} {adapter_sentence(values)}".rstrip(), folder)
    return values
