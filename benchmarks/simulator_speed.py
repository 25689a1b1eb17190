"""
CPU time and memory of the simulator, and where the time goes.

``python -m benchmarks.simulator_speed`` writes ``docs/results/simulator_speed.md``; give
another path to write it there, and ``--requests`` for a shorter look. One process, one
thread, compiled code warm, CPU time (``time.process_time``), so that other work on the
machine disturbs little.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time
import tracemalloc
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from andes_opt.simulator import simulate
from benchmarks.machine import headline
from experiments.analysis.markdown import markdown
from experiments.configuration.compose import build, load
from experiments.runs.files import write_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from andes_opt.engine import EngineProfile
    from andes_opt.simulator import SimulationResult
    from andes_opt.snapshot import Decision, Policy, Snapshot
    from andes_opt.workload import Requests

ENGINE = "opt_66b_4xa100"
FCFS = ("policy=fcfs",)
EXACT = ("policy=andes", "solver=exact")
GREEDY = ("policy=andes", "solver=greedy")
EVERY_ITERATION = ("policy.selective=false",)

#: What is timed: its name, overrides, requests/s, and the CPU seconds that 10,000 may take.
CASES = (
    ("FCFS", FCFS, 2.8, 1.0),
    ("FCFS", FCFS, 4.06, 1.0),
    ("Andes exact, selective", EXACT, 2.8, None),
    ("Andes exact, selective", EXACT, 4.06, 10.0),
    ("Andes exact, every iteration", EXACT + EVERY_ITERATION, 4.06, 20.0),
    ("Andes greedy, selective", GREEDY, 4.06, None),
)
#: At a rate that the policy sustains, the number of active requests does not depend on n.
LINEAR_RATE = 2.8
LINEAR = (("FCFS", FCFS), ("Andes exact, every iteration", EXACT + EVERY_ITERATION))
#: Sizes over that of CASES: the last is a trace of ten hours.
LINEAR_FACTORS = (1, 2, 4, 10)


@dataclass(frozen=True, slots=True)
class Timed:
    """One simulation and the CPU seconds that it took."""

    result: SimulationResult
    cpu_s: float


def nodes(overrides: Sequence[str], rate: float, requests: int) -> tuple[Requests, EngineProfile]:
    """The requests and the engine of a case."""
    config = load(
        "simulate",
        [*overrides, f"engine={ENGINE}", f"workload.rate={rate}", f"workload.requests={requests}"],
    )
    return build(config, "workload").generate(0), build(config, "engine")


def policy(overrides: Sequence[str]) -> Policy:
    """A fresh policy object of a case."""
    made: Policy = build(load("simulate", list(overrides)), "policy")
    return made


def timed(overrides: Sequence[str], rate: float, requests: int) -> Timed:
    """Simulate with compiled code."""
    arrivals, engine = nodes(overrides, rate, requests)
    chosen = policy(overrides)
    started = time.process_time()
    result = simulate(arrivals, engine, chosen)
    return Timed(result, time.process_time() - started)


def speed(requests: int) -> str:
    """Table of the cases that have a goal."""
    lines = []
    for name, overrides, rate, goal in CASES:
        run = timed(overrides, rate, requests)
        result = run.result
        solves = result.solves
        lines.append(
            {
                "policy": name,
                "requests/s": rate,
                "iterations": result.iterations,
                "decisions": result.decisions,
                "solves": solves,
                "us/solve": f"{1e6 * result.solver_s / solves:.0f}" if solves else "-",
                "us/decision": f"{1e6 * result.decide_s / result.decisions:.0f}",
                "CPU s": f"{run.cpu_s:.2f}",
                "goal s": "-" if goal is None else f"{goal:g}",
            }
        )
    return markdown(pl.DataFrame(lines), {"requests/s": 2})


def linearity(requests: int) -> str:
    """Table of CPU time against the number of requests."""
    lines = []
    for name, overrides in LINEAR:
        for factor in LINEAR_FACTORS:
            run = timed(overrides, LINEAR_RATE, factor * requests)
            lines.append(
                {
                    "policy": name,
                    "requests": factor * requests,
                    "simulated hours": f"{run.result.makespan_s / 3600:.1f}",
                    "iterations": run.result.iterations,
                    "CPU s": f"{run.cpu_s:.2f}",
                    "us/request": f"{1e6 * run.cpu_s / (factor * requests):.0f}",
                }
            )
    return markdown(pl.DataFrame(lines), {})


def memory(requests: int) -> str:
    """Table of the largest memory in use, the requests themselves aside."""
    lines = []
    for factor in LINEAR_FACTORS[:3]:
        arrivals, engine = nodes(EXACT, LINEAR_RATE, factor * requests)
        chosen, most_active = policy(EXACT), 0

        def watch(snapshot: Snapshot, _: Decision) -> None:
            nonlocal most_active
            most_active = max(most_active, snapshot.num_requests)

        tracemalloc.start()
        result = simulate(arrivals, engine, chosen, capture=watch)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        lines.append(
            {
                "requests": factor * requests,
                "most active": most_active,
                "peak MB": f"{peak / 1e6:.2f}",
                "results MB": f"{size_of(result) / 1e6:.2f}",
                "peak bytes/request": f"{peak / (factor * requests):.0f}",
            }
        )
    return markdown(pl.DataFrame(lines), {})


def size_of(result: SimulationResult) -> int:
    """Bytes in the arrays of a result."""
    values = (getattr(result, field.name) for field in fields(result))
    return sum(value.nbytes for value in values if isinstance(value, np.ndarray))


def profile(requests: int, most: int = 14) -> str:
    """Table of the functions in which Andes exact spends its time, by their own share."""
    overrides = EXACT + EVERY_ITERATION
    arrivals, engine = nodes(overrides, 4.06, requests)
    chosen = policy(overrides)
    profiler = cProfile.Profile()
    profiler.runcall(simulate, arrivals, engine, chosen)
    statistics = pstats.Stats(profiler).get_stats_profile()
    total = statistics.total_tt
    rows = sorted(statistics.func_profiles.items(), key=lambda item: -item[1].tottime)
    lines = [
        {
            "function": name,
            "file": _place(found.file_name),
            "calls": found.ncalls,
            "own share %": f"{100 * found.tottime / total:.1f}",
            "with what it calls %": f"{100 * found.cumtime / total:.1f}",
        }
        for name, found in rows[:most]
    ]
    return markdown(pl.DataFrame(lines), {})


def document(requests: int, command: str) -> str:
    """The whole page."""
    for _, overrides, rate, _ in CASES:  # compile, or load what is compiled
        timed(overrides, rate, min(requests, 300))
    timed(GREEDY + EVERY_ITERATION, 6.0, min(requests, 300))
    pieces = [
        "# Speed of the simulator",
        f"Written by `{command}`; do not edit.",
        f"{ENGINE}, Poisson arrivals, ShareGPT lengths, {requests} requests unless a table "
        f"says otherwise; CPU time of one thread, compiled code warm. {headline()}.",
        "## CPU time",
        "At 4.06 requests/s requests come faster than the engine can serve them: its queue, and "
        "with it each scheduling step, grows until the last one has arrived.",
        speed(requests),
        "## Against the number of requests",
        f"{LINEAR_RATE} requests/s, which the engine sustains.",
        linearity(requests),
        "## Memory",
        "Largest memory that Python and NumPy hold during a simulation (`tracemalloc`) by Andes "
        "exact with selective triggering, the requests themselves and compiled code aside. The "
        "engine's state is a record per request; what is active adds the rest.",
        memory(requests),
        "## Where the time goes",
        "Andes exact solving at every iteration, 4.06 requests/s, under `cProfile`, which "
        "makes calls dearer than they are; compiled functions count to whoever calls them, or "
        "under their own names.",
        profile(requests),
    ]
    return "\n\n".join(pieces) + "\n"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", nargs="?", type=Path, default=_DOCUMENT)
    parser.add_argument("--requests", type=int, default=10_000)
    given = parser.parse_args()
    command = "python -m benchmarks.simulator_speed"
    if given.requests != 10_000:
        command += f" --requests {given.requests}"
    text = document(given.requests, command)
    given.path.parent.mkdir(parents=True, exist_ok=True)
    write_text(given.path, text)
    print(text)


def _place(file_name: str) -> str:
    path = Path(file_name)
    return path.relative_to(_ROOT).as_posix() if path.is_relative_to(_ROOT) else path.name


_ROOT = Path(__file__).resolve().parents[1]
_DOCUMENT = _ROOT / "docs" / "results" / "simulator_speed.md"

if __name__ == "__main__":
    main()
