"""
``andes-opt live experiment=live_*``: arms, loads and seeds on live engines, and documents.

Every run is what ``andes-opt live`` with the arm's overrides would be, in a folder of its own;
complete ones are skipped, so that the same command goes on where a stopped one ended. Runs of a
seed and a load lie next to each other in time, in an order that alternates, so that a machine that
drifts favours nobody; but what several parts share is made with the first of them, and documents
say when each arm's runs were made. Where a difference has to be resolved, seeds are added until it
is, or to the most that the study allows.
"""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from andes_opt.metrics import paired_difference
from experiments import report_live
from experiments.code_closure import state_of, targets
from experiments.environment import commit_words
from experiments.identity import configuration_hash, identified
from experiments.live_engine import EngineFailed
from experiments.live_engine_file import check_engine
from experiments.live_run import request_rate, run_columns, serve
from experiments.records import (
    ERROR,
    ROWS,
    TOKENS,
    printable,
    read_environment,
    recorded_run,
    write_json,
)
from experiments.report_live_header import Facts, Lacking, unit_of
from experiments.resume import finished
from experiments.serve import told_to_end
from experiments.usage import RunRefused, RunsFailed, UsageError, not_understood, one_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from omegaconf import DictConfig

#: What is measured between these shares of all tokens is neither ramp-up nor ramp-down.
_STEADY = (0.1, 0.8)
#: Arrivals beyond what any engine here serves.
_FLOOD_RATE = 1000.0
#: Overrides with these beginnings are the study's own.
_NOT_SHARED = ("experiment", "live_study", "live_fidelity", "seed=", "load=")


@dataclass(frozen=True, slots=True)
class Run:
    """
    One run of a study.

    Parameters
    ----------
    part, arm
        Their names in the study.
    load
        Multiple of the engine's saturated token rate.
    seed
        Of the workload.
    overrides
        Of ``andes-opt live``.
    """

    part: str
    arm: str
    load: float
    seed: int
    overrides: tuple[str, ...]


class Lab:
    """
    Makes runs, or finds them made.

    Parameters
    ----------
    folder
        Where its runs lie, each in a folder of its own; studies may share it.
    minutes
        No run starts after so many; None for as long as it takes. What is finished still counts.

    Attributes
    ----------
    given
        Overrides of the command line that all runs share.
    made, reused, left
        Runs so far, runs that were there, and runs for which there was no time.
    failed
        Folders of the runs that failed.
    """

    def __init__(self, folder: Path, minutes: float | None = None) -> None:
        self._folder = folder
        self._minutes = minutes
        self._began_s = time.monotonic()
        hydra = HydraConfig.get()
        self._choices = dict(hydra.runtime.choices)
        self.given = [
            override
            for override in hydra.overrides.task
            if not override.lstrip("+~").startswith(_NOT_SHARED)
        ]
        self.made = self.reused = self.left = 0
        self.failed: list[Path] = []
        self._code = _harness()

    @property
    def why_lacking(self) -> str:
        """Why runs that were asked for are not there."""
        if self.failed:
            named = ", ".join(str(printable(path)) for path in self.failed[:3])
            return f"{ERROR} says why: {named}"
        return f"minutes = {self._minutes} left no time for them"

    def _out_of_time(self) -> bool:
        if self._minutes is None:
            return False
        return time.monotonic() - self._began_s > 60 * self._minutes

    def result(
        self, overrides: Sequence[str], description: str, given: Sequence[str] | None = None
    ) -> tuple[Path, Any] | None:
        """
        Folder and summary of a run; None if it failed, or there was no time for it.

        Parameters
        ----------
        overrides
            Of ``andes-opt live``.
        description
            What to call it meanwhile.
        given
            In place of :attr:`given`.
        """
        words = [*(self.given if given is None else given), *overrides]
        # The last one counts, and Hydra takes each group once.
        words = list({word.split("=")[0]: word for word in words}.values())
        config = compose("live", overrides=words)
        rate = request_rate(config)
        if rate is not None:
            config.workload.rate = rate
        identification = identification_of(config)
        folder = self._folder / identification["configuration"]
        summary = finished(folder, identification)
        if summary is not None:
            self.reused += 1
            return folder, summary
        if self._out_of_time():
            self.left += 1
            return None
        if _harness() != self._code:
            raise UsageError(
                "the code has changed since the study began: start it again, it goes on from here."
            )
        folder.mkdir(parents=True, exist_ok=True)
        print(description, file=sys.stderr, flush=True)
        choices = {**self._choices, **dict(word.split("=", 1) for word in words if "." not in word)}
        columns = run_columns(config, rate, shlex.join(words), choices)
        try:
            with identified(identification), recorded_run(folder) as record:
                rows, summary = serve(config, folder, columns, description)
                record.finish(rows, summary)
        except EngineFailed as error:
            account = {"error": type(error).__name__, "message": one_line(error)}
            write_json(folder / ERROR, {**account, "run": identification})
            self.failed.append(folder)
            return None
        self.made += 1
        return folder, summary

    def saturated_tokens_per_s(
        self, engine: str, floods: int, workload: Sequence[str] = ()
    ) -> list[float]:
        """
        Tokens/s of stock vLLM when all requests come at once.

        Parameters
        ----------
        engine
            Name in ``conf/live_engine``.
        floods
            How often to measure, with other requests each time.
        workload
            Overrides that make what is sent, before those of the command line.

        Returns
        -------
        list[float]
            Of each flood, rising; the one in the middle makes the load. Empty if one failed, or
            there was no time.
        """
        found = []
        for seed in range(floods):
            overrides = [
                f"live_engine={engine}",
                "stock=true",
                f"workload.rate={_FLOOD_RATE}",
                "tokens=true",
                f"seed={seed}",
            ]
            result = self.result(
                overrides, f"{engine}: saturated token rate, seed {seed}", [*workload, *self.given]
            )
            if result is None:
                return []
            folder, _ = result
            rows = pl.read_parquet(folder / ROWS).select("request", "arrival_s")
            tokens = pl.read_parquet(folder / TOKENS).join(rows, on="request")
            found.append(steady_rate((tokens["time_s"] + tokens["arrival_s"]).to_numpy()))
        return sorted(found)


