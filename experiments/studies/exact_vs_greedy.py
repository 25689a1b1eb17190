"""
``andes-opt study exact_vs_greedy``: where does exact solving matter?

Over a map of regimes (engine, KV tokens, forecast horizon, load) the same requests are served
by Andes with the greedy and with the exact solver. In the exact runs every so many steps the
greedy solver is given the same snapshot too, which gives the gap of a single step; the runs'
QoE gives the difference end to end. In some regimes solves are charged to the simulated clock.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

from experiments.runs.cells import Cell
from experiments.studies import measurements
from experiments.studies.settings import Regime, regimes

if TYPE_CHECKING:
    import polars as pl

    from experiments.studies.points import Point, StudyRunner

GREEDY, EXACT = "andes", "andes_exact"


def regimes_of(rows: pl.DataFrame) -> dict[str, Regime]:
    """Return the regime that each variant of the rows is."""
    found = rows.select("variant", "engine", "capacity_tokens", "dt_s").unique(maintain_order=True)
    return {variant: Regime(*rest) for variant, *rest in found.iter_rows()}


def charged_arm(arm: str, solve_s: float | None) -> str:
    """Return the name of an arm whose solves take simulated time; None for what they take here."""
    return f"{arm}, measured" if solve_s is None else f"{arm}, {1000 * solve_s:g} ms"


def rows(runner: StudyRunner) -> pl.DataFrame:
    """
    Return rows of the whole map, and of the regimes in which solves are charged.

    Parameters
    ----------
    runner
        With ``study.regimes`` (engines, capacity_tokens, dt_s), ``study.loads``,
        ``study.charged`` (dt_s, loads, solve_s) and ``study.sample_every``.
    """
    study = runner.config.study
    rates = runner.rates(study.variants)

    cells: list[Cell] = []
    for regime, seed in product(regimes(study), runner.seeds):
        for rate, load in rates[regime.name]:
            cells += _free(runner, regime, rate, load, seed)
            if regime.dt_s in study.charged.dt_s and load in study.charged.loads:
                cells += _charged(runner, regime, rate, load, seed)
    return runner.rows(cells, "exact and greedy")


def _free(
    runner: StudyRunner, regime: Regime, rate: float, load: float | None, seed: int
) -> list[Cell]:
    """Runs whose solves cost nothing; the exact one's steps are given to the greedy solver too."""
    greedy, exact = (runner.point(regime.name, arm) for arm in (GREEDY, EXACT))
    options = {
        "run": measurements.with_rate(exact.run, rate),
        "seed": seed,
        "other": greedy.run["policy"]["solver"],
        "every": runner.config.study.sample_every,
    }
    stepped = "experiments.studies.exact_vs_greedy_measurements:stepped"
    return [
        Cell(
            "experiments.studies.measurements:served",
            {"run": measurements.with_rate(greedy.run, rate), "seed": seed},
            _label(regime, greedy, rate, load, seed, 0.0),
        ),
        Cell(stepped, options, _label(regime, exact, rate, load, seed, 0.0)),
    ]


def _charged(
    runner: StudyRunner, regime: Regime, rate: float, load: float | None, seed: int
) -> list[Cell]:
    """Runs whose solves cost simulated time: measured for both solvers, fixed for the exact one."""
    cells = []
    times = [(EXACT, float(seconds)) for seconds in runner.config.study.charged.solve_s]
    for arm, seconds in [(GREEDY, None), (EXACT, None), *times]:
        point = runner.point(regime.name, arm)
        run = measurements.with_rate(point.run, rate)
        run["solver_time"] = "measured" if seconds is None else seconds
        label = _label(regime, point, rate, load, seed, seconds)
        label["arm"] = charged_arm(arm, seconds)
        cells.append(
            Cell("experiments.studies.measurements:served", {"run": run, "seed": seed}, label)
        )
    return cells


def _label(
    regime: Regime, point: Point, rate: float, load: float | None, seed: int, solve_s: float | None
) -> dict[str, Any]:
    return {
        **point.label(rate, seed, load),
        "engine": regime.engine,
        "capacity_tokens": regime.capacity_tokens,
        "dt_s": regime.dt_s,
        "charged_solve_s": solve_s,
    }
