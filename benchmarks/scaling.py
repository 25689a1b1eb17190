"""
What sweeps and long traces cost: the measured blocks of ``docs/scaling.md``.

``python -m benchmarks.scaling runs`` times sweeps on this machine's launchers, ``... trace``
long traces replayed from a file, and ``... outlook`` computes what larger machines would take
from what ``runs`` measures. ``--requests`` makes all of it smaller.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import polars as pl

from andes_opt.metrics import summarise
from andes_opt.simulator import simulate
from benchmarks.machine import headline
from experiments.analysis.markdown import markdown
from experiments.configuration.compose import build, load

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Requests a second that every policy sustains on the default engine for as long as it takes.
RATE = 2.0
#: Launchers that are timed, and the module that each needs.
LAUNCHERS = {
    "basic": None,
    "joblib": None,
    "submitit_local": "hydra_plugins.hydra_submitit_launcher",
    "ray_cluster": "hydra_plugins.hydra_ray_launcher",
}
FEW, MANY = 4, 12
#: Times that each length is run.
ROUNDS = 3
CORES = (1, 10, 100, 1000)
#: Runs of a large study: 10 policies, 10 rates, 5 engines, 20 seeds.
STUDY_RUNS = 10_000
#: Overload, where a run costs most: Andes with the exact solver solves at nearly every step.
RUN = ("policy=andes", "solver=exact", "workload.rate=6.0")


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of a sweep: on the clock, and of processors, child processes included."""

    wall_s: float
    cpu_s: float


def sweep(launcher: str, runs: int, requests: int) -> Cost:
    """
    Time a sweep in a process of its own.

    Parameters
    ----------
    launcher
        Value of ``hydra/launcher``.
    runs
        How many seeds.
    requests
        Requests of each run.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "experiments.cli", "simulate", "--multirun"),
            *(f"hydra/launcher={launcher}", f"seed=range({runs})", f"hydra.sweep.dir={folder}"),
            *(f"workload.requests={requests}", *RUN),
        ]
        before, started = _children(), time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        wall_s = time.perf_counter() - started
        spent = _children() - before
        if not spent or len(list(Path(folder).glob("*/summary.json"))) != runs:
            raise RuntimeError(f"the sweep on {launcher} is not complete")
    return Cost(wall_s, spent)


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@dataclass(frozen=True, slots=True)
class Fit:
    """A sweep's seconds as a line: those of starting, and those of each run."""

    start: Cost
    run: Cost


def fitted(launcher: str, requests: int) -> Fit:
    """The line through short and longer sweeps, alternated: through the medians of each length."""
    sweep(launcher, 1, requests)  # Compiles, if nothing has yet, and is not counted.
    rounds = [[sweep(launcher, runs, requests) for runs in (FEW, MANY)] for _ in range(ROUNDS)]
    few, many = (_middle(costs) for costs in zip(*rounds, strict=True))
    run = Cost((many.wall_s - few.wall_s) / (MANY - FEW), (many.cpu_s - few.cpu_s) / (MANY - FEW))
    start = Cost(few.wall_s - FEW * run.wall_s, few.cpu_s - FEW * run.cpu_s)
    return Fit(start, run)


def _middle(costs: Sequence[Cost]) -> Cost:
    return Cost(median(cost.wall_s for cost in costs), median(cost.cpu_s for cost in costs))


def runs_table(requests: int) -> pl.DataFrame:
    """Measured: what starting costs and what each run costs, by launcher."""
    lines = []
    for launcher, module in LAUNCHERS.items():
        if module is not None and find_spec(module.partition(".")[0]) is None:
            continue
        if module is not None and find_spec(module) is None:
            continue
        fit = fitted(launcher, requests)
        lines.append(
            {
                "hydra/launcher": launcher,
                "start, s": fit.start.wall_s,
                "a run, s": fit.run.wall_s,
                # Ray's workers are no children of the sweep's process.
                "a run, CPU s": None if launcher == "ray_cluster" else fit.run.cpu_s,
                "runs/hour": 3600 / fit.run.wall_s,
            }
        )
    return pl.DataFrame(lines)


