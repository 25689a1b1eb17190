"""
One live run: start an engine, send it a workload under a policy, count, end it.

A run is kept as long as the code that it can run stays as it is. So this module imports neither
studies nor documents.
"""

from __future__ import annotations

import math
import time
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from andes_opt.workload import Requests
from experiments.client.outcome import most_common_error, nothing_completed, token_rows
from experiments.configuration.compose import build
from experiments.configuration.errors import UsageError
from experiments.live.engine import serving
from experiments.live.server import DYING_S, EngineFailed
from experiments.live.vllm_command import checked_settings, require_live
from experiments.runs.columns import frame
from experiments.runs.files import TOKENS, write_atomically
from experiments.runs.progress import bar
from experiments.runs.run_columns import columns_of, policy_columns

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import polars as pl
    from omegaconf import DictConfig

    from experiments.client.measured import Measured
    from experiments.client.open_loop import ClientLog
    from experiments.live.engine import LiveEngine
    from experiments.live.server import Server

#: How rows name vLLM's own scheduler.
STOCK = "stock"

#: Seeds of warm-up requests lie so far from those of runs.
_WARM_UP_SEED = 1_000_003
#: Draws that tell the mean length of replies to a thousandth.
_MEAN_DRAWS = 200_000
#: The adapter writes its counters once a second, in the next iteration.
_REPORT_S = 1.1
_TINY = Requests(*(np.array([value]) for value in (0.0, 4, 2, 1.0, 1.0)))

#: Counters of the adapter that a run's summary has, as they grew during the run.
_COUNTERS = (
    "iterations",
    "passed_through",
    "plans",
    "late_plans",
    "late_rejected",
    "evicted",
    "held",
    "engine_preemptions",
    "rescues",
    "resumed_tokens",
    "resumed_cached_tokens",
    "observe_s",
    "snapshot_s",
    "decide_s",
    "apply_s",
    "planning_s",
    "adapter_s",
    "engine_s",
)


def request_rate(config: DictConfig) -> float | None:
    """
    Return the requests/s of a run: ``workload.rate``, or what makes its load.

    Parameters
    ----------
    config
        With the nodes of ``conf/live.yaml``.

    Returns
    -------
    float | None
        None for a workload that has its own rate.

    Raises
    ------
    UsageError
        If a load is given for a workload without a rate or lengths of its own, or for an engine
        whose saturated token rate is unknown.
    """
    if config.load is None:
        rate = config.workload.get("rate")
        return None if rate is None else float(rate)
    if "rate" not in config.workload or "lengths" not in config:
        raise UsageError(f"load={config.load} needs a workload with a rate and lengths.")
    saturated = config.live_engine.saturated_tokens_per_s
    if saturated is None:
        raise UsageError(
            f"load={config.load} needs live_engine.saturated_tokens_per_s: the tokens/s of a run "
            "with stock=true and a workload.rate far beyond what the engine serves."
        )
    if not config.load > 0:
        raise UsageError(f"load={config.load} not understood: need more than 0.")
    return float(config.load * saturated / mean_output_tokens(config))


def mean_output_tokens(config: DictConfig) -> float:
    """Return the mean reply length of the configured lengths, tokens."""
    _, output = build(config, "lengths").sample(np.random.default_rng(0), _MEAN_DRAWS)
    return float(output.mean())


def settings_of(config: DictConfig) -> dict[str, Any] | None:
    """Return the adapter's settings, checked; None for stock vLLM."""
    if config.stock:
        return None
    return checked_settings(config.live)


def run_columns(
    config: DictConfig, overrides: Sequence[str], choices: Mapping[str, str]
) -> dict[str, Any]:
    """
    Return the columns of a live run.

    Parameters
    ----------
    config
        With the nodes of ``conf/live.yaml`` and the rate settled.
    overrides
        Of the command line.
    choices
        Group -> name of the file in use.
    """
    stock = {"policy": STOCK, "solver": None, "objective": None}
    served_by = stock if config.stock else policy_columns(config, choices)
    engine = {"engine": config.live_engine.name}
    return columns_of(config, choices, "live", {**served_by, **engine}, overrides)


