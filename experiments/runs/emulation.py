"""From a configuration to an emulation: vLLM's own scheduler in virtual time."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from andes_opt.metrics import counted
from experiments.configuration.compose import build
from experiments.configuration.errors import UsageError
from experiments.runs.progress import bar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from omegaconf import DictConfig

    from engine_adapter.emulator import EmulationResult


def run_emulation(
    config: DictConfig, settings: Mapping[str, Any] | None, *, description: str = "emulating"
) -> EmulationResult:
    """
    Emulate what a configuration describes.

    Parameters
    ----------
    config
        With the nodes of ``conf/emulate.yaml``.
    settings
        The adapter's, checked; None for a scheduler without it.
    description
        What the progress bar says.

    Raises
    ------
    UsageError
        If a constructor or the trace refuses its options.
    ValueError
        If the scheduler's class, one of vLLM's options or another one is not understood.
    """
    quiet_vllm()
    from engine_adapter.emulator import emulate

    if config.stock and config.scheduler_cls is not None:
        raise UsageError(f"stock=true and scheduler_cls={config.scheduler_cls} exclude each other.")
    engine = build(config, "engine")
    requests = build(config, "workload").generate(config.seed)
    if config.concurrency is None:
        counted(requests.arrival_s, config.skip_s)  # refused now rather than in an hour
    with bar(requests.num_requests, description) as progress:
        return emulate(
            requests,
            engine,
            settings,
            scheduler_cls=config.scheduler_cls,
            vllm=OmegaConf.to_container(config.vllm, resolve=True),  # type: ignore[arg-type]
            solver_time=config.solver_time,
            background_time=config.background_time,
            concurrency=config.concurrency,
            model_runner=config.model_runner,
            check=config.check,
            record_tokens=config.tokens,
            record_timeline=config.timeline,
            progress=lambda finished: progress.update(finished - progress.n),
        )


def quiet_vllm() -> None:
    """Keep what vLLM says about this machine, which serves nothing, from the terminal."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
