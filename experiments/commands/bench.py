"""``andes-opt bench``: a workload sent to a live server; one row per request."""

from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig

from andes_opt.checks import non_negative, seed
from experiments.configuration.compose import build
from experiments.configuration.errors import UsageError, require
from experiments.runs.columns import frame
from experiments.runs.files import TOKENS, write_atomically, write_json
from experiments.runs.progress import bar
from experiments.runs.records import recorded_run
from experiments.runs.resume import resumable, said
from experiments.runs.run_columns import columns_of

if TYPE_CHECKING:
    from hydra.conf import HydraConf
    from omegaconf import DictConfig

    from experiments.client.open_loop import ClientLog

#: Metrics of a run that was stopped or lost its server; a ``summary.json`` would say that it is
#: complete.
INCOMPLETE_SUMMARY = "incomplete_summary.json"


def bench(config: DictConfig, prompt_seed: int, *, description: str = "streaming") -> ClientLog:
    """
    Send what a configuration describes.

    Parameters
    ----------
    config
        With the nodes of ``conf/bench.yaml``.
    prompt_seed
        Of the prompts' contents; of runs with the same one, the later find their prompts in a
        server's prefix cache.
    description
        What the progress bar says.

    Raises
    ------
    UsageError
        If a constructor or the trace refuses its options, no server answers, or the HTTP
        client is not installed.
    """
    require("aiohttp", "live")
    from experiments.client.open_loop import replay

    requests = build(config, "workload").generate(config.seed)
    endpoint = build(config, "endpoint")
    with bar(requests.num_requests, description) as progress:
        return replay(
            requests,
            endpoint,
            seed=prompt_seed,
            timeout_s=config.timeout_s,
            wait_s=config.wait_s,
            finished=progress.update,
        )


def _columns(config: DictConfig, hydra_config: HydraConf) -> dict[str, Any]:
    named = ("policy", "solver", "objective", "engine")
    served_by = {name: config.served_by[name] for name in named}
    choices, overrides = hydra_config.runtime.choices, hydra_config.overrides.task
    return columns_of(config, choices, hydra_config.job.name, served_by, overrides)


@resumable
def run(config: DictConfig) -> dict[str, float]:
    """
    Send, write the run's files, and return its summary.

    Raises
    ------
    KeyboardInterrupt
        If the user stopped the run, after writing what was logged.
    UsageError
        If the server is gone, or completed no request, after writing the same.
    """
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    with recorded_run(folder) as record:
        prompt_seed = secrets.randbits(32) if config.prompt_seed is None else config.prompt_seed
        seed("prompt_seed", prompt_seed)
        non_negative("idle_cost", config.idle_cost)
        (folder / INCOMPLETE_SUMMARY).unlink(missing_ok=True)
        log = bench(config, prompt_seed)
        if not log.replies:
            log.stop()
        from experiments.client.measured import measure, row_columns, summary
        from experiments.client.outcome import (
            most_common_error,
            nothing_completed,
            sentence,
            token_rows,
        )

        measured = measure(log, config.idle_cost)
        values = summary(measured, log)
        rows = frame(row_columns(measured), **_columns(config, hydra_config))
        why = most_common_error(measured)
        with said(sentence(values, why), folder):
            record.keep(rows)
            if config.tokens:
                write_atomically(folder / TOKENS, token_rows(measured).write_parquet)
            if log.interrupted or log.server_gone or nothing_completed(log):
                write_json(folder / INCOMPLETE_SUMMARY, values)
                log.stop()
                what = "the server is gone" if log.server_gone else "no request was completed"
                raise UsageError(f"{what}; most often: {why}")
            seeded = {**record.environment, "prompt_seed": prompt_seed}
            replace(record, environment=seeded).finish(None, values)
    return values
