"""
``andes-opt study live_*``: arms, loads and seeds on live engines, and documents.

Every run is what ``andes-opt live`` with the arm's overrides would be. Runs of a seed and a load
follow each other in time, in an order that alternates, so that a machine that drifts favours no
arm. What several parts share is made with the first of them; documents say when each arm's runs
were made. Where a difference has to be resolved, seeds are added until it is, or to the most that
the study allows.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from hydra.core.hydra_config import HydraConfig

from andes_opt.metrics import paired_difference
from experiments.configuration.errors import RunRefused, RunsFailed, UsageError, not_understood
from experiments.configuration.experiment import documents_folder
from experiments.live import document
from experiments.live.document_header import LiveStudyFacts, MadePart
from experiments.live.engine import check_engine
from experiments.live.given import check_given
from experiments.live.process import exit_on_signals
from experiments.live.run_store import RunStore
from experiments.live.saturation import load_unit, saturated_tokens_per_s
from experiments.runs.environment import commit_words
from experiments.runs.files import ROWS, listed
from experiments.runs.records import read_environment, recorded_run, remove_empty_run

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from omegaconf import DictConfig


@dataclass(frozen=True, slots=True)
class PlannedRun:
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

    @property
    def place(self) -> dict[str, Any]:
        """The run's columns in the table of all runs."""
        return {"part": self.part, "arm": self.arm, "load": self.load, "seed": self.seed}

    def __str__(self) -> str:
        return f"{self.part}: {self.arm} at {self.load}, seed {self.seed}"


def planned(
    part: str,
    options: Mapping[str, Any],
    arms: Mapping[str, Sequence[str]],
    saturated: float,
    seeds: Iterable[int],
) -> Iterator[PlannedRun]:
    """
    Yield the runs of a part, in the order in which they are made.

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
                yield PlannedRun(part, arm, float(load), int(seed), overrides)


def unresolved(
    results: pl.DataFrame, baseline: str, loads: Sequence[float], half_width: float
) -> set[tuple[str, float]]:
    """
    Return arms and loads whose paired difference to the baseline is not known well enough.

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
            pair = document.paired(results, arm, baseline, load, "qoe_area_mean")
            if arm == baseline or not pair[0].size:
                continue
            if not paired_difference(*pair).half_width <= half_width:
                found.add((arm, float(load)))
    return found


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
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        check_given(HydraConfig.get().overrides.task, study.arms.values(), "live_study")
        parts = _parts(study)
    except UsageError as error:
        remove_empty_run(folder)
        raise RunRefused from error
    with exit_on_signals(), recorded_run(folder) as record:
        store = RunStore(Path(study.runs), study.minutes)
        made = {part: make_part(store, study, part, options) for part, options in parts.items()}
        lines = [line for part in made.values() for line in part.lines]
        if not lines:
            raise RunsFailed(f"no run was made; {store.why_lacking}")
        results = pl.DataFrame(lines, infer_schema_length=None)
        facts = LiveStudyFacts(study, record.environment, made, _words())
        docs = documents_folder(HydraConfig.get(), "live_study", study.docs)
        text, published = document.write(results, facts, folder, docs)
        print(text)
        folders = [path for part in made.values() for path in part.folders]
        rows = pl.concat([pl.read_parquet(path / ROWS) for path in folders], how="diagonal")
        record.finish(rows, {"runs": len(lines), **document.summary(results)})
    print(f"{store.made} runs made, {store.reused} found complete.")
    print(listed(folder, published))
    if store.left:
        print(f"Out of time for {store.left} runs: the same command goes on from here.")
    if store.failed:
        raise RunsFailed(f"{len(store.failed)} failed; {store.why_lacking}")
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


def make_part(store: RunStore, study: DictConfig, part: str, options: DictConfig) -> MadePart:
    """
    Make the runs of a part, with more seeds where differences are not resolved yet.

    Parameters
    ----------
    store
        Makes the runs.
    study
        Node ``live_study`` of the configuration.
    part, options
        Name of the part, and its node.
    """
    left, failed = store.left, len(store.failed)
    workload = list(options.get("workload", []))
    saturated = saturated_tokens_per_s(store, options.engine, study.saturation_runs, workload)
    lines: list[dict[str, Any]] = []
    folders: list[Path] = []
    for seed in range(max(options.seeds, options.get("most_seeds", 0)) if saturated else 0):
        loads = list(options.loads)
        if seed >= options.seeds:
            # Of such a load all arms, so that their means are over the same requests.
            loads = unresolved_loads(lines, study, part, options)
        for run in planned(part, options, study.arms, load_unit(saturated), [seed]):
            if run.load not in loads:
                continue
            made = store.result(run.overrides, str(run), [*workload, *store.given])
            if made is not None:
                lines.append({**run.place, **_provenance(made.folder), **made.summary})
                folders.append(made.folder)
    return MadePart(saturated, lines, folders, store.left - left, len(store.failed) - failed)


def unresolved_loads(
    lines: Sequence[Mapping[str, Any]], study: DictConfig, part: str, options: DictConfig
) -> list[float]:
    """
    Return the loads of a part at which another seed is needed; none if nothing was made yet.

    Parameters
    ----------
    lines
        Of the runs so far.
    study
        Node ``live_study`` of the configuration.
    part, options
        Name of the part, and its node.
    """
    if not lines:
        return []
    loads = [load for load in options.get("resolve_loads", []) if load in options.loads]
    baseline = document.baselines(study, part)[0]
    results = pl.DataFrame(lines, infer_schema_length=None)
    return sorted({load for _, load in unresolved(results, baseline, loads, study.half_width)})


def _provenance(folder: Path) -> dict[str, Any]:
    """Where, when and by which commit a run was made: kept ones may be older than the document."""
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
    """Return the configuration; with ``live_study.tiny`` cut down to its form."""
    config = config.copy()
    study = config.live_study
    if study.tiny:
        first = next(iter(study.parts))
        part = study.parts[first]
        part.arms = list(part.arms)[:2]
        part.loads = list(part.loads)[-1:]
        part.seeds, part.most_seeds = 1, 1
        study.parts = {first: part}
        study.saturation_runs = 1
    return config
