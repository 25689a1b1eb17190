"""``andes-opt emulate``: vLLM's own scheduler in virtual time; one row per request."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig

from andes_opt.metrics import summarise
from experiments.configuration.compose import label
from experiments.live.vllm_command import checked_settings, require_vllm
from experiments.runs.emulation import run_emulation
from experiments.runs.files import write_json
from experiments.runs.progress import jit_seconds
from experiments.runs.records import recorded_run
from experiments.runs.resume import resumable, said
from experiments.runs.run_columns import columns_of, policy_columns
from experiments.runs.simulation import request_rows, sentence, write_details

if TYPE_CHECKING:
    from hydra.conf import HydraConf
    from omegaconf import DictConfig

    from engine_adapter.emulator import EmulationResult

#: The adapter's counters, as live runs have them.
ADAPTER = "adapter.json"
#: How rows name vLLM's own scheduler.
STOCK = "stock"


@resumable
def run(config: DictConfig) -> dict[str, float]:
    """Emulate, write the run's files, and return its summary."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    with recorded_run(folder) as record:
        require_vllm()
        (folder / ADAPTER).unlink(missing_ok=True)
        settings = None if config.stock else checked_settings(config.live)
        with jit_seconds() as jit:
            result = run_emulation(config, settings)
        summary = {**summarise(result, config.skip_s), "jit_s": jit.value}
        with said(f"{sentence(summary)} {_adapter_sentence(result)}".rstrip(), folder):
            record.keep(request_rows(result, _columns(config, HydraConfig.get())))
            write_details(result, folder)
            if result.adapter is not None:
                write_json(folder / ADAPTER, result.adapter)
            record.finish(None, summary)
    return summary


def _columns(config: DictConfig, hydra_config: HydraConf) -> dict[str, Any]:
    choices = hydra_config.runtime.choices
    own = config.scheduler_cls or (STOCK if config.stock else None)
    served_by = {"policy": own, "solver": None, "objective": None}
    if own is None:
        served_by = policy_columns(config, choices)
    served_by["engine"] = label(config, choices, "engine")
    overrides = hydra_config.overrides.task
    columns = columns_of(config, choices, hydra_config.job.name, served_by, overrides)
    if config.concurrency is not None:
        columns["rate"] = None
    return columns


def _adapter_sentence(result: EmulationResult) -> str:
    """What went wrong in the adapter, if anything did."""
    events = {} if result.adapter is None else result.adapter["events"]
    if not events:
        return ""
    told = ", ".join(f"{kind}: {count}" for kind, count in events.items())
    return f"The adapter counted events ({told})."