def serve(
    config: DictConfig, folder: Path, columns: Mapping[str, Any], description: str = "streaming"
) -> tuple[pl.DataFrame, dict[str, float]]:
    """
    Start the engine, send the workload, end the engine.

    Parameters
    ----------
    config
        With the nodes of ``conf/live.yaml`` and the rate settled.
    folder
        Gets the server's log, the adapter's counters, and what else is asked for.
    columns
        Of :func:`run_columns`.
    description
        What the progress bar says.

    Returns
    -------
    tuple[polars.DataFrame, dict[str, float]]
        Rows and summary.

    Raises
    ------
    UsageError
        If a constructor refuses its options, or something is not installed.
    EngineFailed
        If the engine did not start, ended in the middle, or completed no request.
    """
    require_live(vllm=not config.live_engine.get("server"))
    engine: LiveEngine = build(config, "live_engine")
    settings = settings_of(config)
    if settings is not None and config.iterations:
        settings["iterations_path"] = str((folder / "iterations.csv").resolve())
    requests = build(config, "workload").generate(config.seed)
    with serving(engine, settings, folder) as server:
        if config.warm_up:
            seed = config.seed + _WARM_UP_SEED
            warm = first(build(config, "workload").generate(seed), config.warm_up)
            send(config, server, warm, seed, "warming up")
        before = read_counters(config, server)
        log = send(config, server, requests, config.seed, description)
        broken = any(reply.outcome == "failed" for reply in log.replies)
        server.check(wait_s=DYING_S if broken else 0.0)
        after = read_counters(config, server)
    measured, rows, values = scored(log, config.idle_cost, columns)
    values |= engine_numbers(before, after, requests.num_requests)
    values["engine_start_s"] = server.start_s
    if config.tokens:
        write_atomically(folder / TOKENS, token_rows(measured).write_parquet)
    return rows, values


def send(
    config: DictConfig, server: Server, requests: Requests, seed: int, description: str
) -> ClientLog:
    """
    Send requests to a server; Ctrl-C passes through.

    Parameters
    ----------
    config
        With the nodes ``endpoint`` and ``timeout_s``.
    server
        The server, whose address counts in place of the endpoint's.
    requests
        What to send when.
    seed
        Of the prompts.
    description
        What the progress bar says.

    Raises
    ------
    UsageError
        If no server answers.
    """
    from experiments.client.open_loop import replay

    endpoint = config.endpoint.copy()
    endpoint.url = server.url
    with bar(requests.num_requests, description) as progress:
        log = replay(
            requests,
            build(endpoint),
            seed=seed,
            timeout_s=config.timeout_s,
            finished=progress.update,
        )
    log.stop()
    return log


def scored(
    log: ClientLog, idle_cost: float, columns: Mapping[str, Any]
) -> tuple[Measured, pl.DataFrame, dict[str, float]]:
    """
    Return what a client's log was worth: each request, the rows and the summary.

    Parameters
    ----------
    log
        Of :func:`send`.
    idle_cost
        Tokens that a second of waiting costs, for smooth goodput.
    columns
        Of every row.

    Raises
    ------
    EngineFailed
        If no request was completed, which is no result.
    """
    from experiments.client.measured import measure, row_columns, summary

    measured = measure(log, idle_cost)
    if nothing_completed(log):
        why = most_common_error(measured)
        raise EngineFailed(f"no request was completed; most often: {why}")
    return measured, frame(row_columns(measured), **columns), summary(measured, log)


def first(requests: Requests, count: int) -> Requests:
    """Return the first requests of a workload."""
    return Requests(*(getattr(requests, column.name)[:count] for column in fields(requests)))


