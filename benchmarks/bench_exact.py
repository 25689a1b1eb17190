"""
Time of the exact solver, price rounding and the greedy ones, on one thread.

``python -m benchmarks.bench_exact`` writes ``docs/results/exact_speed.md``; give another path to
write it there, and ``--families``, ``--sizes``, ``--instances`` for other or shorter looks.

Every instance is new, and all batch sizes are included. Solvers take turns on it, in an order
that rotates, so that all meet the same disturbances and caches. Times are processor time of
this process (from instance to plan), so that other programs disturb little; caches they
share still do, hence the load in the headline.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from andes_opt import families
from benchmarks.machine import headline
from experiments.analysis.markdown import markdown
from experiments.runs.files import write_text
from solvers.exact import Exact, warm_up
from solvers.greedy import Greedy, GreedySkip
from solvers.price_rounding import PriceRounding

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from andes_opt.plan import Plan
    from andes_opt.solver import Solver

REFERENCE = "exact"
SOLVERS = (REFERENCE, "exact_warm", "price_rounding", "greedy_skip", "greedy")


def make_solver(name: str) -> Solver:
    """A solver by the name used here."""
    if name == "exact":
        return Exact(warm_start=False)
    if name == "exact_warm":
        return Exact(warm_start=True)
    if name == "price_rounding":
        return PriceRounding(warm_start=False)
    if name == "greedy_skip":
        return GreedySkip()
    if name == "greedy":
        return Greedy()
    raise ValueError(f"solver = {name!r} not understood: need one of {', '.join(SOLVERS)}.")


def measure(family: str, n: int, instances: int) -> list[dict[str, Any]]:
    """A line per solver on instances of one family and size; milliseconds and gaps."""
    solvers = {name: make_solver(name) for name in SOLVERS}
    for solver in solvers.values():
        for seed in range(3):
            solver.solve(families.make(family, n, 10**6 + seed))
    times: dict[str, list[float]] = {name: [] for name in SOLVERS}
    gaps: dict[str, list[float]] = {name: [] for name in SOLVERS}
    for seed in range(instances):
        instance = families.make(family, n, seed)
        plans: dict[str, Plan] = {}
        # Whoever is first brings the instance into the caches, so each is in turn.
        for k in range(len(SOLVERS)):
            name = SOLVERS[(seed + k) % len(SOLVERS)]
            started = time.process_time_ns()
            plans[name] = solvers[name].solve(instance)
            times[name].append((time.process_time_ns() - started) / 1e6)
        optimum = plans[REFERENCE].value
        for name, plan in plans.items():
            loss = (optimum - plan.value) / max(1.0, abs(optimum))
            gaps[name].append(plan.gap if name == REFERENCE else loss)
    reference = np.array(times[REFERENCE])
    return [
        {
            "family": family,
            "N": n,
            "solver": name,
            "median ms": float(np.median(times[name])),
            "p90 ms": float(np.quantile(times[name], 0.90)),
            "p99 ms": float(np.quantile(times[name], 0.99)),
            "max ms": max(times[name]),
            "times exact": spread(np.array(times[name]) / reference),
            "below optimum %": 100.0 * float(np.mean(gaps[name])),
        }
        for name in SOLVERS
    ]


def spread(ratios: NDArray[np.float64], decimals: int = 2) -> str:
    """Median and, in brackets, quartiles of paired ratios."""
    low, middle, high = (f"{q:,.{decimals}f}" for q in np.quantile(ratios, [0.25, 0.5, 0.75]))
    return f"{middle} [{low}, {high}]"


def document(given: argparse.Namespace, command: str) -> str:
    """The whole page."""
    began = headline()
    lines = [
        line
        for family in given.families
        for n in given.sizes
        for line in measure(family, n, given.instances)
    ]
    decimals = {name: 3 for name in lines[0] if name.endswith("ms")} | {"below optimum %": 5}
    pieces = [
        "# Speed of the exact solver",
        f"Written by `{command}`; do not edit.",
        f"{given.instances} instances of each family and size, each new and all batch sizes "
        "included; processor time of one thread from the call to the plan, solvers in rotating "
        "order. "
        "*exact* starts cold at every instance, *exact_warm* with the prices of the one before. "
        "*times exact*: ratio of times, instance by instance: median and quartiles. *below "
        "optimum*: mean over instances; for *exact* its proven gap. "
        f"{began}.",
        markdown(pl.DataFrame(lines), decimals),
    ]
    return "\n\n".join(pieces) + "\n"


def main() -> None:
    """Write the page and print it."""
    parser = argparse.ArgumentParser(description="Time of the exact solver and its rivals.")
    parser.add_argument("path", type=Path, nargs="?", default=Path("docs/results/exact_speed.md"))
    parser.add_argument("--families", nargs="+", default=["hard"], choices=families.FAMILIES)
    parser.add_argument("--sizes", nargs="+", type=int, default=[100, 1000, 5000])
    parser.add_argument("--instances", type=int, default=200)
    given = parser.parse_args()
    warm_up()
    command = " ".join(["python -m benchmarks.bench_exact", *sys.argv[1:]])
    text = document(given, command)
    given.path.parent.mkdir(parents=True, exist_ok=True)
    write_text(given.path, text)
    print(text)


if __name__ == "__main__":
    main()
