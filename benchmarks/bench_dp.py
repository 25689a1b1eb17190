"""
Time of the paper's dynamic programme on a processor and on a GPU, beside the exact solver.

``python -m benchmarks.bench_dp --device cuda`` writes ``docs/results/dp_speed.md``; give another
path to write it there, and ``--sizes`` and ``--instances`` for other or shorter looks.

Wall-clock, from the instance to the plan, since a GPU's work is not in the processor's time; the
plan comes back to the processor, so that nothing is still under way when the clock stops.
Solvers take turns on each instance in an order that rotates, and all must agree on the value.
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
from andes_opt.plan import Status, verify
from benchmarks.bench_exact import spread
from benchmarks.machine import headline
from experiments.analysis.markdown import markdown
from experiments.runs.environment import gpu_names
from experiments.runs.files import write_text
from solvers.dp import DP
from solvers.dp_torch import DPTorch
from solvers.exact import Exact, warm_up

if TYPE_CHECKING:
    from collections.abc import Mapping

    from andes_opt.solver import Solver

FAMILY = "hard"
#: A solver that takes longer is stopped, and its time is a lower bound.
LIMIT_S = 10.0
#: Table cells, beyond the solvers' defaults: 1 GB of choices, on a GPU of its memory 16.
CELLS, DEVICE_CELLS = 8_000_000_000, 128_000_000_000
#: Values of solvers that have proven theirs may differ by so much, relatively.
TOLERANCE = 1e-9


def rivals(device: str, stacks: list[int]) -> dict[str, Solver]:
    """Solvers by the names in the table; ``stacks``: batch sizes at once on the device."""
    found: dict[str, Solver] = {"exact": Exact(warm_start=False), "dp": DP(max_cells=CELLS)}
    for stack in stacks:
        found[f"dp_torch {device}, {stack} at once"] = DPTorch(
            device=device, batch_sizes=stack, max_cells=DEVICE_CELLS
        )
    return found


def measure(solvers: Mapping[str, Solver], n: int, instances: int) -> list[dict[str, Any]]:
    """
    A line per solver on instances of one size.

    Raises
    ------
    RuntimeError
        If two solvers that have proven their optimum differ.
    """
    times_s: dict[str, list[float]] = {name: [] for name in solvers}
    proven = dict.fromkeys(solvers, 0)
    refused: set[str] = set()
    names = list(solvers)
    for name in names:
        _timed(solvers[name], n, 10**6)
    for seed in range(instances):
        values = {}
        for k in range(len(names)):
            name = names[(seed + k) % len(names)]
            outcome = None if name in refused else _timed(solvers[name], n, seed)
            if outcome is None:
                refused.add(name)
                continue
            time_s, optimum = outcome
            times_s[name].append(time_s)
            if optimum is not None:
                proven[name] += 1
                values[name] = optimum
        if values and not np.ptp(list(values.values())) <= TOLERANCE * max(values.values()):
            raise RuntimeError(f"optima differ on {FAMILY}, N = {n}, seed {seed}: {values}")
    return [
        {
            "N": n,
            "solver": name,
            "solved": f"{proven[name]} of {instances}",
            "median ms": _quantile(times_s[name], 0.5),
            "max ms": _quantile(times_s[name], 1.0),
            "times exact": _ratio(times_s[name], times_s["exact"]),
        }
        for name in names
    ]


def _timed(solver: Solver, n: int, seed: int) -> tuple[float, float | None] | None:
    """Seconds, and the value if it is proven; None if the solver refuses the size."""
    instance = families.make(FAMILY, n, seed)
    started = time.perf_counter()
    try:
        plan = solver.solve(instance, time_limit_s=LIMIT_S)
    except ValueError:
        return None
    took_s = time.perf_counter() - started
    verify(instance, plan)
    return took_s, plan.value if plan.status is Status.OPTIMAL else None


def _quantile(times_s: list[float], q: float) -> float | None:
    return 1000 * float(np.quantile(times_s, q)) if times_s else None


def _ratio(times_s: list[float], reference_s: list[float]) -> str:
    """Median and quartiles of ratios, instance by instance."""
    if len(times_s) != len(reference_s):
        return "refused"
    return spread(np.array(times_s) / np.array(reference_s), decimals=0)


def document(given: argparse.Namespace, solvers: Mapping[str, Solver], command: str) -> str:
    """The whole page."""
    began = headline()
    lines = [line for n in given.sizes for line in measure(solvers, n, given.instances)]
    where = ", ".join([began, *gpu_names()])
    pieces = [
        "# Algorithm 2 of the paper on a processor and on a GPU",
        f"Written by `{command}`; do not edit.",
        f"{given.instances} instances of the family *{FAMILY}* of each size, every batch size "
        "included; wall-clock from the call to the plan, solvers in rotating order, one thread "
        f"where it is the processor's. Stopped after {LIMIT_S:g} s: *solved* says how many have "
        "proven their optimum, on which all agree. *times exact*: ratio of times, instance by "
        f"instance: median and quartiles. {where}.",
        markdown(pl.DataFrame(lines), {"median ms": 2, "max ms": 2}),
    ]
    return "\n\n".join(pieces) + "\n"


def main() -> None:
    """Write the page and print it."""
    parser = argparse.ArgumentParser(description="Time of the dynamic programme on a GPU.")
    parser.add_argument("path", type=Path, nargs="?", default=Path("docs/results/dp_speed.md"))
    parser.add_argument("--device", default="cuda", help="PyTorch's name of the device")
    parser.add_argument("--stacks", nargs="+", type=int, default=[4, 16])
    parser.add_argument("--sizes", nargs="+", type=int, default=[50, 100, 200, 400])
    parser.add_argument("--instances", type=int, default=10)
    given = parser.parse_args()
    try:
        solvers = rivals(given.device, given.stacks)
    except (ImportError, ValueError) as error:  # no PyTorch, or no such device
        sys.exit(f"bench_dp: {error}")
    warm_up()
    command = " ".join(["python -m benchmarks.bench_dp", *sys.argv[1:]])
    text = document(given, solvers, command)
    given.path.parent.mkdir(parents=True, exist_ok=True)
    write_text(given.path, text)
    print(text)


if __name__ == "__main__":
    main()
