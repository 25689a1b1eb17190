"""The points of a study, variants under arms, and the results of their simulations."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import OmegaConf

from experiments.analysis.statistics import as_rows
from experiments.configuration.compose import build, load_choice
from experiments.configuration.errors import UsageError
from experiments.runs.cells import Cell, finish, processes_of
from experiments.runs.run_columns import run_columns
from experiments.studies.measurements import read_back
from experiments.studies.settings import (
    ARM_GROUPS,
    VARIANT_GROUPS,
    patched,
    settings_of,
    shrink_point,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import polars as pl
    from hydra.conf import HydraConf
    from omegaconf import DictConfig


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """
    A variant under an arm.

    Parameters
    ----------
    variant, arm
        Their names.
    config
        The configuration they make.
    columns
        Values of ``columns.RUN_COLUMNS``, rate and seed aside.
    """

    variant: str
    arm: str
    config: DictConfig
    columns: Mapping[str, Any]

    @property
    def run(self) -> dict[str, Any]:
        """Return what a cell needs: plain nodes, without rate (a cell's own) and seed."""
        return plain_run(self.config)

    def label(self, rate: float | None, seed: int, load: float | None = None) -> dict[str, Any]:
        """Return what rows of one simulation begin with."""
        return {
            **self.columns,
            "rate": rate,
            "seed": seed,
            "variant": self.variant,
            "arm": self.arm,
            "relative_load": load,
        }


def plain_run(config: DictConfig) -> dict[str, Any]:
    """Return what a simulation depends on: plain nodes, without rate and seed."""
    plain = cast(
        "dict[str, Any]",
        {
            name: OmegaConf.to_container(config[name], resolve=True)
            for name in ("workload", "engine", "policy")
        },
    )
    plain["workload"] = {**plain["workload"], "rate": None}
    return {**plain, "solver_time": config.solver_time, "oracle": config.oracle}


def point_config(
    config: DictConfig,
    settings: Mapping[str, Any],
    variant: str,
    arm: str,
    replaced: dict[str, Any],
    choose: Callable[[str, str], DictConfig],
) -> DictConfig:
    """
    Return the configuration of a variant under an arm.

    Parameters
    ----------
    config
        The study's.
    settings
        Name -> settings, of the study.
    variant, arm
        Their names.
    replaced
        Group -> name of the file in use; brought up to date.
    choose
        Gives a group's file.

    Raises
    ------
    UsageError
        If one of the names is unknown, or settings name no option.
    """
    for name, known in ((variant, VARIANT_GROUPS), (arm, ARM_GROUPS)):
        config = patched(config, settings_of(name, settings, known), replaced, choose)
    return config


@dataclass(slots=True)
class StudyRunner:
    """
    Makes a study's points, and works on their cells.

    Parameters
    ----------
    config
        The run's configuration, as :func:`prepared` leaves it.
    hydra_config
        Hydra's part of it.

    Attributes
    ----------
    computed, reused, seconds
        Cells so far, and what computing them took (see :class:`experiments.runs.cells.Done`).
    """

    config: DictConfig
    hydra_config: HydraConf
    computed: int = 0
    reused: int = 0
    seconds: float = 0.0
    _points: dict[tuple[str, str], Point] = field(default_factory=dict)
    _choices: dict[tuple[str, str], DictConfig] = field(default_factory=dict)

    @property
    def seeds(self) -> list[int]:
        """Return the seeds of the study, the same for every arm."""
        return list(range(self.config.seed, self.config.seed + self.config.study.seeds))

    @property
    def processes(self) -> int:
        """Return how many cells are worked on at a time."""
        return processes_of(self.hydra_config)

    def results(self, cells: Sequence[Cell], description: str) -> list[Any]:
        """Return the results of cells, in their order."""
        folder = Path(self.config.study.cells)
        done = finish(cells, folder, processes=self.processes, description=description)
        self.computed += done.computed
        self.reused += done.reused
        self.seconds += done.seconds
        return done.results

    def rows(self, cells: Sequence[Cell], description: str) -> pl.DataFrame:
        """Return measurements of cells as rows, under the cells' labels."""
        results = self.results(cells, description)
        return as_rows(
            (cell.label, read_back(found)) for cell, found in zip(cells, results, strict=True)
        )

    def point(self, variant: str, arm: str) -> Point:
        """
        Return a variant under an arm.

        Raises
        ------
        UsageError
            If one of the names is unknown, or settings name no option.
        """
        key = variant, arm
        if key not in self._points:
            study, replaced = self.config.study, dict(self.hydra_config.runtime.choices)
            config = point_config(self.config, study.settings, variant, arm, replaced, self.choose)
            if study.tiny:
                shrink_point(config)
            for node in ("workload", "engine", "policy"):
                build(config, node)  # complains in a sentence now, not in a cell later
            columns = run_columns(config, self.hydra_config, **replaced)
            self._points[key] = Point(variant, arm, config, columns)
        return self._points[key]

    def choose(self, group: str, name: str) -> DictConfig:
        """Return a group's file, read once."""
        # Hydra takes a tenth of a second for each file.
        key = group, name
        if key not in self._choices:
            self._choices[key] = load_choice(group, name)
        return self._choices[key]

    def capacities(self, points: Sequence[Point]) -> dict[tuple[str, str], dict[str, list[float]]]:
        """
        Return the capacity of each point for each seed.

        Returns
        -------
        dict
            (variant, arm) -> numbers of ``measurements.capacity`` over seeds.
        """
        search = self.config.study.capacity
        cells = [
            Cell(
                "experiments.studies.measurements:capacity",
                {
                    "run": point.run,
                    "seed": seed,
                    "threshold": search.threshold,
                    "start": search.start,
                    "tolerance": search.tolerance,
                    "highest": search.highest,
                },
                point.label(None, seed),
            )
            for point in points
            for seed in self.seeds
        ]
        found: dict[tuple[str, str], dict[str, list[float]]] = {}
        for cell, result in zip(cells, self.results(cells, "capacity"), strict=True):
            of_point = found.setdefault((cell.label["variant"], cell.label["arm"]), {})
            for one in read_back(result):
                assert one.value is not None  # rates and counts are finite
                of_point.setdefault(one.metric, []).append(one.value)
        return found

    def rates(self, variants: Iterable[str]) -> dict[str, list[tuple[float, float | None]]]:
        """
        Return the rates of each variant, with the load that each is.

        ``study.rates`` are taken as they are; ``study.loads`` are multiples of the capacity of
        ``study.loads_of`` (mean over seeds) on that variant.

        Raises
        ------
        UsageError
            If not one of the two is given, or a capacity is 0.
        """
        study, variants = self.config.study, list(variants)
        if (study.rates is None) == (study.loads is None):
            raise UsageError("study.rates and study.loads: give one of them, null for the other.")
        if study.rates is not None:
            return {name: [(float(rate), None) for rate in study.rates] for name in variants}
        found = self.capacities([self.point(name, study.loads_of) for name in variants])
        rates: dict[str, list[tuple[float, float | None]]] = {}
        for name in variants:
            values = found[name, study.loads_of]["capacity_area"]
            capacity = sum(values) / len(values)
            if capacity == 0:
                raise UsageError(f"{study.loads_of} has no capacity on {name}, so no load either.")
            if max(values) >= study.capacity.highest and not study.tiny:
                raise UsageError(
                    f"{study.loads_of} serves study.capacity.highest={study.capacity.highest:g} "
                    f"requests/s on {name}, so that load 1 is unknown: raise workload.requests."
                )
            rates[name] = [(float(f"{load * capacity:.4g}"), float(load)) for load in study.loads]
        return rates
