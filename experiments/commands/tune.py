"""``andes-opt tune``: a policy's options searched on some seeds, and reported on others."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from experiments.analysis.markdown import markdown
from experiments.analysis.statistics import DIFFERENCE, against, as_rows, over_seeds
from experiments.configuration.compose import build, load_choice
from experiments.configuration.errors import UsageError, not_understood, unknown_key
from experiments.runs.cells import Cell, finish, processes_of
from experiments.runs.files import printable, write_atomically
from experiments.runs.identity import code_hash, configuration_hash
from experiments.runs.progress import bar
from experiments.runs.records import recorded_run
from experiments.runs.resume import resumable
from experiments.runs.run_columns import run_columns
from experiments.studies.measurements import Measurement, read_back, with_rate
from experiments.studies.tune_search import (
    METRICS,
    Search,
    TrialOutcome,
    distributions,
    need_optuna,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from omegaconf import DictConfig
    from optuna.trial import FrozenTrial

UNTUNED, TUNED = "untuned", "tuned"
_WORK = "experiments.studies.measurements:served"
_NODES = ("workload", "engine", "policy", "solver_time", "oracle")
#: What no simulation depends on.
_ASIDE = ("hydra", "tuning", "sweep")

#: What the report shows beside the metric that was tuned and the guards.
_SHOWN = (
    "qoe_area_mean",
    "qoe_window_mean",
    "qoe_window_share_0",
    "ttft_p99_s",
    "completion_delay_max_s",
)


@dataclass(frozen=True, slots=True)
class Place:
    """An engine, its requests' rate and the seeds: where options are tried."""

    engine: str
    rate: float | None
    seeds: tuple[int, ...]


def places(config: DictConfig, half: str, engine: str) -> list[Place]:
    """
    Return where the options are tried.

    Parameters
    ----------
    config
        The command's configuration.
    half
        ``search`` or ``report``.
    engine
        Name of the engine that the command was given.

    Raises
    ------
    UsageError
        If there are no seeds or rates, or the two halves share seeds.
    """
    seeds = {name: _seeds(config, name) for name in ("search", "report")}
    shared = sorted(set(seeds["search"]) & set(seeds["report"]))
    if shared:
        raise UsageError(
            f"seed {shared[0]} is in both tuning.search.seeds and tuning.report.seeds: "
            "options would be reported where they were tuned."
        )
    engines = config.tuning[half].engines
    if engines is None:
        return [Place(engine, None, seeds[half])]
    found = []
    for name, rates in engines.items():
        if not OmegaConf.is_list(rates) or not rates:
            raise UsageError(
                f"tuning.{half}.engines.{name}={rates} not understood: need a list of rates."
            )
        found += [Place(str(name), float(rate), seeds[half]) for rate in rates]
    return found


def _seeds(config: DictConfig, half: str) -> tuple[int, ...]:
    seeds = config.tuning[half].seeds
    if not OmegaConf.is_list(seeds) or not seeds:
        raise UsageError(f"tuning.{half}.seeds={seeds} not understood: need a list of seeds.")
    return tuple(int(seed) for seed in seeds)


def changed(config: DictConfig, options: Mapping[str, Any]) -> DictConfig:
    """Return a copy of the configuration with some options set."""
    copy = config.copy()
    for option, value in options.items():
        OmegaConf.update(copy, option, value)
    return copy


@dataclass(slots=True)
class Bench:
    """Simulates configurations at places, each simulation once and in parallel."""

    config: DictConfig
    store: Path
    processes: int

    def numbers(
        self, config: DictConfig, where: Sequence[Place]
    ) -> list[tuple[Place, int, list[Measurement]]]:
        """Return place, seed and measurements of each whole simulation."""
        cells, labels = [], []
        for place in where:
            run = self._nodes(config, place)
            for seed in place.seeds:
                cells.append(Cell(_WORK, {"run": run, "seed": seed}, {}))
                labels.append((place, seed))
        done = finish(cells, self.store, processes=self.processes, description="simulations")
        return [
            (place, seed, [one for one in read_back(result) if one.part == ""])
            for (place, seed), result in zip(labels, done.results, strict=True)
        ]

    def means(self, config: DictConfig, where: Sequence[Place]) -> dict[str, float]:
        """Return the mean of each metric over all simulations at some places."""
        found: dict[str, list[float]] = {}
        for _, _, measurements in self.numbers(config, where):
            for one in measurements:
                if one.value is not None:
                    found.setdefault(one.metric, []).append(one.value)
        return {metric: sum(numbers) / len(numbers) for metric, numbers in found.items()}

    def _nodes(self, config: DictConfig, place: Place) -> dict[str, Any]:
        chosen = config
        if place.rate is not None:
            chosen = config.copy()
            chosen.engine = load_choice("engine", place.engine)
        for name in _NODES:
            if OmegaConf.is_config(chosen.get(name)):
                build(chosen, name)  # what a constructor refuses is refused here, as a trial
        kept = [str(key) for key in chosen if key not in _ASIDE]
        resolved: Any = OmegaConf.to_container(OmegaConf.masked_copy(chosen, kept), resolve=True)
        run = {key: resolved[key] for key in _NODES}
        return run if place.rate is None else with_rate(run, place.rate)


