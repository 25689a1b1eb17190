"""``andes-opt quality``: solvers on the same instances; one row per instance and solver."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig

from andes_opt.checks import non_negative, whole
from experiments.analysis import figures
from experiments.analysis.markdown import markdown
from experiments.configuration.overrides import refuse_unread
from experiments.runs.files import write_atomically
from experiments.runs.progress import jit_seconds
from experiments.runs.records import recorded_run
from experiments.runs.resume import resumable, said
from experiments.solver_comparison import instances
from experiments.solver_comparison.compare import (
    TABLE_DECIMALS,
    as_rows,
    build_solvers,
    compare,
    contradictions,
    first_failure,
    summarise,
    table,
    with_references,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars as pl
    from omegaconf import DictConfig


def _unread(config: DictConfig) -> dict[str, str]:
    """Return options that have no effect, given where instances come from, and why."""
    simulated = ["workload", "engine", "policy", "solver", "objective", "lengths", "readers"]
    if config.corpus is not None:
        names, why = [*simulated, "sizes", "count", "capture"], "the corpus has the instances"
    elif config.families:
        names, why = [*simulated, "capture"], "families=[...] generates the instances"
    else:
        names, why = ["sizes", "count"], "they are of families=[...]; capture=N keeps so many"
    return dict.fromkeys(names, why)


@resumable
def run(config: DictConfig) -> dict[str, float]:
    """Collect instances, compare the solvers, write the run's files, return its summary."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    with recorded_run(folder) as record:
        whole("repeats", config.repeats, 1)
        if config.time_limit_s is not None:
            non_negative("time_limit_s", config.time_limit_s)
        refuse_unread(HydraConfig.get().overrides.task, _unread(config))
        solvers = build_solvers(config.solvers, config.options)
        with jit_seconds() as jit:
            problems = instances.collect(config)
            so_far: list[dict[str, Any]] = []
            with record.keeping(lambda: _rows(with_references(so_far), config) if so_far else None):
                answers = compare(
                    problems,
                    solvers,
                    time_limit_s=config.time_limit_s,
                    repeats=config.repeats,
                    so_far=so_far,
                )
        rows = _rows(answers, config)
        shown = table(rows)
        with said(markdown(shown, TABLE_DECIMALS), folder):
            record.keep(rows)
            write_atomically(folder / "table.csv", shown.write_csv)
            if (count := contradictions(answers)) > 0:
                raise RuntimeError(f"{count} plans beat a bound called proven.")
            summary = {
                "instances": len(problems),
                "contradictions": 0,
                "jit_s": jit.value,
                **summarise(rows),
            }
            record.finish(None, summary)
    picture = folder / "gap_vs_time.png"
    figures.drawn(picture, lambda: figures.gap_against_time(rows, picture))
    if failure := first_failure(answers):
        print(failure, file=sys.stderr)
    return summary


def _rows(answers: Sequence[Mapping[str, Any]], config: DictConfig) -> pl.DataFrame:
    hydra_config = HydraConfig.get()
    return as_rows(
        answers,
        command=hydra_config.job.name,
        seed=config.seed,
        overrides=shlex.join(hydra_config.overrides.task),
    )
