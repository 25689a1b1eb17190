"""Solvers on the same instances: what each answers, what it takes, and the table of both."""

from __future__ import annotations

import math
import os
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omegaconf import open_dict

from andes_opt.plan import TOLERANCE_MIP, InvalidPlan, Plan, Status, verify
from experiments.configuration.compose import build, load_choice
from experiments.configuration.errors import UsageError, one_line
from experiments.runs.columns import COLUMNS, QUALITY_COLUMNS, frame
from experiments.runs.progress import bar, jit_seconds
from experiments.solver_comparison.tables import numbers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars as pl
    from omegaconf import DictConfig

    from andes_opt.instance import Instance
    from andes_opt.solver import Solver
    from experiments.solver_comparison.instances import NamedInstance


#: Decimals of the solver table.
TABLE_DECIMALS = {
    "mean gap %": 4,
    "max gap %": 4,
    "median ms": 3,
    "p99 ms": 3,
    "certified %": 1,
}


#: Calls made again per instance, lest a solver that always compiles never come to an end.
_MOST_COMPILING_CALLS = 3


@dataclass(frozen=True, slots=True)
class TimedAnswer:
    """A solver's plan for one instance (None if it refused or failed), and what the call took."""

    solver: str
    plan: Plan | None
    wall_s: float
    cpu_s: float
    note: str = ""
    failed: bool = False


def build_solvers(
    names: Sequence[str], options: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Solver]:
    """
    Return solvers by name.

    Parameters
    ----------
    names
        Names from ``conf/solver``, or dotted paths of classes.
    options
        Constructor options by solver, added to those of its file.

    Raises
    ------
    UsageError
        On an unknown name, an option that a constructor refuses, or no solver at all.
    """
    options = options or {}
    if not names:
        raise UsageError("solvers=[] not understood: name at least one solver.")
    for name in options:
        if name not in names:
            raise UsageError(f"options for {name} not understood: it is not among solvers.")
    return {name: build(solver_node(name, options.get(name, {}))) for name in names}


def solver_node(name: str, options: Mapping[str, Any]) -> DictConfig:
    """Return a solver's node of ``conf/solver`` with some options changed."""
    node = load_choice("solver", name)
    with open_dict(node):
        node.update(options)
    return node


