"""``andes-opt demo``: the main job in small, with the functions of the other commands."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
from hydra.core.hydra_config import HydraConfig

from andes_opt.metrics import summarise
from experiments.analysis import figures
from experiments.analysis.markdown import markdown
from experiments.configuration.compose import load_choice
from experiments.configuration.errors import UsageError
from experiments.configuration.overrides import refuse_unread
from experiments.runs.files import listed, write_atomically
from experiments.runs.progress import jit_seconds
from experiments.runs.records import recorded_run
from experiments.runs.resume import resumable
from experiments.runs.run_columns import run_columns
from experiments.runs.simulation import request_rows, run_simulation
from experiments.solver_comparison import compare, instances

if TYPE_CHECKING:
    from omegaconf import DictConfig

#: Columns of the QoE table: metric of ``andes_opt.metrics`` -> heading.
_QOE_TABLE = {
    "qoe_area_mean": "area",
    "qoe_delay_mean": "delay",
    "qoe_window_mean": "window",
    "qoe_window_share_0": "window = 0",
    "ttft_p50_s": "TTFT p50 s",
    "ttft_p90_s": "TTFT p90 s",
    "ttft_p99_s": "TTFT p99 s",
    "completion_delay_max_s": "longest delay s",
    "tokens_per_s": "tokens/s",
    "preemptions_per_request": "preemptions/request",
}
_QOE_DECIMALS = {
    "rate": 1,
    "area": 3,
    "delay": 3,
    "window": 3,
    "window = 0": 3,
    "TTFT p50 s": 2,
    "TTFT p90 s": 2,
    "TTFT p99 s": 2,
    "longest delay s": 1,
    "tokens/s": 0,
    "preemptions/request": 2,
}


_UNREAD = {
    "workload.rate": "the demo compares several; use 'rates=[...]'",
    "workload.requests": "the demo sets it; use requests=...",
}


def arm_config(config: DictConfig, policy: str, solver: str | None, rate: float) -> DictConfig:
    """Return the demo's configuration with another policy, solver and rate."""
    arm = config.copy()
    arm.policy = load_choice("policy", policy)
    if solver is not None:
        arm.solver = load_choice("solver", solver)
    arm.workload.rate = rate
    arm.workload.requests = config.requests
    return arm


def compare_solvers(config: DictConfig) -> pl.DataFrame:
    """Return the rows of the solver comparison, on instances of the middle rate."""
    rate = sorted(config.rates)[len(config.rates) // 2]
    capturing = config.copy()
    capturing.workload.rate = rate
    capturing.workload.requests = config.requests
    problems = instances.captured(capturing, config.capture)
    answers = compare.compare(
        problems, compare.build_solvers(config.solvers), time_limit_s=config.time_limit_s
    )
    return compare.as_rows(answers, command="demo", rate=rate, seed=config.seed)


def compare_policies(config: DictConfig) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, float]]:
    """
    Simulate every arm at every rate.

    Returns
    -------
    tuple
        Rows per request; one line per rate and arm; flat metrics.
    """
    rows, lines = [], []
    flat: dict[str, float] = {}
    for rate in config.rates:
        for policy, solver in config.arms:
            arm = arm_config(config, policy, solver, rate)
            name = policy if solver is None else f"{policy} ({solver})"
            result = run_simulation(arm, description=f"{name} at {rate}/s")

            # A policy without a solver leaves Hydra's choice of one in the configuration.
            replaced = {"policy": policy, **({"solver": solver} if solver else {})}
            rows.append(request_rows(result, run_columns(arm, HydraConfig.get(), **replaced)))
            metrics = summarise(result)
            shown = {heading: metrics[metric] for metric, heading in _QOE_TABLE.items()}
            lines.append({"rate": rate, "policy": name, **shown})
            prefix = f"{policy}_{solver}" if solver else policy
            flat |= {f"{prefix}_at_{rate}_{metric}": metrics[metric] for metric in _QOE_TABLE}
    return pl.concat(rows), pl.DataFrame(lines), flat


@resumable
def run(config: DictConfig) -> dict[str, float]:
    """Run the demo, write its files, print its tables, and return its summary."""
    started = time.perf_counter()
    folder = Path(HydraConfig.get().runtime.output_dir)
    with recorded_run(folder) as record:
        if not config.rates or not config.arms:
            raise UsageError("rates and arms must not be empty.")
        refuse_unread(HydraConfig.get().overrides.task, _UNREAD)
        with jit_seconds() as jit:
            solver_rows = compare_solvers(config)
            solver_table = compare.table(solver_rows)
            write_atomically(folder / "solver_rows.parquet", solver_rows.write_parquet)
            write_atomically(folder / "solver_table.csv", solver_table.write_csv)
            rows, qoe_table, metrics = compare_policies(config)
        wall_s = time.perf_counter() - started
        summary = {
            "wall_s": wall_s,
            "jit_s": jit.value,
            **compare.summarise(solver_rows),
            **metrics,
        }
        try:
            record.keep(rows)
            write_atomically(folder / "qoe_table.csv", qoe_table.write_csv)
            record.finish(None, summary)
        finally:
            _print_tables(config, solver_table, qoe_table)
    gaps, curves = folder / "gap_vs_time.png", folder / "qoe_vs_rate.png"
    figures.drawn(gaps, lambda: figures.gap_against_time(solver_rows, gaps))
    figures.drawn(curves, lambda: figures.qoe_against_rate(rows, curves))
    print(f"\n{listed(folder)}")
    print(
        f"\n{wall_s:.0f} s, of which the JIT compiled for {jit.value:.0f} s "
        f"({100 * jit.value / wall_s:.0f} %)."
    )
    return summary


def _print_tables(config: DictConfig, solver_table: pl.DataFrame, qoe_table: pl.DataFrame) -> None:
    print(f"\nSolver quality: {config.capture} instances that Andes solved, {config.engine.name}\n")
    print(markdown(solver_table, compare.TABLE_DECIMALS))
    print(f"\nQoE: {config.requests} requests per row, mean over requests\n")
    print(markdown(qoe_table, _QOE_DECIMALS))