def outlook_table(requests: int) -> pl.DataFrame:
    """Extrapolated: a large study on more cores, from this machine's CPU seconds of a run."""
    # What a process does before its first run, and what a run costs in one that is warm.
    fit = fitted("basic", requests)
    lines = []
    for cores in CORES:
        warm = STUDY_RUNS * fit.run.cpu_s / cores
        # A Slurm task is a new process for each run; Ray and joblib keep theirs.
        cold = STUDY_RUNS * (fit.run.cpu_s + fit.start.cpu_s) / cores
        lines.append(
            {
                "cores": cores,
                "joblib or ray_cluster, min": (warm + fit.start.cpu_s) / 60,
                "slurm, min": cold / 60,
            }
        )
    return pl.DataFrame(lines)


def trace_line(requests: int, overrides: Sequence[str]) -> dict[str, float]:
    """
    Replay a trace of some length from its CSV file; what this process used for it.

    Called in a process of its own, since its largest memory is that process's.
    """
    drawn_from = load("simulate", [f"workload.requests={requests}", f"workload.rate={RATE}"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.csv"
        drawn = build(drawn_from, "workload").generate(0)
        pl.DataFrame(
            {
                "arrival_s": drawn.arrival_s,
                "prompt_tokens": drawn.prompt_tokens,
                "output_tokens": drawn.output_tokens,
            }
        ).write_csv(path)
        config = load("simulate", ["workload=trace", f"workload.path={path}", *overrides])
        replayed = build(config, "workload").generate(0)
    engine = build(config, "engine")
    warm = build(load("simulate", ["workload.requests=50", f"workload.rate={RATE}"]), "workload")
    simulate(warm.generate(1), engine, build(config, "policy"))
    before = _largest_mb()
    started = time.process_time()
    result = simulate(replayed, engine, build(config, "policy"))
    cpu_s = time.process_time() - started
    summary = summarise(result)
    return {
        "requests": requests,
        "simulated h": float(replayed.arrival_s[-1]) / 3600,
        "iterations": summary["iterations"],
        "CPU s": cpu_s,
        "us/request": 1e6 * cpu_s / requests,
        "MB more": _largest_mb() - before,
        "window QoE": summary["qoe_window_mean"],
    }


def _largest_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def trace_table(requests: int) -> pl.DataFrame:
    """Measured: traces of growing length, under FCFS and under Andes with the exact solver."""
    lines = []
    for name, overrides in (("fcfs", ["policy=fcfs"]), ("andes (exact)", ["policy=andes"])):
        for length in (requests // 10, requests // 4, requests // 2, requests):
            command = ["-m", "benchmarks.scaling", "line", f"--requests={length}", *overrides]
            done = subprocess.run(
                [sys.executable, *command], check=True, capture_output=True, text=True
            )
            lines.append({"policy": name, **json.loads(done.stdout)})
    return pl.DataFrame(lines)


def main(words: Sequence[str]) -> None:
    """Print one block."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("block", choices=("runs", "trace", "outlook", "line"))
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--requests", type=int, help="default: 1,000 a run, 100,000 for traces")
    chosen = parser.parse_intermixed_args(words)
    if chosen.block == "line":
        print(json.dumps(trace_line(chosen.requests, chosen.overrides)))
        return
    if chosen.block == "trace":
        requests = chosen.requests or 100_000
        table = trace_table(requests)
        decimals = {"simulated h": 1, "iterations": 0, "CPU s": 2, "us/request": 0}
        print(markdown(table, {**decimals, "MB more": 1, "window QoE": 3}))
    else:
        requests = chosen.requests or 1000
        table = runs_table(requests) if chosen.block == "runs" else outlook_table(requests)
        print(markdown(table, dict.fromkeys(table.columns[1:], 2) | {"runs/hour": 0}))
    kind = "Extrapolated from a measurement" if chosen.block == "outlook" else "Measured"
    print(f"\n{kind} with {requests} requests; {headline()}")


if __name__ == "__main__":
    from experiments.configuration.threads import limit_threads

    limit_threads()
    main(sys.argv[1:])
