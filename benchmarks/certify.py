"""
The certification study: thousands of random instances, every plan verified, some against HiGHS.

``python -m benchmarks.certify`` writes ``docs/results/certification.md``; give another path to
write it there, and ``--instances`` for a shorter look.

Instances are spread evenly over the families and sizes below. Each is solved cold, the plan
is verified, and it counts as certified if bound - value <= 1e-9 max(1, |value|). For a random
choice of them HiGHS (scipy.optimize.milp, relative gap 0, presolve on) solves the same knapsack
at the optimal batch size, at its neighbours and at two random ones: none may be worth more than
the proven bound beyond HiGHS's own tolerance, and the plan not more than HiGHS's bounds.

Rows go to OUTPUT/rows.jsonl as they come; started again, the study goes on behind the last
complete row, or anew if the solver's code has changed since. Other options with rows in OUTPUT
are not noticed: name another OUTPUT.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from scipy.optimize import Bounds, LinearConstraint, milp

from andes_opt import families
from andes_opt.plan import InvalidPlan, Plan, Status, verify
from benchmarks.machine import headline
from experiments.analysis.markdown import markdown
from experiments.runs.code_closure import state_of
from experiments.runs.files import write_text
from solvers.exact import Exact, warm_up

if TYPE_CHECKING:
    from andes_opt.instance import Instance

#: Families and the sizes each is tried at; the adversarial ones up to 200 requests.
SIZES = {
    "hard": (50, 200, 1000),
    "memory_only": (50, 200, 1000),
    "batch_only": (50, 200, 1000),
    "tight": (50, 200, 1000),
    "equal_weights": (50, 200, 1000),
    "blocks": (50, 200, 1000),
    "negative": (50, 200, 1000),
    "ties": (50, 200, 1000),
    "exactly": (50, 200, 1000),
    "not_monotone": (50, 200),
    "exactly_negative": (50, 200),
    "subset_sum": (50, 100, 200),
    "strongly_correlated": (50, 100, 200),
    "profit_ceiling": (50, 100, 200),
    "circle": (50, 100, 200),
    "few_weights": (50, 100, 200),
}
CASES = tuple((family, n) for family, sizes in SIZES.items() for n in sizes)

_CERTIFIED = 1e-9
#: What HiGHS may be off by: its feasibility tolerance on integers and rows is 1e-6.
_HIGHS_TOLERANCE = 1e-6


def highs(instance: Instance, batch_size: int, time_limit_s: float) -> tuple[float, float]:
    """Value and bound of HiGHS at one batch size; (-inf, -inf) if it is infeasible."""
    n = instance.num_requests
    result = milp(
        -instance.gains_at(batch_size),
        constraints=[
            LinearConstraint(instance.weights[None, :], -np.inf, instance.capacity),
            LinearConstraint(np.ones((1, n)), batch_size if instance.exactly else 0, batch_size),
        ],
        integrality=np.ones(n),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0, "time_limit": time_limit_s},
    )
    if result.status == 2:
        return -np.inf, -np.inf
    bound = np.inf if result.mip_dual_bound is None else -float(result.mip_dual_bound)
    if result.x is None:
        return -np.inf, bound
    # Its word is not taken: whole numbers, and only if they really fit.
    serve = np.round(result.x).astype(bool)
    if instance.weights[serve].sum() > instance.capacity or serve.sum() > batch_size:
        return -np.inf, bound
    return float(instance.gains_at(batch_size)[serve].sum()), bound


def crosscheck(instance: Instance, plan: Plan, seed: int, time_limit_s: float) -> dict[str, Any]:
    """Compare a plan with HiGHS at its batch size, the neighbours, and two random ones."""
    rng = np.random.default_rng(seed)
    near = [plan.batch_size + step for step in (-1, 0, 1)]
    some = rng.integers(instance.min_batch, instance.max_batch + 1, 2).tolist()
    sizes = sorted({b for b in near + some if instance.min_batch <= b <= instance.max_batch})
    slack = _HIGHS_TOLERANCE * max(1.0, abs(plan.value))
    answers = {batch: highs(instance, batch, time_limit_s) for batch in sizes}
    best = max(value for value, _ in answers.values())
    closed = all(bound - value <= slack for value, bound in answers.values() if bound > -np.inf)
    return {
        "highs_sizes": sizes,
        "highs_better_by": max(0.0, best - plan.bound),
        "highs_short_by": max(0.0, plan.value - answers[plan.batch_size][0]),
        # A bound below our value would refute the plan, a value above our bound the proof.
        "agrees": bool(
            best <= plan.bound + slack
            and plan.value <= max(bound for _, bound in answers.values()) + slack
        ),
        "highs_closed": bool(closed),
    }


def study_one(solver: Exact, k: int, check: bool, highs_limit_s: float) -> dict[str, Any]:
    """Solve, verify and maybe cross-check instance k of the study."""
    family, n = CASES[k % len(CASES)]
    seed = k // len(CASES)
    instance = families.make(family, n, seed)
    started = time.process_time()
    plan = solver.solve(instance)
    elapsed = time.process_time() - started
    row: dict[str, Any] = {
        "k": k,
        "family": family,
        "n": n,
        "seed": seed,
        "value": plan.value,
        "gap": plan.gap,
        "batch_size": plan.batch_size,
        "certified": plan.status is not Status.FEASIBLE and plan.gap <= _CERTIFIED,
        "verified": True,
        "cpu_ms": 1e3 * elapsed,
        "states": plan.info.get("states", 0),
        "searched": plan.info.get("searched", 0),
    }
    try:
        verify(instance, plan)
    except InvalidPlan as error:
        row |= {"verified": False, "error": str(error)}
    if check and plan.status is not Status.NO_SOLUTION:
        row |= crosscheck(instance, plan, k, highs_limit_s)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Counts and processor times by family and size, and in total."""
    groups: dict[tuple[str, int | None], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["family"], row["n"]), []).append(row)
    lines = [_line(family, n, groups[family, n]) for family, n in CASES if (family, n) in groups]
    lines.append(_line("all", None, rows))
    decimals = {name: 2 for name in lines[0] if name.endswith("ms")}
    return markdown(pl.DataFrame(lines, infer_schema_length=None), decimals)


