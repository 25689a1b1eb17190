"""``andes-opt live-demo``: a real answer, and one overload under vLLM's scheduler and ours."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from hydra.core.hydra_config import HydraConfig

from experiments.analysis.markdown import markdown
from experiments.client.outcome import nothing_completed
from experiments.configuration.compose import build
from experiments.configuration.errors import UsageError
from experiments.live.engine import only_engine
from experiments.live.models import SmolLM2
from experiments.live.process import exit_on_signals
from experiments.live.run import first, scored, send
from experiments.live.saturation import steady_rate
from experiments.live.server import EngineFailed, address, free_port, on_cpu, running
from experiments.live.vllm_command import adapter_settings, require_live, server_command
from experiments.runs.files import printable, write_atomically
from experiments.runs.records import recorded_run
from experiments.runs.resume import resumable
from experiments.runs.run_columns import columns_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from omegaconf import DictConfig

    from andes_opt.workload import Requests
    from experiments.live.server import Server

#: Requests that every server answers before anything is measured, of other prompts.
_WARM_UP = 8
#: With fewer tokens, some of them at the ends left out, a rate says nothing.
_FEWEST_TOKENS = 10
_STUDY = "docs/results/live.md"

#: Columns of the QoE table: metric of ``andes-opt bench`` -> heading, decimals.
_TABLE = {
    "qoe_area_mean": ("area", 3),
    "qoe_delay_mean": ("delay", 3),
    "qoe_window_mean": ("window", 3),
    "qoe_window_share_0": ("window = 0", 3),
    "ttft_p50_s": ("TTFT p50 s", 2),
    "ttft_p90_s": ("TTFT p90 s", 2),
    "tokens_per_s": ("tokens/s", 1),
}


@dataclass(frozen=True, slots=True)
class Roles:
    """
    Which arm does what in the demo.

    Parameters
    ----------
    saturates
        The arm whose saturated tokens/s are the unit of the load: the first one of vLLM's own
        scheduler, or of all if there is none.
    answers
        The arm that answers the question: the first one of ours, or of all if there is none.
    """

    saturates: str
    answers: str


def roles(arms: Mapping[str, Sequence[str]]) -> Roles:
    """
    Return which arm sets the load, and which one answers the question.

    Parameters
    ----------
    arms
        Name -> overrides of every arm, at least one; none for vLLM's own scheduler.
    """
    stock = [name for name, overrides in arms.items() if not overrides]
    ours = [name for name, overrides in arms.items() if overrides]
    return Roles(saturates=(stock or ours)[0], answers=(ours or stock)[0])


def all_at_once(config: DictConfig, count: int) -> Requests:
    """Return the first requests of a workload, all there from the start."""
    requests = first(build(config, "workload").generate(config.seed + 1), count)
    return replace(requests, arrival_s=np.zeros(requests.num_requests))


def warm_up(config: DictConfig, server: Server) -> None:
    """
    Let a server answer some requests that count nowhere.

    Raises
    ------
    UsageError
        If it answered none.
    """
    warm = all_at_once(config, _WARM_UP)
    log = send(config, server, warm, config.seed + 2, "warming up")
    if nothing_completed(log):
        raise UsageError(f"the server answered no request: {log.replies[0].error}")


def saturated_tokens_per_s(config: DictConfig, server: Server) -> float:
    """
    Tokens/s of an engine that does not lack requests, measured as the studies measure theirs.

    Parameters
    ----------
    config
        Of the demo.
    server
        The engine.

    Raises
    ------
    UsageError
        If too few tokens came to tell a rate.
    """
    requests = all_at_once(config, config.saturating)
    log = send(config, server, requests, config.seed + 1, "saturating")
    times_s = np.concatenate([reply.token_times_s for reply in log.replies])
    if times_s.size < _FEWEST_TOKENS:
        raise UsageError(
            f"saturating={config.saturating} made {times_s.size} tokens; "
            f"a rate needs {_FEWEST_TOKENS}."
        )
    return steady_rate(times_s)


def overload(config: DictConfig, saturated: float) -> Requests:
    """Return requests that ask for ``overload`` times the saturated tokens/s."""
    mean_tokens = float(np.mean(all_at_once(config, config.saturating).output_tokens))
    config.workload.rate = config.overload * saturated / mean_tokens
    config.workload.requests = max(2, round(config.workload.rate * config.arrivals_s))
    requests: Requests = build(config, "workload").generate(config.seed)
    return requests


def answer(config: DictConfig, server: Server, scheduler: str) -> None:
    """
    Print the model's answer to the question as it comes.

    Parameters
    ----------
    config
        Of the demo.
    server
        The server that is asked.
    scheduler
        Whose work that is, in words.
    """
    print(f"\n> {config.question}\n", flush=True)
    began_s, pieces = time.monotonic(), 0
    for piece in server.ask(config.question, config.answer_tokens):
        print(piece, end="", flush=True)
        pieces += 1
    took_s = time.monotonic() - began_s
    print(f"\n\n({pieces} pieces in {took_s:.1f} s, scheduled by {scheduler}.)\n", flush=True)


@resumable
def run(config: DictConfig) -> dict[str, float]:
    """
    Answer, replay under every arm, print the table, and return the summary.

    Raises
    ------
    UsageError
        If vLLM or the model is not installed, or a server does not start.
    """
    began_s = time.monotonic()
    folder = Path(HydraConfig.get().runtime.output_dir)
    with exit_on_signals(), recorded_run(folder) as record:
        require_live(vllm=True)
        try:
            with only_engine():
                rows, table, values = replayed(config.copy(), folder)
        except EngineFailed as error:
            raise UsageError(str(error)) from error
        write_atomically(folder / "table.csv", table.write_csv)
        values["wall_s"] = time.monotonic() - began_s
        record.finish(rows, values)
    requests = rows.height // table.height
    print(f"\nQoE: the same {requests} requests, mean over requests\n")
    print(markdown(table, dict(_TABLE.values())))
    print(
        f"\nThis is one seed of {requests} requests: differences of a few hundredths are noise. "
        f"{_STUDY} has the study."
    )
    print(f"\n{values['wall_s']:.0f} s; every server has ended. Files: {printable(folder)}")
    return values


def replayed(
    config: DictConfig, folder: Path
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, float]]:
    """
    Start a server for each arm, and send all of them the same overload.

    Parameters
    ----------
    config
        Of the demo; gets the rate of the overload.
    folder
        Gets the servers' logs.

    Returns
    -------
    tuple[polars.DataFrame, polars.DataFrame, dict[str, float]]
        Rows, the QoE table, and the summary.

    Raises
    ------
    UsageError
        If an option is wrong, or something is not installed.
    EngineFailed
        If a server does not start, ends, or completes no request.
    """
    if not config.arms:
        raise UsageError("arms must not be empty.")
    arms = {str(name): [str(word) for word in overrides] for name, *overrides in config.arms}
    # All are read first: a wrong name is told before any server starts.
    settings = {name: adapter_settings(words) if words else None for name, words in arms.items()}
    model = config.model or SmolLM2().folder(Path(config.models))
    flags = [*config.flags, *(config.cpu_flags if on_cpu() else [])]

    role = roles(arms)
    requests: Requests | None = None
    rows, lines, summary = [], [], {}
    # The one that sets the load runs first, wherever it stands.
    for name in sorted(arms, key=lambda name: name != role.saturates):
        print(f"Starting vLLM: {name}.", flush=True)
        port = free_port() if config.port is None else config.port
        command = server_command(model, settings[name], [*address(port, "demo"), *flags])
        log = folder / f"server_{name}.log"
        with running(command, "demo", port, log=log, start_s=config.start_s) as server:
            warm_up(config, server)
            if name == role.answers:
                answer(config, server, f"us ({name})" if arms[name] else "vLLM")
            if requests is None:
                saturated = saturated_tokens_per_s(config, server)
                requests = overload(config, saturated)
                summary["saturated_tokens_per_s"] = saturated
                print(_load_in_words(config, requests, saturated, name, arms), flush=True)
            seen = send(config, server, requests, config.seed, name)
        _, its_rows, values = scored(seen, config.idle_cost, _columns(config, name, arms[name]))
        rows.append(its_rows)
        lines.append({"scheduler": name, **{h: values[m] for m, (h, _) in _TABLE.items()}})
        summary |= {f"{name}_{metric}": values[metric] for metric in (*_TABLE, "failed")}
        summary[f"{name}_start_s"] = server.start_s
    return pl.concat(rows), pl.DataFrame(lines), summary


def _load_in_words(
    config: DictConfig,
    requests: Requests,
    saturated: float,
    name: str,
    arms: Mapping[str, Sequence[str]],
) -> str:
    """What the load is, and whose saturation it is a multiple of."""
    whose = f"{name}, as no arm is vLLM's own scheduler," if arms[name] else "vLLM's own scheduler"
    return (
        f"Under {whose} the engine saturates at {saturated:.0f} tokens/s. Now every scheduler "
        f"gets {config.overload:g} times that:\n{requests.num_requests} requests come at "
        f"{config.workload.rate:.2f}/s."
    )


def _columns(config: DictConfig, name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Columns of an arm's rows."""
    chosen = dict(word.split("=", 1) for word in overrides)
    served_by = {
        "policy": chosen.get("policy", name),
        "solver": chosen.get("solver"),
        "objective": None,
        "engine": "vllm",
    }
    choices = HydraConfig.get().runtime.choices
    return columns_of(config, choices, "live-demo", served_by, overrides)
