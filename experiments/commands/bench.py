"""``andes-opt bench``: a workload sent to a live server; one row per request."""

from __future__ import annotations

import secrets
import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
import numpy as np
import polars as pl
from hydra.core.hydra_config import HydraConfig

from experiments.configuration.compose import CONF_DIR, build, label
from experiments.configuration.errors import UsageError, not_installed
from experiments.runs.progress import bar
from experiments.runs.records import ROWS, TOKENS, frame, recorded_run, write_atomically, write_json
from experiments.runs.resume import resumable, say

if TYPE_CHECKING:
    from hydra.conf import HydraConf
    from omegaconf import DictConfig

    from experiments.client.measured import Measured
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
    try:
        from experiments.client.open_loop import replay
    except ImportError as error:
        raise not_installed(str(error.name), "live") from error
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


def run_columns(config: DictConfig, hydra_config: HydraConf) -> dict[str, Any]:
    """What made the rows of a run: values of ``records.RUN_COLUMNS``."""
    choices = hydra_config.runtime.choices
    rate = config.workload.get("rate")
    return {
        "command": hydra_config.job.name,
        **{name: config.served_by[name] for name in ("policy", "solver", "objective", "engine")},
        "workload": label(config, choices, "workload"),
        "lengths": label(config, choices, "lengths") if "lengths" in config else None,
        "readers": label(config, choices, "readers") if "readers" in config else None,
        "rate": None if rate is None else float(rate),
        "seed": config.seed,
        "overrides": shlex.join(hydra_config.overrides.task),
    }


def token_rows(measured: Measured) -> pl.DataFrame:
    """One row per token: number of its request, seconds since that arrived."""
    request = np.repeat(np.arange(measured.arrival_s.size), measured.output_tokens)
    return pl.DataFrame({"request": request, "time_s": np.concatenate(measured.token_times_s)})


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
    prompt_seed = secrets.randbits(32) if config.prompt_seed is None else config.prompt_seed
    with recorded_run(folder) as record:
        (folder / INCOMPLETE_SUMMARY).unlink(missing_ok=True)
        log = bench(config, prompt_seed)
        if not log.replies:
            raise KeyboardInterrupt
        from experiments.client.measured import measure, row_columns, summary

        measured = measure(log, config.idle_cost)
        values = summary(measured, log)
        rows = frame(row_columns(measured), **run_columns(config, hydra_config))
        if config.tokens:
            tokens = token_rows(measured)
            write_atomically(folder / TOKENS, tokens.write_parquet)
        why = most_common_error(measured)
        say(sentence(values, why), folder)
        if log.interrupted or log.server_gone or nothing_completed(log):
            write_atomically(folder / ROWS, rows.write_parquet)
            write_json(folder / INCOMPLETE_SUMMARY, values)
            if log.interrupted:
                raise KeyboardInterrupt
            what = "the server is gone" if log.server_gone else "no request was completed"
            raise UsageError(f"{what}; most often: {why}")
        record = replace(record, environment={**record.environment, "prompt_seed": prompt_seed})
        record.finish(rows, values)
    return values


def nothing_completed(log: ClientLog) -> bool:
    """Whether a run has no single complete reply, which is no result."""
    return not any(reply.outcome == "completed" for reply in log.replies)


def most_common_error(measured: Measured) -> str:
    """What most of the requests that did not complete say; empty if all completed."""
    errors = Counter(error for error in measured.error if error)
    return errors.most_common(1)[0][0] if errors else ""


def sentence(values: dict[str, float], why: str = "") -> str:
    """
    A run's summary in a line or two.

    Parameters
    ----------
    values
        The summary.
    why
        Why most of the others did not complete.
    """
    ended = values["requests"] - values["rejected"] - values["unfinished"]
    text = (
        f"{ended:.0f} of {values['requests']:.0f} replies complete; "
        f"QoE area {values['qoe_area_mean']:.3f}, delay {values['qoe_delay_mean']:.3f}, "
        f"window {values['qoe_window_mean']:.3f}; TTFT p50 {values['ttft_p50_s']:.2f} s, "
        f"p90 {values['ttft_p90_s']:.2f} s; {values['tokens_per_s']:.1f} tokens/s; "
        f"the client sent {1e3 * values['send_lag_p99_s']:.1f} ms late (p99)."
    )
    broken = {
        "refused": values["rejected"],
        "failed": values["failed"],
        "timed out": values["timed_out"],
        "interrupted": values["interrupted"],
    }
    counts = [f"{count:.0f} {how}" for how, count in broken.items() if count]
    if not counts:
        return text
    return f"{text} {', '.join(counts)}{f'; most often: {why}' if why else '.'}"


main = hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="bench")(run)