def _harness() -> str:
    """A hash of the code that this process itself runs."""
    return state_of(["experiments.live_run"])


def identification_of(config: DictConfig) -> dict[str, str]:
    """
    What identifies a run: its configuration, and the code that it can run.

    A run takes minutes, so that code which it never touches does not count: for stock vLLM the
    adapter and the policies, for the others the policies and solvers that they don't name.

    Parameters
    ----------
    config
        Of ``andes-opt live``, complete.
    """
    parts = ["workload", "live_engine", "endpoint"]
    if not config.stock:
        parts.append("live")
    options = {part: OmegaConf.to_container(config[part], resolve=True) for part in parts}
    modules = {"experiments.live_run", *targets(options)}
    if not config.stock:
        modules |= {"engine_adapter.scheduler", "engine_adapter.background_worker"}
    return {"configuration": configuration_hash("live", config), "code": state_of(modules)[:16]}


def steady_rate(times_s: Any) -> float:
    """
    Tokens/s in the steady part of a run.

    Parameters
    ----------
    times_s
        When each token of a run came, (n,), in any order.
    """
    ordered = np.sort(times_s)
    first, last = (int(share * (ordered.size - 1)) for share in _STEADY)
    return float((last - first) / (ordered[last] - ordered[first]))


def planned(
    part: str,
    options: Mapping[str, Any],
    arms: Mapping[str, Sequence[str]],
    saturated: float,
    seeds: Iterable[int],
) -> Iterator[Run]:
    """
    The runs of a part, in the order in which they are made.

    Parameters
    ----------
    part, options
        Its name, and its ``engine``, ``arms`` and ``loads``.
    arms
        Name -> overrides of every arm.
    saturated
        Tokens/s at which the load is 1.
    seeds
        Of the workload.

    Raises
    ------
    UsageError
        If an arm is unknown.
    """
    for arm in options["arms"]:
        if arm not in arms:
            raise not_understood("arm", arm, arms)
    for seed in seeds:
        for k, load in enumerate(options["loads"]):
            order = list(options["arms"])
            if (seed + k) % 2:
                order.reverse()
            for arm in order:
                overrides = (
                    f"live_engine={options['engine']}",
                    *arms[arm],
                    f"live_engine.saturated_tokens_per_s={saturated:.1f}",
                    f"load={load}",
                    f"seed={seed}",
                )
                yield Run(part, arm, float(load), int(seed), overrides)


def unresolved(
    results: pl.DataFrame, baseline: str, loads: Sequence[float], half_width: float
) -> set[tuple[str, float]]:
    """
    Arms and loads whose paired difference to the baseline is not known well enough.

    Parameters
    ----------
    results
        ``arm``, ``load``, ``seed``, ``qoe_area_mean`` of each run of a part.
    baseline
        The arm that the others are compared with.
    loads
        Where differences have to be resolved.
    half_width
        Of the 95 % interval that is good enough.
    """
    found = set()
    for arm in results["arm"].unique().to_list():
        for load in loads:
            pair = report_live.paired(results, arm, baseline, load, "qoe_area_mean")
            if arm != baseline and pair[0].size and not _resolved(pair, half_width):
                found.add((arm, float(load)))
    return found


def _resolved(pair: tuple[Any, Any], half_width: float) -> bool:
    _, width = paired_difference(*pair)
    return bool(width <= half_width)


