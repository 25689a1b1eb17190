"""
Time of the exact solver, price rounding and the greedy ones, on one thread.

    python -m benchmarks.bench_exact                      # the table of sizes, hard family
    python -m benchmarks.bench_exact --families hard tight --sizes 100 1000 --instances 200

Every instance is new and solved once, without a warm start, all batch sizes included.
Times are processor time of this process (solve, from instance to plan), so that other
programs disturb little; caches they share still do, hence the load in the headline.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING

import numpy as np

from andes_opt import families
from benchmarks.machine import headline
from solvers.exact import Exact, warm_up
from solvers.greedy import Greedy
from solvers.price_rounding import PriceRounding

if TYPE_CHECKING:
    from andes_opt.solver import Solver

SOLVERS = ("exact", "exact_warm", "price_rounding", "greedy")


def make_solver(name: str) -> Solver:
    """A solver by the name used here."""
    if name == "exact":
        return Exact(warm_start=False)
    if name == "exact_warm":
        return Exact(warm_start=True)
    if name == "price_rounding":
        return PriceRounding(warm_start=False)
    if name == "greedy":
        return Greedy()
    raise ValueError(f"solver = {name!r} not understood: need one of {', '.join(SOLVERS)}.")


def measure(name: str, family: str, n: int, instances: int) -> dict[str, float]:
    """Milliseconds and gaps of a solver on instances of one family and size."""
    solver = make_solver(name)
    for seed in range(3):
        solver.solve(families.make(family, n, 10**6 + seed))
    times, gaps = [], []
    for seed in range(instances):
        instance = families.make(family, n, seed)
        started = time.process_time_ns()
        plan = solver.solve(instance)
        times.append((time.process_time_ns() - started) / 1e6)
        gaps.append(plan.gap)
    return {
        "median": statistics.median(times),
        "p90": float(np.quantile(times, 0.90)),
        "p99": float(np.quantile(times, 0.99)),
        "max": max(times),
        "mean_gap": float(np.mean(gaps)),
        "uncertified": float(sum(gap > 1e-9 for gap in gaps)),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--families", nargs="+", default=["hard"], choices=families.FAMILIES)
    parser.add_argument("--sizes", nargs="+", type=int, default=[100, 1000, 5000])
    parser.add_argument("--solvers", nargs="+", default=list(SOLVERS), choices=SOLVERS)
    parser.add_argument("--instances", type=int, default=100)
    options = parser.parse_args()

    print(headline())
    print(f"{options.instances} instances each; processor time in ms, solve from call to plan")
    warm_up()
    columns = ("median", "p90", "p99", "max")
    print(f"{'family':20}{'n':>6} {'solver':16}" + "".join(f"{c:>10}" for c in columns), end="")
    print(f"{'mean gap':>11}{'gap > 1e-9':>12}")
    for family in options.families:
        for n in options.sizes:
            for name in options.solvers:
                row = measure(name, family, n, options.instances)
                numbers = "".join(f"{row[column]:10.3f}" for column in columns)
                print(
                    f"{family:20}{n:6d} {name:16}{numbers}{row['mean_gap']:11.1e}"
                    f"{row['uncertified']:12.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