class Goal:
    """What a trial is worth: the metric's mean, guards kept or paid for."""

    def __init__(self, config: DictConfig, untuned: Mapping[str, float]) -> None:
        tuning = config.tuning
        self._metric, self._penalty = tuning.metric, tuning.penalty
        self._sign = 1.0 if tuning.direction == "maximize" else -1.0
        guards = tuning.guards or {}
        for metric in (tuning.metric, *guards):
            if metric not in untuned:
                raise not_understood("metric", metric, untuned)
        self._limits = {
            metric: untuned[metric] if limit == "defaults" else float(limit)
            for metric, limit in guards.items()
        }

    def outcome(self, means: Mapping[str, float]) -> TrialOutcome:
        """Return the outcome of a trial with these means."""
        excess = {
            metric: (means[metric] - limit) / max(abs(limit), 1e-9)
            for metric, limit in self._limits.items()
        }
        value = means[self._metric]
        if self._penalty is None:
            return TrialOutcome(value, excess, means)
        fine = self._penalty * sum(max(0.0, share) for share in excess.values())
        return TrialOutcome(value - self._sign * fine, {}, means)


@resumable
def run(config: DictConfig) -> dict[str, float]:
    """Search, report, write the run's files, and return the summary."""
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    engine = hydra_config.runtime.choices["engine"]
    with recorded_run(folder) as record:
        need_optuna()
        space, first = _space(config)
        search_at, report_at = (places(config, half, engine) for half in ("search", "report"))
        bench = Bench(config, folder / "simulations", processes_of(hydra_config))
        goal = Goal(config, bench.means(config, search_at))
        search = Search(
            folder / "study.db",
            _search_name(config),
            space,
            config.tuning.direction,
            first,
            config.seed,
        )
        with bar(config.tuning.trials, "trials") as progress:
            progress.update(len(search.finished()))
            while len(search.finished()) < config.tuning.trials:
                search.next_trial(
                    lambda options: goal.outcome(bench.means(changed(config, options), search_at))
                )
                progress.update()
        best = search.best()
        trials = _trial_rows(search, config)
        write_atomically(folder / "trials.csv", trials.write_csv)
        (folder / "experiment").mkdir(exist_ok=True)
        write_atomically(
            folder / "experiment" / "tuned.yaml", lambda p: _write_best(p, best, config)
        )

        rows = _report(config, bench, report_at, best)
        record.keep(rows)
        shown = _metrics(config)
        levels, paired = over_seeds(rows, shown), against(rows, UNTUNED, DIFFERENCE, shown)
        table = levels.pivot("arm", index=["variant", "at", "metric"], values="mean")
        gains = paired.filter(pl.col("arm") == TUNED)
        summary = {
            "trials": float(len(search.finished())),
            "best_trial": float(best.number),
            f"search_{config.tuning.metric}": float(best.user_attrs[METRICS][config.tuning.metric]),
            **_overall(rows, config.tuning.metric),
        }
        record.finish(None, summary)
    finished = len(search.finished())
    print(_text(best, finished, search.importances(), table, gains, config, folder))
    return summary


def _search_name(config: DictConfig) -> str:
    """Return a name of all that a trial depends on; more trials are the same search."""
    aside = dict.fromkeys(("tuning.trials", "tuning.report", "tuning.baselines"))
    same = changed(config, aside)
    return f"{configuration_hash('tune', same)}-{code_hash('tune')}"


