"""
``andes-opt study live_fidelity``: how far the simulator is from the live engine.

The engine's latency is fitted to a designed sweep of batches and contexts on the engine itself.
Then each policy serves the same requests twice, live and simulated under the fitted profile.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from andes_opt.calibration import fit_latency, read_iterations
from andes_opt.metrics import summarise
from andes_opt.policy import Paced
from engine_adapter.settings import KEY, read_settings
from experiments.analysis import document
from experiments.analysis.markdown import markdown
from experiments.configuration.compose import build
from experiments.configuration.errors import RunRefused, RunsFailed, UsageError
from experiments.configuration.experiment import documents_folder
from experiments.live.engine import check_chosen, check_engine
from experiments.live.given import check_given
from experiments.live.process import exit_on_signals
from experiments.live.run_store import RunStore, composed
from experiments.live.saturation import load_unit, saturated_tokens_per_s
from experiments.live.study import planned
from experiments.runs.environment import commit_words
from experiments.runs.files import ROWS, listed, write_atomically
from experiments.runs.records import read_environment, recorded_run, remove_empty_run
from experiments.runs.simulation import run_simulation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from omegaconf import DictConfig

    from andes_opt.calibration import Fit
    from andes_opt.engine import EngineProfile
    from andes_opt.latency import LatencyModel
    from experiments.live.study import PlannedRun

#: Overrides that say nothing about the sweep.
_OF_WORKLOADS = ("workload", "lengths", "readers", "warm_up")
#: What is compared: metric of both sides -> decimals.
_COMPARED = {
    "qoe_area_mean": 3,
    "qoe_window_mean": 3,
    "ttft_p90_s": 2,
    "tokens_per_s": 1,
    "preemptions_per_request": 2,
}


@dataclass(frozen=True, slots=True)
class CalibrationSweep:
    """
    Bursts of requests, in random order: batch, context and prefill vary on their own.

    A burst's requests differ in length, and the next burst comes when the last of the one before
    are about to end. So contexts are mixed and prefills fall among decodes, as when serving:
    bursts of equal requests with pauses between them are served up to a fifth faster.

    Parameters
    ----------
    batches, prompt_tokens
        Every batch with every mean prompt length that fills the KV cache at most. Time need not
        grow evenly with the context, so a cache as full as when serving has to be among them.
    output_tokens
        Mean length of the replies.
    spread
        Lengths are uniform within this share of their mean, in [0, 1).
    """

    batches: Sequence[int]
    prompt_tokens: Sequence[int]
    output_tokens: int
    spread: float

    def requests(self, profile: EngineProfile) -> list[tuple[float, int, int]]:
        """Arrival (s), prompt and reply (tokens) of each request of the sweep."""
        rng = np.random.default_rng(0)
        bursts = [
            (batch, prompt)
            for prompt in self.prompt_tokens
            for batch in self.batches
            if batch * (prompt + self.output_tokens) <= profile.capacity_tokens
        ]
        found, now_s = [], 0.0
        for k in rng.permutation(len(bursts)):
            batch, prompt = bursts[k]
            prompts = self._lengths(prompt, batch, rng)
            replies = self._lengths(self.output_tokens, batch, rng)
            found += [(now_s, *pair) for pair in zip(prompts, replies, strict=True)]
            now_s += _duration_s(profile.latency, prompts, replies)
        return found

    def _lengths(self, mean: int, count: int, rng: np.random.Generator) -> list[int]:
        least, most = mean * (1 - self.spread), mean * (1 + self.spread)
        return [max(1, round(length)) for length in rng.uniform(least, most, count)]

    def write(self, path: Path, profile: EngineProfile) -> None:
        """Write the sweep as a trace."""
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("arrival_s", "prompt_tokens", "output_tokens"))
            writer.writerows(self.requests(profile))


def _duration_s(latency: LatencyModel, prompts: Sequence[int], replies: Sequence[int]) -> float:
    """About how long a burst takes but for its longest replies, under a first guess of latency."""
    steps = float(np.mean(replies))
    batch, context = len(prompts), sum(prompts) + 0.5 * sum(replies)
    step_s = latency.iteration_s(batch, context)
    return steps * step_s + sum(prompts) * latency.per_prefill_token_s


def calibrated(
    store: RunStore, settings: DictConfig, folder: Path, profile: EngineProfile
) -> Fit | None:
    """Fit the engine's latency to the sweep; None if the engine failed or there was no time."""
    sweep = CalibrationSweep(
        list(settings.sweep.batches),
        list(settings.sweep.prompt_tokens),
        settings.sweep.output_tokens,
        settings.sweep.spread,
    )
    trace = folder / "sweep.csv"
    sweep.write(trace, profile)
    overrides = [
        f"live_engine={settings.engine}",
        "policy=fcfs",
        "workload=trace",
        f"workload.path={trace.resolve()}",
        "iterations=true",
        "warm_up=0",
        "seed=0",
    ]
    given = [word for word in store.given if not word.startswith(_OF_WORKLOADS)]
    made = store.result(overrides, "designed sweep", given)
    if made is None:
        return None
    return fit_latency(read_iterations(made.folder / "iterations.csv"), weighting="absolute")