def compare(
    problems: Sequence[NamedInstance],
    solvers: Mapping[str, Solver],
    *,
    time_limit_s: float | None,
    repeats: int = 1,
    so_far: list[dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """
    Give every instance to every solver.

    The order of the solvers is reversed from one instance to the next, so that none always
    finds a cold cache, and each solver sees the first instance once before it is timed,
    which takes compilation out of the times.

    Parameters
    ----------
    problems
        The instances.
    solvers
        Name -> solver.
    time_limit_s
        Limit of each call; None for none.
    repeats
        Calls per instance and solver.
    so_far
        Gets the answers as they come, without gaps: what there is if the comparison is stopped.

    Returns
    -------
    list[dict]
        Values of ``columns.QUALITY_COLUMNS`` and ``solver``, one per instance and solver.

    Raises
    ------
    InvalidPlan
        If a solver's plan does not pass ``verify``.
    """
    rows: list[dict[str, Any]] = [] if so_far is None else so_far
    unproven: list[NamedInstance] = []  # by none of the solvers; the exact one is asked as well
    for solver in solvers.values():
        ask("", solver, problems[0].instance, time_limit_s, 1)
    with bar(len(problems) * len(solvers), "solving") as progress:
        for number, problem in enumerate(problems):
            names = list(solvers) if number % 2 == 0 else list(solvers)[::-1]
            answers = {}
            for name in names:
                answer = ask(name, solvers[name], problem.instance, time_limit_s, repeats)
                answers[name] = row_of(problem, answer, time_limit_s)
                rows.append(answers[name])
                progress.update()
            found = [answers[name] for name in solvers]
            rows[-len(found) :] = found
            if not any(row["certified"] for row in found):
                unproven.append(problem)
    exact = build(load_choice("solver", "exact"))
    beside = [
        row_of(problem, ask("exact", exact, problem.instance, time_limit_s, 1), time_limit_s)
        for problem in unproven
    ]
    return with_references(rows, beside)


def ask(
    name: str, solver: Solver, instance: Instance, time_limit_s: float | None, repeats: int
) -> TimedAnswer:
    """
    Time a solver on one instance, and verify its plan.

    A call during which numba compiled, the first with some type of gains, is made again. A solver
    that raises has refused the instance, by ValueError, or failed, whatever else it raises.

    Raises
    ------
    InvalidPlan
        If the plan does not pass ``verify``.
    """
    wall: list[float] = []
    cpu: list[float] = []
    plan, compiling_calls = None, 0
    while len(wall) < repeats:
        cpu_before, wall_before = _cpu_s(), time.perf_counter()
        try:
            with jit_seconds() as jit:
                plan = solver.solve(instance, time_limit_s=time_limit_s)
        except ValueError as error:
            # A documented limit, brute force beyond n = 20 say: part of the comparison.
            return TimedAnswer(name, None, math.nan, math.nan, str(error))
        except (KeyboardInterrupt, GeneratorExit, InvalidPlan):
            raise
        except BaseException as error:  # those of compiled back-ends' panics are no Exception
            note = f"{type(error).__name__}: {one_line(error)}"
            return TimedAnswer(name, None, math.nan, math.nan, note, failed=True)
        if jit.value > 0 and compiling_calls < _MOST_COMPILING_CALLS:
            compiling_calls += 1
            continue
        wall.append(time.perf_counter() - wall_before)
        cpu.append(_cpu_s() - cpu_before)
    assert plan is not None
    verify(instance, plan)
    return TimedAnswer(name, plan, statistics.median(wall), statistics.median(cpu))


def _cpu_s() -> float:
    """Processor seconds of this process and of its finished children, CBC's say."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def is_certified(plan: Plan) -> bool:
    """Return whether a plan is proven optimal, or the absence of plans proven."""
    proven_absence = plan.status is Status.NO_SOLUTION and plan.bound == -math.inf
    return plan.status is Status.OPTIMAL or proven_absence


def row_of(
    problem: NamedInstance,
    answer: TimedAnswer,
    time_limit_s: float | None,
) -> dict[str, Any]:
    """Return ``solver`` and values of ``columns.QUALITY_COLUMNS``, without reference and gap."""
    instance, plan = problem.instance, answer.plan
    row = {
        "solver": answer.solver,
        "source": problem.source,
        "instance": problem.name,
        "requests": instance.num_requests,
        "capacity": instance.capacity,
        "min_batch": instance.min_batch,
        "max_batch": instance.max_batch,
        "exactly": instance.exactly,
        "time_limit_s": time_limit_s,
        "note": answer.note,
        "status": "failed" if answer.failed else "refused",
        "certified": False,
    }
    if plan is None:
        return row
    return row | {
        "status": plan.status.value,
        "certified": is_certified(plan),
        "value": plan.value,
        "bound": plan.bound,
        "batch_size": plan.batch_size,
        "served": int(plan.serve.sum()),
        "proven_gap_percent": 100 * plan.gap,
        "wall_s": answer.wall_s,
        "cpu_s": answer.cpu_s,
        "build_s": plan.build_s,
        "solve_s": plan.solve_s,
    }


def with_references(
    answers: Sequence[dict[str, Any]], beside: Sequence[dict[str, Any]] = ()
) -> list[dict[str, Any]]:
    """
    Return answers with gaps: to the best certified value, else to the best proven bound.

    Parameters
    ----------
    answers
        Of :func:`row_of`.
    beside
        Answers that count for the reference alone.
    """
    optima: dict[tuple[str, str], float] = {}
    bounds: dict[tuple[str, str], float] = {}
    for answer in (*answers, *beside):
        key = answer["source"], answer["instance"]
        if answer.get("value") is None:
            continue
        bounds[key] = min(bounds.get(key, math.inf), answer["bound"])
        if answer["certified"]:
            optima[key] = max(optima.get(key, -math.inf), answer["value"])
    rows = []
    for answer in answers:
        key = answer["source"], answer["instance"]
        reference = optima.get(key, bounds.get(key, math.nan))
        row = answer | {"reference": reference, "reference_certified": key in optima}
        if answer.get("value") is not None:
            row["gap_percent"] = gap_percent(answer["value"], reference)
        rows.append(row)
    return rows


def gap_percent(value: float, reference: float) -> float:
    """
    Return how far a value stays below the reference, in percent of the reference.

    0 if both say that no plan exists, 100 if only the value does.
    """
    if value == -math.inf:
        return 0.0 if reference == -math.inf else 100.0
    gap = reference - value
    if -TOLERANCE_MIP * max(1.0, abs(reference)) <= gap <= 0:
        return 0.0  # certificates hold up to a tolerance only
    return 100 * gap / abs(reference) if reference else math.inf


def as_rows(answers: Sequence[Mapping[str, Any]], **run: Any) -> pl.DataFrame:
    """
    Return answers as a table under the documented schema.

    Parameters
    ----------
    answers
        From :func:`compare`.
    **run
        Values of ``columns.RUN_COLUMNS`` for all rows.
    """
    given = {name for answer in answers for name in answer} | {"solver", *QUALITY_COLUMNS}
    names = [name for name in COLUMNS if name in given]
    return frame({name: [answer.get(name) for answer in answers] for name in names}, **run)


def contradictions(rows: Sequence[Mapping[str, Any]]) -> int:
    """
    Return how many values lie above another solver's proven bound: both can't be right.

    Parameters
    ----------
    rows
        From :func:`compare`.
    """
    count = 0
    bounds: dict[tuple[str, str], float] = {}
    answered = [row for row in rows if row.get("value") is not None]
    for row in answered:
        key = (row["source"], row["instance"])
        bounds[key] = min(bounds.get(key, math.inf), row["bound"])
    for row in answered:
        bound = bounds[row["source"], row["instance"]]
        count += row["value"] > bound + TOLERANCE_MIP * max(1.0, abs(bound))
    return count


def first_failure(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Return a sentence about the calls that failed, with the first one's reason; None without."""
    failed = [row for row in rows if row["status"] == "failed"]
    if not failed:
        return None
    first = failed[0]
    where = f"{first['solver']} on {first['source']} {first['instance']}"
    return f"{len(failed)} of {len(rows)} calls failed; the first, {where}: {first['note']}"


def table(rows: pl.DataFrame) -> pl.DataFrame:
    """Return gaps, times and certificates of each solver, best first."""
    columns = ("instances", "mean gap %", "max gap %", "median ms", "p99 ms")
    failed = ("failed",) if (rows["status"] == "failed").any() else ()
    table = numbers(rows, ["solver"], columns, ("certified %", "refused"), failed)
    # Equal solvers in the order in which they were named: their times change from run to run.
    return table.sort("mean gap %", nulls_last=True, maintain_order=True)


def summarise(rows: pl.DataFrame) -> dict[str, float]:
    """Return flat metrics: ``SOLVER_gap_mean_percent`` and so on for each solver."""
    names = {
        "mean gap %": "gap_mean_percent",
        "max gap %": "gap_max_percent",
        "median ms": "wall_p50_ms",
        "p99 ms": "wall_p99_ms",
        "certified %": "certified_percent",
        "refused": "refused",
        "failed": "failed",
    }
    summary: dict[str, float] = {}
    for line in table(rows).iter_rows(named=True):
        for column, metric in names.items():
            if column in line:
                summary[f"{line['solver']}_{metric}"] = line[column]
    return summary