def _space(config: DictConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return distributions, and the untuned values of the options that the space has in it."""
    if config.tuning.trials < 1:
        raise UsageError(
            f"tuning.trials = {config.tuning.trials} not understood: need a whole number >= 1."
        )
    entries: Any = OmegaConf.to_container(config.tuning.get("space") or {}, resolve=True)
    first = {}
    for option, entry in entries.items():
        parent, _, name = option.rpartition(".")
        node = OmegaConf.select(config, parent) if parent else config
        if not OmegaConf.is_dict(node) or name not in node:
            raise unknown_key(option, map(str, node) if OmegaConf.is_dict(node) else config)
        value = node[name]
        if value in entry.get("choices", ()) or (
            isinstance(value, int | float)
            and entry.get("low", value + 1) <= value <= entry.get("high", value - 1)
        ):
            first[option] = value
    return distributions(entries), first


def _metrics(config: DictConfig) -> list[str]:
    """Return the metrics that are shown: the tuned one, guards, and those of every report."""
    return list(dict.fromkeys([config.tuning.metric, *(config.tuning.guards or {}), *_SHOWN]))


def _trial_rows(search: Search, config: DictConfig) -> pl.DataFrame:
    metrics = _metrics(config)
    return pl.DataFrame(
        [
            {
                "trial": trial.number,
                "value": trial.value,
                **trial.params,
                **{m: trial.user_attrs.get(METRICS, {}).get(m) for m in metrics},
                "refused": trial.user_attrs.get("error"),
            }
            for trial in search.finished()
        ],
        infer_schema_length=None,
    )


def _write_best(path: Path, best: FrozenTrial, config: DictConfig) -> None:
    """Write an experiment file that sets the best trial's options."""
    choices = HydraConfig.get().runtime.choices
    nested: dict[str, Any] = {}
    for option, value in best.params.items():
        node = nested
        *parents, name = option.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    groups = [{f"override /{g}": choices[g]} for g in ("policy", "solver", "objective")]
    path.write_text(
        "# @package _global_\n"
        f"# simulate: {choices['policy']} tuned for {config.tuning.metric} by andes-opt tune\n"
        + OmegaConf.to_yaml(OmegaConf.create({"defaults": groups, **nested})),
        encoding="utf-8",
    )


def _report(
    config: DictConfig, bench: Bench, where: Sequence[Place], best: FrozenTrial
) -> pl.DataFrame:
    """Return rows of untuned, tuned and the baselines on the seeds of the report."""
    arms = {UNTUNED: config, TUNED: changed(config, best.params)}
    for name in config.tuning.baselines:
        arms[name] = config.copy()
        arms[name].policy = load_choice("policy", name)
    found = []
    for arm, arm_config in arms.items():
        for place, seed, measurements in bench.numbers(arm_config, where):
            shown = config.copy()
            if place.rate is not None:
                shown.workload.rate = place.rate
            label = {
                **run_columns(shown, HydraConfig.get(), engine=place.engine),
                "seed": seed,
                "variant": place.engine,
                "arm": arm,
            }
            if arm not in (UNTUNED, TUNED):
                label |= {"policy": arm, "solver": None, "objective": None}
            found.append((label, measurements))
    return as_rows(found)


def _overall(rows: pl.DataFrame, metric: str) -> dict[str, float]:
    """Return the mean of the metric over the report, by arm."""
    means = rows.filter(pl.col("metric") == metric).group_by("arm").agg(pl.col("number").mean())
    return {f"{arm}_{metric}": float(mean) for arm, mean in means.iter_rows()}


def _text(
    best: FrozenTrial,
    trials: int,
    importances: Mapping[str, float],
    table: pl.DataFrame,
    gains: pl.DataFrame,
    config: DictConfig,
    folder: Path,
) -> str:
    options = pl.DataFrame(
        [
            {
                "option": option,
                "untuned": str(OmegaConf.select(config, option)),
                "tuned": f"{value:.4g}" if isinstance(value, float) else str(value),
                "importance": importances.get(option),
            }
            for option, value in best.params.items()
        ],
        schema={"option": pl.String, "untuned": pl.String, "tuned": pl.String}
        | {"importance": pl.Float64},
    )
    numbers = dict.fromkeys(table.columns[3:], 3)
    place = shlex.quote(str(printable(folder)))
    difference = gains.select("variant", "at", "metric", "mean", "half_width", "seeds")
    return "\n\n".join(
        [
            f"Best of {trials} trials: number {best.number}.",
            markdown(options, {"importance": 2}),
            "On seeds that the search has not seen, means:",
            markdown(table, numbers),
            f"{TUNED} less {UNTUNED}, paired over seeds, with the 95 % interval's half-width:",
            markdown(difference, {"mean": 4, "half_width": 4}),
            f"andes-opt simulate --config-dir {place} experiment=tuned",
        ]
    )