def _line(family: str, n: int | None, rows: list[dict[str, Any]]) -> dict[str, Any]:
    times = np.array([row["cpu_ms"] for row in rows])
    checked = [row for row in rows if "agrees" in row]
    return {
        "family": family,
        "N": n,
        "instances": len(rows),
        "uncertified": sum(not row["certified"] for row in rows),
        "invalid": sum(not row["verified"] for row in rows),
        "by HiGHS, too": len(checked),
        "disagree": sum(not row["agrees"] for row in checked),
        "HiGHS out of time": sum(not row["highs_closed"] for row in checked),
        "median ms": float(np.median(times)),
        "p99 ms": float(np.quantile(times, 0.99)),
        "max ms": float(times.max()),
    }


def document(rows: list[dict[str, Any]], command: str, highs_limit_s: float) -> str:
    """The whole page."""
    pieces = [
        "# Certification of the exact solver",
        f"Written by `{command}`; do not edit.",
        f"{len(rows)} random instances, each solved cold over all its batch sizes. *Uncertified*: "
        "bound - value > 1e-9 max(1, |value|). *Invalid*: refused by `verify`. *Disagree*: HiGHS "
        "(SciPy's, gap 0, presolve on), asked at the optimal batch size, its neighbours and two "
        "random ones, found a plan above our bound, or proved less than our value, by more than "
        "its own tolerance of 1e-6. *Out of time*: at one of these batch sizes or more HiGHS "
        f"had not closed its gap after {highs_limit_s:g} s, so that only its bounds and plans "
        "were compared. Times are processor time of `exact`, with other work on the machine. "
        f"{headline()}.",
        table(rows),
    ]
    return "\n\n".join(pieces) + "\n"


def read_rows(folder: Path, code: str) -> list[dict[str, Any]]:
    """Complete rows of an earlier run of the same code; all others are dropped from the file."""
    rows: list[dict[str, Any]] = []
    stamp, path = folder / "code.txt", folder / "rows.jsonl"
    if path.exists() and stamp.exists() and stamp.read_text() == code:
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stamp.write_text(code)
    return rows


def main() -> None:
    """Run the study, or what is left of it."""
    parser = argparse.ArgumentParser(description="Certification study of the exact solver.")
    parser.add_argument("path", type=Path, nargs="?", default=Path("docs/results/certification.md"))
    parser.add_argument("--instances", type=int, default=10_000)
    parser.add_argument("--crosscheck", type=int, default=1_000, help="how many also by HiGHS")
    parser.add_argument("--highs-limit-s", type=float, default=2.0, help="per batch size")
    parser.add_argument("--output", type=Path, default=Path("outputs/certify"), help="for rows")
    given = parser.parse_args()

    given.output.mkdir(parents=True, exist_ok=True)
    rows = read_rows(given.output, state_of(["solvers.exact", "andes_opt.families"]))
    warm_up()
    solver = Exact(warm_start=False)
    chosen = np.random.default_rng(0).permutation(given.instances)[: given.crosscheck]
    to_check = set(chosen.tolist())
    with (given.output / "rows.jsonl").open("a") as file:
        for k in range(len(rows), given.instances):
            rows.append(study_one(solver, k, k in to_check, given.highs_limit_s))
            file.write(json.dumps(rows[-1]) + "\n")
            if (k + 1) % 100 == 0:
                file.flush()
                bad = sum(not (row["certified"] and row["verified"]) for row in rows)
                print(f"{k + 1} instances, {bad} uncertified or invalid", flush=True)

    command = " ".join(["python -m benchmarks.certify", *sys.argv[1:]])
    text = document(rows[: given.instances], command, given.highs_limit_s)
    given.path.parent.mkdir(parents=True, exist_ok=True)
    write_text(given.path, text)
    print(f"wrote {given.path}")


if __name__ == "__main__":
    main()