def engine_numbers(
    before: Mapping[str, Any], after: Mapping[str, Any], requests: int
) -> dict[str, float]:
    """
    Return what the engine and the adapter counted during a run.

    Parameters
    ----------
    before, after
        ``{"vllm": {...}, "adapter": {...}}``: counters at both of its ends.
    requests
        Requests of the run.

    Returns
    -------
    dict[str, float]
        ``preemptions`` and ``preemptions_per_request`` as vLLM counts them; the adapter's
        counters with ``adapter_`` before their names, ``planning_share`` and ``adapter_share``,
        none of these for stock vLLM.
    """
    vllm = after["vllm"], before["vllm"]
    preemptions = _grown(*vllm, "vllm:num_preemptions_total")
    values = {
        "preemptions": preemptions,
        "preemptions_per_request": preemptions / requests,
        "prefix_cache_hit_tokens": _grown(*vllm, "vllm:prefix_cache_hits_total"),
        "prefix_cache_query_tokens": _grown(*vllm, "vllm:prefix_cache_queries_total"),
    }
    new, old = after["adapter"], before["adapter"]
    if not new:
        return values
    grown = {name: _grown(new, old, name) for name in _COUNTERS}
    values |= {f"adapter_{name.removeprefix('adapter_')}": value for name, value in grown.items()}
    values["planning_share"] = _ratio(grown["planning_s"], grown["engine_s"])
    values["adapter_share"] = _ratio(grown["adapter_s"], grown["engine_s"])
    values["adapter_iteration_mean_s"] = _ratio(grown["adapter_s"], grown["iterations"])
    # The old name of the adapter's share, for one release.
    values["adapter_planner_share"] = values["adapter_share"]
    # Over the last 4,096 iterations, which may reach into the warm-up.
    for percentile in ("p50", "p99", "max"):
        values[f"adapter_iteration_{percentile}_s"] = float(new[f"iteration_{percentile}_s"])
    ages_s = _grown(new, old, "late_age_s_sum")
    values["adapter_late_age_mean_s"] = _ratio(ages_s, grown["late_plans"])
    values["adapter_late_age_max_s"] = float(new["late_age_s_max"])
    events = sum(new["events"].values()) - sum(old.get("events", {}).values())
    values["adapter_fallbacks"] = float(events)
    values["adapter_resumed_cached_share"] = _ratio(
        grown["resumed_cached_tokens"], grown["resumed_tokens"]
    )
    return values


def adapter_sentence(values: Mapping[str, float]) -> str:
    """The adapter's part of a run in a line; empty for stock vLLM."""
    if "adapter_plans" not in values:
        return ""
    text = (
        f"{values['adapter_plans'] + values['adapter_late_plans']:.0f} plans, "
        f"{values['preemptions']:.0f} preemptions, planning share "
        f"{100 * values['planning_share']:.2f} %, adapter share "
        f"{100 * values['adapter_share']:.2f} % ({1e3 * values['adapter_iteration_mean_s']:.2f} ms "
        "per iteration), "
        f"{values['adapter_fallbacks']:.0f} fallbacks"
    )
    if values["adapter_late_plans"]:
        text += f", background plans {values['adapter_late_age_mean_s']:.2f} s old"
    if values["adapter_rescues"]:
        text += (
            f"; FAULT: {values['adapter_rescues']:.0f} rescues, in which plans moved nothing and "
            "vLLM's own order took over"
        )
    return f"{text}."


def read_counters(config: DictConfig, server: Server) -> dict[str, Any]:
    """Return vLLM's counters and the adapter's, both up to date."""
    if server.report is not None:
        # A tiny request makes the iteration that writes them.
        time.sleep(_REPORT_S)
        send(config, server, _TINY, config.seed + 2 * _WARM_UP_SEED, "counting")
        time.sleep(0.1)
    return {"vllm": server.metrics(), "adapter": server.adapter()}


def _grown(after: Mapping[str, Any], before: Mapping[str, Any], name: str) -> float:
    return float(after.get(name, 0.0)) - float(before.get(name, 0.0))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