def simulated(
    run: PlannedRun, profile: EngineProfile, pause_s: float, given: Sequence[str]
) -> dict[str, float]:
    """
    Simulate a live run: the same requests under the same policy, at the pace that it had live.

    Parameters
    ----------
    run
        The live run.
    profile
        The engine as calibrated.
    pause_s
        Between two plans.
    given
        Overrides that all runs share.
    """
    config, _ = composed([*given, *run.overrides])
    policy = Paced(build(config, "policy"), pause_s)
    return summarise(run_simulation(config, engine=profile, policy=policy))


def hit_share(results: pl.DataFrame, arm: str) -> float:
    """Return the share of resumed requests' context that the prefix cache had in an arm's runs."""
    rows = results.filter(pl.col("arm") == arm)
    resumed = float(rows["adapter_resumed_tokens"].sum())
    cached = float(rows["adapter_resumed_cached_tokens"].sum())
    return cached / resumed if resumed else 0.0


def pause_between_plans_s(results: pl.DataFrame, arm: str, limit: float) -> float:
    """
    Return how long the adapter waits after a plan to keep its planning share within the limit.

    Parameters
    ----------
    results
        The live runs' summaries.
    arm
        Whose.
    limit
        The adapter's ``planning_share_limit``.

    Returns
    -------
    float
        Mean over the arm's plans, s; 0 where nothing was planned.
    """
    rows = results.filter(pl.col("arm") == arm)
    plans = float(rows["adapter_plans"].sum())
    if not plans or limit >= 1.0:
        return 0.0
    plan_s = float(rows["adapter_planning_s"].sum()) / plans
    return plan_s / limit


def run(config: DictConfig) -> dict[str, float]:
    """
    Calibrate, serve, simulate, compare, and write the document.

    Raises
    ------
    RunRefused
        If the engine's file lacks something; what an earlier call left in the folder stays.
    RunsFailed
        If a live run failed; nothing is compared then.
    """
    settings = _shrunk(config).live_fidelity
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        check_given(HydraConfig.get().overrides.task, settings.arms.values(), "live_fidelity")
        check_chosen(config)
        check_engine(str(settings.engine))
    except UsageError as error:
        remove_empty_run(folder)
        raise RunRefused from error
    with exit_on_signals(), recorded_run(folder) as record:
        store = RunStore(Path(settings.runs), settings.minutes)
        profile: EngineProfile = build(config, "live_engine").profile
        rates = saturated_tokens_per_s(store, settings.engine, settings.saturation_runs)
        fit = calibrated(store, settings, folder, profile)
        if not rates or fit is None:
            raise RunsFailed(f"the engine was not calibrated; {store.why_lacking}.")
        runs = _served(store, settings, load_unit(rates))
        live = pl.DataFrame([line for _, line, _ in runs], infer_schema_length=None)
        shares = {arm: hit_share(live, arm) for arm in settings.arms}
        adapter = read_settings({KEY: OmegaConf.to_container(config.live, resolve=True)})
        limit = adapter.planning_share_limit
        pauses_s = {arm: pause_between_plans_s(live, arm, limit) for arm in settings.arms}
        both = []
        for planned_run, line, _ in runs:
            arm = planned_run.arm
            engine = replace(profile, latency=fit.latency, recompute_hit_share=shares[arm])
            twin = simulated(planned_run, engine, pauses_s[arm], store.given)
            both.append({**line, **{f"sim_{name}": twin[name] for name in _COMPARED}})
        table = comparison(pl.DataFrame(both, infer_schema_length=None))
        folders = [path for _, _, path in runs]
        facts = _facts(fit, shares, pauses_s, load_unit(rates), record.environment, folders)
        if store.left:
            facts.append("**Out of time before all runs were made.**")
        docs = documents_folder(HydraConfig.get(), "live_fidelity", settings.docs)
        published = _write(table, facts, folder, docs)
        rows = pl.concat([pl.read_parquet(path / ROWS) for path in folders], how="diagonal")
        summary = {
            "r2": fit.r2,
            "area_difference_max": _largest(table, "area difference"),
            "ttft_p90_difference_max_percent": _largest(table, "TTFT p90 difference %"),
        }
        record.finish(rows, summary)
    print(f"{store.made} runs made, {store.reused} found complete.")
    print(listed(folder, published))
    return summary


def _served(
    store: RunStore, settings: DictConfig, saturated: float
) -> list[tuple[PlannedRun, dict[str, Any], Path]]:
    """Each live run, its place and summary, and its folder; without those that time left out."""
    found = []
    for item in planned("fidelity", settings, settings.arms, saturated, range(settings.seeds)):
        made = store.result(item.overrides, str(item))
        if made is not None:
            found.append((item, {**item.place, **made.summary}, made.folder))
        elif store.failed:
            raise RunsFailed(f"{item.arm} at {item.load} failed; {store.why_lacking}.")
    if not found:
        raise RunsFailed(f"no run was made; {store.why_lacking}.")
    return found


