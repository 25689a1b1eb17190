"""
``andes-opt study hindsight``: policies, the bound and the gap, by load.

A study (:mod:`experiments.studies.study`) in which the bound is one more arm: what no scheduler
exceeds on the same requests. Its simulations are cells that other studies share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from experiments.analysis.statistics import as_rows
from experiments.runs.cells import Cell
from experiments.studies import study
from experiments.studies.measurements import read_back, with_rate
from experiments.studies.settings import TINY

if TYPE_CHECKING:
    from experiments.studies.points import StudyRunner

#: The arm that stands for the best of all schedulers.
BOUND = "bound"


def rows_of(runner: StudyRunner) -> pl.DataFrame:
    """
    Return rows of the policies, of the bound at the same points, and of tiny instances.

    Parameters
    ----------
    runner
        With ``study.loads`` or ``study.rates``, ``study.exhaustive`` (preemption, instances)
        and ``bound`` (slot_s, cells).
    """
    policies = study.served_rows(runner)
    rows = policies.vstack(_bound_rows(runner, policies))
    options = runner.config.study
    arms, variants = [*options.arms, BOUND], list(options.variants)
    # By load, so that policies and their bound stand together.
    ranks = (
        pl.col("variant").replace_strict(variants, range(len(variants))),
        pl.col("rate"),
        pl.col("arm").replace_strict(arms, range(len(arms))),
    )
    return rows.sort(*ranks, maintain_order=True).vstack(_exhaustive_rows(runner))


def _bound_rows(runner: StudyRunner, policies: pl.DataFrame) -> pl.DataFrame:
    places = policies.select("variant", "rate", "relative_load", "seed").unique(maintain_order=True)
    options = {"slot_s": float(runner.config.bound.slot_s), "cells": int(runner.config.bound.cells)}
    cells = []
    for variant, rate, load, seed in places.iter_rows():
        point = runner.point(variant, runner.config.study.baseline)
        nodes = with_rate(point.run, rate)
        world = {name: nodes[name] for name in ("workload", "engine")}
        # No policy, no solver: the bound is about all of them.
        label = point.label(rate, seed, load) | {
            "arm": BOUND,
            "policy": None,
            "solver": None,
            "objective": None,
        }
        work = "experiments.studies.hindsight_measurements:bounded"
        cells.append(Cell(work, {"run": world, "seed": seed, **options}, label))
    return runner.rows(cells, "bounding")


def _exhaustive_rows(runner: StudyRunner) -> pl.DataFrame:
    asked = runner.config.study.exhaustive
    instances = min(asked.instances, TINY["seeds"]) if runner.config.study.tiny else asked.instances
    cells = [
        Cell(
            "experiments.studies.hindsight_measurements:exhausted",
            {
                "preemption": preemption,
                "instances": int(instances),
                "cells": int(runner.config.bound.cells),
            },
            {"command": "study", "variant": f"tiny, {preemption}", "arm": BOUND},
        )
        for preemption in asked.preemption
    ]
    results = runner.results(cells, "trying all schedules")
    return as_rows(
        ({**cell.label, "seed": instance["seed"]}, read_back(instance["measurements"]))
        for cell, instances in zip(cells, results, strict=True)
        for instance in instances
    )
