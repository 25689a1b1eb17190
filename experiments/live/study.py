"""
``andes-opt study live_*``: arms, loads and seeds on live engines, and documents.

Every run is what ``andes-opt live`` with the arm's overrides would be. Runs of a seed and a load
lie next to each other in time, in an order that alternates, so that a machine that drifts favours
nobody; but what several parts share is made with the first of them, and documents say when each
arm's runs were made. Where a difference has to be resolved, seeds are added until it is, or to
the most that the study allows.
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
from experiments.live import document
from experiments.live.document_header import Facts, Lacking, unit_of
from experiments.live.engine import check_engine
from experiments.live.process import exit_on_signals
from experiments.live.run_store import Lab
from experiments.runs.environment import commit_words
from experiments.runs.files import ROWS, printable
from experiments.runs.records import read_environment, recorded_run

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from omegaconf import DictConfig


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
            pair = document.paired(results, arm, baseline, load, "qoe_area_mean")
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
    with exit_on_signals(), recorded_run(folder) as record:
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
        print(document.write(results, facts, folder))
        rows = pl.concat([pl.read_parquet(path / ROWS) for path in folders], how="diagonal")
        record.finish(rows, {"runs": len(lines), **document.summary(results)})
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
    baseline = document.baselines(study, part)[0]
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
