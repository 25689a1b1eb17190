"""``andes-opt bench``: a workload sent to a live server; one row per request."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
import numpy as np
import polars as pl
from hydra.core.hydra_config import HydraConfig

from experiments.configuration import CONF_DIR, build, label
from experiments.progress import bar
from experiments.records import ROWS, frame, recorded_run, write_atomically, write_json
from experiments.resume import resumable, say
from experiments.usage import not_installed

if TYPE_CHECKING:
    from hydra.conf import HydraConf
    from omegaconf import DictConfig

    from experiments.client.measured import Measured
    from experiments.client.open_loop import ClientLog

#: Metrics of a run that was stopped; a ``summary.json`` would say that it is complete.
INTERRUPTED_SUMMARY = "interrupted_summary.json"


def bench(config: DictConfig, *, description: str = "streaming") -> ClientLog:
    """
    Send what a configuration describes.

    Parameters
    ----------
    config
        With the nodes of ``conf/bench.yaml``.
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
            seed=config.seed,
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
        "overrides": " ".join(hydra_config.overrides.task),
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
    """
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    with recorded_run(folder) as record:
        log = bench(config)
        if not log.replies:
            raise KeyboardInterrupt
        from experiments.client.measured import measure, row_columns, summary

        measured = measure(log, config.idle_cost)
        values = summary(measured, log)
        rows = frame(row_columns(measured), **run_columns(config, hydra_config))
        if config.tokens:
            tokens = token_rows(measured)
            write_atomically(folder / "tokens.parquet", tokens.write_parquet)
        say(sentence(values), folder)
        if log.interrupted:
            write_atomically(folder / ROWS, rows.write_parquet)
            write_json(folder / INTERRUPTED_SUMMARY, values)
            raise KeyboardInterrupt
        record.finish(rows, values)
    return values


def sentence(values: dict[str, float]) -> str:
    """A run's summary in a line or two."""
    ended = values["requests"] - values["rejected"] - values["unfinished"]
    text = (
        f"{ended:.0f} of {values['requests']:.0f} replies complete; "
        f"QoE area {values['qoe_area_mean']:.3f}, delay {values['qoe_delay_mean']:.3f}, "
        f"window {values['qoe_window_mean']:.3f}; TTFT p50 {values['ttft_p50_s']:.2f} s, "
        f"p90 {values['ttft_p90_s']:.2f} s; {values['tokens_per_s']:.1f} tokens/s; "
        f"requests left {1e3 * values['send_lag_p99_s']:.1f} ms late (p99)."
    )
    broken = {
        "refused": values["rejected"],
        "failed": values["failed"],
        "timed out": values["timed_out"],
        "interrupted": values["interrupted"],
    }
    counts = [f"{count:.0f} {how}" for how, count in broken.items() if count]
    return f"{text} {', '.join(counts)}." if counts else text


main = hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="bench")(run)
