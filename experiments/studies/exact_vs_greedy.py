"""
``andes-opt study exact_vs_greedy``: where does exact solving matter?

Over a map of regimes (engine, KV tokens, forecast horizon, load) the same requests are served
by Andes with the greedy and with the exact solver. In the exact runs every so many steps the
greedy solver is given the same snapshot too, which gives the gap of a single step; the runs'
QoE gives the difference end to end. In some regimes solves are charged to the simulated clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from omegaconf import open_dict

from experiments.analysis.statistics import as_rows
from experiments.runs.cells import Cell
from experiments.studies import measurements

if TYPE_CHECKING:
    import polars as pl

    from experiments.studies.study import Lab

GREEDY, EXACT = "andes", "andes_exact"


@dataclass(frozen=True, slots=True)
class Regime:
    """
    One engine under one forecast horizon.

    Parameters
    ----------
    engine
        Name in ``conf/engine``.
    capacity_tokens
        KV tokens it has.
    dt_s
        Horizon of the forecast.
    """

    engine: str
    capacity_tokens: int
    dt_s: float

    @property
    def name(self) -> str:
        """How rows name it as a variant."""
        return f"{self.engine}, {self.capacity_tokens} KV tokens, dt {self.dt_s:g} s"

    @property
    def settings(self) -> dict[str, Any]:
        """What it changes of a configuration."""
        return {
            "engine": self.engine,
            "engine.capacity_tokens": self.capacity_tokens,
            "objective.dt_s": self.dt_s,
        }


def regime_of(variant: str) -> Regime:
    """The regime that a name stands for."""
    engine, capacity, dt = variant.split(", ")
    return Regime(engine, int(capacity.split()[0]), float(dt.split()[1]))


def rows(lab: Lab) -> pl.DataFrame:
    """
    Rows of the whole map, and of the regimes in which solves are charged.

    Parameters
    ----------
    lab
        With ``study.regimes`` (engines, capacity_tokens, dt_s), ``study.loads``,
        ``study.charged`` (dt_s, loads, solve_s) and ``study.sample_every``.
    """
    study = lab.config.study
    axes = study.regimes
    regimes = [Regime(*point) for point in product(axes.engines, axes.capacity_tokens, axes.dt_s)]
    with open_dict(study):
        study.settings = {
            **study.settings,
            **{regime.name: regime.settings for regime in regimes},
        }
    rates = lab.rates(regime.name for regime in regimes)

    cells = []
    for regime, seed in product(regimes, lab.seeds):
        greedy, exact = (lab.point(regime.name, arm) for arm in (GREEDY, EXACT))
        for rate, load in rates[regime.name]:
            run = measurements.with_rate(greedy.run, rate)
            label = {**greedy.label(rate, seed, load), "charged_solve_s": 0.0}
            cells.append(
                Cell("experiments.studies.measurements:served", {"run": run, "seed": seed}, label)
            )
            options = {
                "run": measurements.with_rate(exact.run, rate),
                "seed": seed,
                "other": greedy.run["policy"]["solver"],
                "every": study.sample_every,
            }
            label = {**exact.label(rate, seed, load), "charged_solve_s": 0.0}
            cells.append(
                Cell("experiments.studies.exact_vs_greedy_measurements:stepped", options, label)
            )
            if regime.dt_s in study.charged.dt_s and load in study.charged.loads:
                cells += _charged(lab, regime, rate, load, seed)
    results = lab.results(cells, "exact and greedy")
    return as_rows((cell.label, found) for cell, found in zip(cells, results, strict=True))


def _charged(lab: Lab, regime: Regime, rate: float, load: float | None, seed: int) -> list[Cell]:
    """Runs whose solves cost simulated time: measured for both solvers, fixed for the exact one."""
    cells = []
    times = [(EXACT, float(seconds)) for seconds in lab.config.study.charged.solve_s]
    for arm, seconds in [(GREEDY, None), (EXACT, None), *times]:
        point = lab.point(regime.name, arm)
        run = measurements.with_rate(point.run, rate)
        run["solver_time"] = "measured" if seconds is None else seconds
        label = point.label(rate, seed, load) | {"charged_solve_s": seconds}
        label["arm"] = f"{arm}, measured" if seconds is None else f"{arm}, {1000 * seconds:g} ms"
        cells.append(
            Cell("experiments.studies.measurements:served", {"run": run, "seed": seed}, label)
        )
    return cells