def _largest(table: pl.DataFrame, column: str) -> float:
    return float(np.abs(table[column].to_numpy()).max())


def comparison(results: pl.DataFrame) -> pl.DataFrame:
    """
    Return live beside simulated at each load for each arm, means over seeds.

    Parameters
    ----------
    results
        A line per run: ``arm``, ``load``, and each compared metric with and without ``sim_``.
    """
    arms = results["arm"].unique(maintain_order=True).to_list()
    means = (
        results.group_by("load", "arm", maintain_order=True)
        .agg(
            pl.len().alias("seeds"),
            *(pl.col(name, f"sim_{name}").mean() for name in _COMPARED),
        )
        .with_columns(pl.col("arm").replace_strict(arms, range(len(arms))).alias("rank"))
        .sort("load", "rank")
    )
    ttft, twin = pl.col("ttft_p90_s"), pl.col("sim_ttft_p90_s")
    return means.select(
        "load",
        "arm",
        "seeds",
        pl.col("qoe_area_mean").alias("area live"),
        pl.col("sim_qoe_area_mean").alias("area simulated"),
        (pl.col("sim_qoe_area_mean") - pl.col("qoe_area_mean")).alias("area difference"),
        (pl.col("sim_qoe_window_mean") - pl.col("qoe_window_mean")).alias("window difference"),
        ttft.alias("TTFT p90 live s"),
        twin.alias("TTFT p90 simulated s"),
        (100 * (twin / ttft - 1)).alias("TTFT p90 difference %"),
        (100 * (pl.col("sim_tokens_per_s") / pl.col("tokens_per_s") - 1)).alias(
            "tokens/s difference %"
        ),
        pl.col("preemptions_per_request").alias("preemptions/request live"),
        pl.col("sim_preemptions_per_request").alias("preemptions/request simulated"),
    )


def _facts(
    fit: Fit,
    shares: Mapping[str, float],
    pauses_s: Mapping[str, float],
    saturated: float,
    environment: Mapping[str, Any],
    folders: Sequence[Path],
) -> list[str]:
    """Sentences on what was fitted, and what was run where and by which commit."""
    latency, numbers = fit.latency, fit.summary()
    listed = ", ".join(f"{arm} {share:.2f}" for arm, share in shares.items())
    waits = ", ".join(f"{arm} {1e3 * pause_s:.0f} ms" for arm, pause_s in pauses_s.items())
    commits = sorted({commit_words(read_environment(path)) for path in folders})
    return [
        f"Iteration = {1e3 * latency.base_s:.2f} ms + {1e3 * latency.per_request_s:.3f} ms a "
        f"request + {1e6 * latency.per_context_token_s:.3f} us a context token + "
        f"{1e3 * latency.per_prefill_token_s:.3f} ms a prompt token; with prefill "
        f"{1e3 * latency.mixed_base_s:+.2f} ms {1e3 * latency.mixed_per_request_s:+.3f} ms a "
        f"request: R2 {fit.r2:.3f}, mean "
        f"relative error {100 * numbers['relative_error_mean']:.1f} %, "
        f"{numbers['iterations']:.0f} iterations.",
        f"Load 1 = {saturated:.0f} tokens/s of stock vLLM.",
        "Two inputs of the simulator are from the very runs that it is compared with, each a "
        f"mean over loads and seeds: the share of a resumed request's context that the prefix "
        f"cache still had, {listed}; and the pause between two plans that `planning_share_limit` "
        f"makes, {waits}.",
        f"{document.processor(environment)}; load average at the start {environment['load']}.",
        f"Commit of the live runs: {'; '.join(commits)}. Simulated by "
        f"{commit_words(environment)}, {environment['started']}.",
    ]


def _write(table: pl.DataFrame, facts: Sequence[str], folder: Path, docs: str | None) -> list[Path]:
    """Print the document, and write it to the run's folder and the documents' one."""
    write_atomically(folder / "table.csv", table.write_csv)
    decimals = {name: 3 for name in table.columns if name.startswith(("area", "window"))}
    decimals |= {name: 2 for name in table.columns if name.startswith(("TTFT", "preempt"))}
    decimals |= {"TTFT p90 difference %": 1, "tokens/s difference %": 1}
    text = document.paragraphs(
        document.how_made("Live against simulated", "andes-opt study live_fidelity", facts),
        "Differences are simulated less live, on the same requests under the same policy; "
        "means over seeds. Andes' cap counts the live run's warm-up requests, too, so it "
        "preempts a little more often there.",
        markdown(table, decimals),
    )
    print(text)
    return document.publish(text, "live_fidelity", folder, docs)


def _shrunk(config: DictConfig) -> DictConfig:
    """The configuration; with ``live_fidelity.tiny`` cut down to its form."""
    config = config.copy()
    settings = config.live_fidelity
    if settings.tiny:
        settings.arms = dict([next(iter(settings.arms.items()))])
        settings.loads = list(settings.loads)[-1:]
        settings.seeds = settings.saturation_runs = 1
        settings.sweep.batches, settings.sweep.prompt_tokens = [1, 2], [8]
    return config
