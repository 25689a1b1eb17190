"""
``andes-opt study paper_*``: one question, a grid of simulations, a document.

A study crosses *variants* (engine, workload, readers) with *arms* (policies and their options),
request rates and seeds. Arms meet the same requests, so that differences are paired. Cells are
kept by :mod:`experiments.runs.cells`; the tables and figures that answer are the ``views`` of the
experiment's file (:mod:`experiments.studies.views`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig

from andes_opt.checks import whole
from experiments.analysis.statistics import as_rows
from experiments.configuration.errors import not_understood
from experiments.configuration.experiment import documents_folder, study_command
from experiments.runs.cells import Cell
from experiments.runs.files import listed
from experiments.runs.records import recorded_run
from experiments.studies import document
from experiments.studies.effects import check_options
from experiments.studies.measurements import Measurement, read_back, with_rate
from experiments.studies.points import StudyRunner
from experiments.studies.settings import prepared

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import polars as pl
    from omegaconf import DictConfig


def served_rows(runner: StudyRunner) -> pl.DataFrame:
    """Return rows of every variant, arm, rate and seed, simulated once each."""
    return runner.rows(_crossed(runner, "served", {}), "simulating")


def capacity_rows(runner: StudyRunner) -> pl.DataFrame:
    """Return the capacity of every variant, arm and seed as rows."""
    study = runner.config.study
    points = [runner.point(variant, arm) for variant in study.variants for arm in study.arms]
    found = runner.capacities(points)
    return as_rows(
        (
            point.label(None, seed),
            [Measurement(metric, "", values[k]) for metric, values in metrics.items()],
        )
        for point in points
        for metrics in (found[point.variant, point.arm],)
        for k, seed in enumerate(runner.seeds)
    )


def jitter_rows(runner: StudyRunner) -> pl.DataFrame:
    """Return rows of every variant, arm, rate and seed, under several network jitters."""
    jitters_s = [float(jitter_s) for jitter_s in runner.config.study.jitters_s]
    cells = _crossed(runner, "jittered", {"jitters_s": jitters_s})
    results = runner.results(cells, "simulating")
    return as_rows(
        (_received(cell.label, seen), read_back(seen["measurements"]))
        for cell, receptions in zip(cells, results, strict=True)
        for seen in receptions
    )


def _received(label: Mapping[str, Any], seen: Mapping[str, Any]) -> dict[str, Any]:
    """The label of what was seen of a simulation through a network."""
    arm = f"{label['arm']} + buffer" if seen["buffered"] else label["arm"]
    return {**label, "jitter_s": seen["jitter_s"], "arm": arm}


def _crossed(runner: StudyRunner, work: str, options: Mapping[str, Any]) -> list[Cell]:
    """A cell of a function of ``measurements`` for every variant, arm, rate and seed."""
    study = runner.config.study
    rates = runner.rates(study.variants)
    return [
        Cell(
            f"experiments.studies.measurements:{work}",
            {"run": with_rate(point.run, rate), "seed": seed, **options},
            point.label(rate, seed, load),
        )
        for variant in study.variants
        for arm in study.arms
        for point in (runner.point(variant, arm),)
        for rate, load in rates[variant]
        for seed in runner.seeds
    ]


def run(
    config: DictConfig, kinds: Mapping[str, Callable[[StudyRunner], pl.DataFrame]]
) -> dict[str, float]:
    """
    Work on what is missing, write rows, tables, document and figures, and return the summary.

    Parameters
    ----------
    config
        With node ``study``.
    kinds
        How rows come about, by ``study.kind``.

    Raises
    ------
    UsageError
        If the kind is none of these, or an option is out of range.
    """
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    with recorded_run(folder) as record:
        if config.study.kind not in kinds:
            raise not_understood("study.kind", config.study.kind, kinds)
        whole("study.seeds", config.study.seeds, 1)
        document.views_of(config)  # an hour later would be late to complain
        runner = StudyRunner(prepared(config), hydra_config)
        check_options(config, hydra_config, runner.choose)
        rows = kinds[config.study.kind](runner)
        record.keep(rows)
        facts = document.StudyFacts(
            name=str(hydra_config.runtime.choices["experiment"]),
            command=study_command(hydra_config),
            environment=record.environment,
            config=runner.config,
            computed=runner.computed,
            reused=runner.reused,
            cell_seconds=runner.seconds,
        )
        docs = documents_folder(hydra_config, "study", config.study.docs)
        text, published = document.write(rows, facts, folder, docs)
        summary = {
            "cells": runner.computed + runner.reused,
            "computed": runner.computed,
            "reused": runner.reused,
            "cells_s": runner.seconds,
            **document.summary(rows, runner.config.study.baseline),
        }
        record.finish(None, summary)
    print(f"{text}\n\n{listed(folder, published)}")
    return summary