def run(config: DictConfig) -> dict[str, float]:
    """
    Make what the study lacks, write its documents, and return its summary.

    Raises
    ------
    RunRefused
        If a part is unknown, or its engine's file lacks something; what an earlier call left in
        the folder stays.
    RunsFailed
        If a run failed; the others are made and reported.
    """
    study = shrunk(config).live_study
    try:
        parts = _parts(study)
    except UsageError as error:
        raise RunRefused from error
    folder = Path(HydraConfig.get().runtime.output_dir)
    with told_to_end(), recorded_run(folder) as record:
        lab = Lab(Path(study.runs), study.minutes)
        lines: list[dict[str, Any]] = []
        folders: list[Path] = []
        floods: dict[str, list[float]] = {}
        lacking: dict[str, Lacking] = {}
        for part, options in parts.items():
            left, failed = lab.left, len(lab.failed)
            _work(lab, study, part, options, floods, lines, folders)
            lacking[part] = Lacking(lab.left - left, len(lab.failed) - failed)
        if not lines:
            raise RunsFailed(f"no run was made; {lab.why_lacking}")
        results = pl.DataFrame(lines, infer_schema_length=None)
        facts = Facts(study, record.environment, floods, lacking, _words())
        print(report_live.write(results, facts, folder))
        rows = pl.concat([pl.read_parquet(path / ROWS) for path in folders], how="diagonal")
        record.finish(rows, {"runs": len(lines), **report_live.summary(results)})
    print(f"{lab.made} runs made, {lab.reused} found complete.")
    print(printable(folder))
    if lab.left:
        print(f"Out of time for {lab.left} runs: the same command goes on from here.")
    if lab.failed:
        raise RunsFailed(f"{len(lab.failed)} failed; {lab.why_lacking}")
    return {"runs": float(len(lines))}


def _parts(study: DictConfig) -> dict[str, DictConfig]:
    """The parts to make, whose engines are looked at before the first run: it may take hours."""
    if study.part is not None and study.part not in study.parts:
        raise not_understood("live_study.part", study.part, study.parts)
    parts = {
        part: options
        for part, options in study.parts.items()
        if study.part == part or (study.part is None and not options.get("on_request"))
    }
    for options in parts.values():
        check_engine(str(options.engine))
    return parts


def _work(
    lab: Lab,
    study: DictConfig,
    part: str,
    options: DictConfig,
    floods: dict[str, list[float]],
    lines: list[dict[str, Any]],
    folders: list[Path],
) -> None:
    """Make the runs of a part; its lines and folders are added."""
    workload = list(options.get("workload", []))
    measured = lab.saturated_tokens_per_s(options.engine, study.floods, workload)
    if not measured:
        return
    floods[part] = measured
    baseline = report_live.baselines(study, part)[0]
    wanted: set[float] | None = None  # loads at which another seed is needed; None for all
    mine: list[dict[str, Any]] = []
    for seed in range(max(options.seeds, options.get("most_seeds", 0))):
        if seed >= options.seeds:
            if not mine:  # nothing to resolve: no time, or all failed
                break
            found = pl.DataFrame(mine, infer_schema_length=None)
            loads = [load for load in options.resolve_loads if load in options.loads]
            open_pairs = unresolved(found, baseline, loads, study.half_width)
            if not open_pairs:
                break
            # All arms, so that those of a load are means over the same requests.
            wanted = {load for _, load in open_pairs}
        for item in planned(part, options, study.arms, unit_of(measured), [seed]):
            if wanted is not None and item.load not in wanted:
                continue
            name = f"{part}: {item.arm} at {item.load}, seed {item.seed}"
            result = lab.result(item.overrides, name, [*workload, *lab.given])
            if result is not None:
                place = {"part": part, "arm": item.arm, "load": item.load, "seed": item.seed}
                mine.append({**place, **_provenance(result[0]), **result[1]})
                folders.append(result[0])
    lines += mine


def _provenance(folder: Path) -> dict[str, Any]:
    """Where, when and from what a run was made: kept ones may be older than what reports them."""
    recorded = read_environment(folder)
    rows = pl.read_parquet(folder / ROWS)
    arrival_s = rows["arrival_s"].to_numpy()
    return {
        "commit": commit_words(recorded),
        "load_average": recorded["load"][0],
        "machine": ", ".join(
            [
                recorded["cpu"],
                f"{recorded['cores_usable']} cores usable",
                *recorded.get("gpus", []),
            ]
        ),
        "started": recorded["started"],
        "arriving_s": float(arrival_s.max() - arrival_s.min()),
        "prompt_tokens_mean": rows["prompt_tokens"].mean(),
        "wanted_tokens_mean": rows["wanted_tokens"].mean(),
        "target_ttft_s": rows["ttft_s"].median(),
        "target_tds": rows["tds"].median(),
    }


def _words() -> str:
    """Overrides of the command line that bear on results."""
    silent = ("experiment=", "live_study.minutes=", "live_study.docs=", "live_study.runs=")
    words = [word for word in HydraConfig.get().overrides.task if not word.startswith(silent)]
    return shlex.join(words)


def shrunk(config: DictConfig) -> DictConfig:
    """The configuration; with ``live_study.tiny`` cut down to its form."""
    config = config.copy()
    study = config.live_study
    if study.tiny:
        first = next(iter(study.parts))
        part = study.parts[first]
        part.arms = list(part.arms)[:2]
        part.loads = list(part.loads)[-1:]
        part.seeds, part.most_seeds = 1, 1
        study.parts = {first: part}
        study.floods = 1
    return config
