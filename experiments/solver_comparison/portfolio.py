"""
``andes-opt study portfolio``: every solver on every family, size by size.

Every solver is asked the same few instances of a family and size, in alternating order; fast ones
get more on top. A solver that comes to no end in time on all of them, or refuses them all,
is asked for no larger size of that family. A stopped run goes on where it was.
"""

from __future__ import annotations

import math
import os
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig

from experiments.configuration.experiment import documents_folder, study_command
from experiments.configuration.overrides import refuse_unread
from experiments.runs.files import listed, write_atomically
from experiments.runs.progress import bar
from experiments.runs.records import recorded_run
from experiments.solver_comparison import compare, document
from experiments.solver_comparison.answers import AnswerStore, code_state
from experiments.solver_comparison.document import PortfolioFacts
from experiments.solver_comparison.entrants import Entrant, enter, entrants_of
from experiments.solver_comparison.groups import (
    Group,
    captured_group,
    fingerprint,
    generated_groups,
    one_batch_group,
)
from experiments.solver_comparison.tables import AT_THE_LIMIT, Stop, long_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from omegaconf import DictConfig

    from experiments.solver_comparison.instances import NamedInstance


#: Options of `andes-opt quality` that say nothing here.
_UNREAD = {
    **dict.fromkeys(("engine", "workload.rate"), "portfolio.captured names the simulated loads"),
    "corpus": "the instances are those of families and portfolio.captured",
}


class Asker:
    """
    Asks entrants for what is not known yet, and keeps the answers.

    Parameters
    ----------
    store
        What is known already.
    time_limit_s
        Limit of each call.
    repeats
        Calls per instance and solver.
    """

    def __init__(self, store: AnswerStore, time_limit_s: float | None, repeats: int) -> None:
        self._store = store
        self._time_limit_s = time_limit_s
        self._repeats = repeats
        self._warm: set[tuple[str, str]] = set()
        self.answers: list[dict[str, Any]] = []

    def ask(
        self, group: Group, numbers: Iterable[int], entrants: Sequence[Entrant], *, core: bool
    ) -> dict[str, list[dict[str, Any]]]:
        """
        Return answers of some entrants to some instances of a group, by entrant.

        Every other instance is asked in reversed order, so that none always finds the
        caches that the same other solver left.
        """
        found: dict[str, list[dict[str, Any]]] = {entrant.name: [] for entrant in entrants}
        for number in numbers:
            problem = group.problem(number)
            content = fingerprint(problem.instance)
            for entrant in entrants if number % 2 == 0 else entrants[::-1]:
                state = f"{entrant.state}-{content}"
                cell = self._store.get(problem.source, problem.name, entrant.name, state)
                if cell is None:
                    cell = self._measure(problem, entrant) | {"state": state}
                    self._store.add(cell)
                found[entrant.name].append(cell)
                self.answers.append(cell | {"core": core, "kind": group.kind})
        return found

    def _measure(self, problem: NamedInstance, entrant: Entrant) -> dict[str, Any]:
        limit_s = self._time_limit_s
        if (entrant.name, problem.source) not in self._warm:
            # Compilation and back-ends' first calls are no part of the times.
            self._warm.add((entrant.name, problem.source))
            compare.ask(entrant.name, entrant.solver, problem.instance, limit_s, 1)
        load = os.getloadavg()[0]
        answer = compare.ask(entrant.name, entrant.solver, problem.instance, limit_s, self._repeats)
        row = compare.row_of(problem, answer, limit_s)
        plan = answer.plan
        if plan is not None:
            row["backend_s"] = plan.solve_s - plan.info.get("pricing_s", 0.0)
        return row | {"load": load}


def run_groups(
    asker: Asker, groups: Sequence[Group], entrants: Sequence[Entrant], config: DictConfig
) -> list[Stop]:
    """
    Ask for the groups of one source, sizes ascending, and drop solvers that fail on all of one.

    Parameters
    ----------
    asker
        Where answers go.
    groups
        Groups of one source.
    entrants
        The solvers to begin with.
    config
        With ``portfolio.fast_call_s``.
    """
    stops: list[Stop] = []
    active = list(entrants)
    for group in groups:
        started = time.perf_counter()
        core = asker.ask(group, range(group.core), active, core=True)
        fast = [e for e in active if _mean_wall_s(core[e.name]) <= config.portfolio.fast_call_s]
        asker.ask(group, range(group.core, group.count), fast, core=False)
        took_s = time.perf_counter() - started
        print(f"{_label(group):<32}{len(active):3d} solvers{took_s:8.1f} s", flush=True)
        if group.size is None:
            continue
        failed = {e.name: reason for e in active if (reason := give_up(core[e.name]))}
        stops += [Stop(group.source, name, group.size, failed[name]) for name in failed]
        active = [entrant for entrant in active if entrant.name not in failed]
    return stops


def give_up(cells: Sequence[Mapping[str, Any]]) -> str | None:
    """Return why a solver need not be asked for larger instances; None if it should be."""
    if not cells:
        return None
    if all(cell["status"] in ("refused", "failed") for cell in cells):
        return f"refused: {str(cells[0]['note']).split(';')[0].rstrip('.')}"
    if all(at_the_limit(cell) or cell["status"] in ("refused", "failed") for cell in cells):
        return "limit hit on all instances"
    return None


def at_the_limit(cell: Mapping[str, Any]) -> bool:
    """Return whether a call ended at its time limit without a proof."""
    limit_s, wall_s = cell.get("time_limit_s"), cell.get("wall_s")
    if limit_s is None or wall_s is None or cell["certified"]:
        return False
    return bool(wall_s >= AT_THE_LIMIT * limit_s)


def _mean_wall_s(cells: Sequence[Mapping[str, Any]]) -> float:
    """Mean time of a call; infinite if one gave no plan."""
    times = [cell.get("wall_s", math.inf) for cell in cells]
    return sum(times) / len(times) if times else math.inf


def _label(group: Group) -> str:
    return group.source if group.size is None else f"{group.source}, {group.size} requests"


def run(config: DictConfig) -> dict[str, float]:
    """Ask for what is missing, write rows, table, document and figures, and return the summary."""
    config = shrunk(config)
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    with recorded_run(folder) as record:
        refuse_unread(hydra_config.overrides.task, _UNREAD)
        entrants, missing = entrants_of(config, _state(config.time_limit_s, config.repeats))
        store = AnswerStore(folder / "cells.jsonl")
        asker = Asker(store, config.time_limit_s, config.repeats)
        stops, silent = _ask_all(asker, entrants, config)
        answers = asker.answers + _one_batch(config, store, asker.answers)
        rows = compare.as_rows(
            compare.with_references(answers),
            command=hydra_config.job.name,
            seed=config.seed,
            overrides=shlex.join(hydra_config.overrides.task),
        )
        record.keep(rows)
        summary = {
            "instances": rows.select("source", "instance").n_unique(),
            "calls": rows.height,
            "reused": store.reused,
            "failed": sum(cell["status"] == "failed" for cell in answers),
            "contradictions": compare.contradictions(answers),
            "calls_s": float(rows["wall_s"].sum()),
        }
        facts = PortfolioFacts(
            command=study_command(hydra_config),
            environment=record.environment,
            config=config,
            stops=stops,
            missing=missing,
            silent=silent,
            summary=summary,
        )
        write_atomically(folder / "table.csv", long_table(rows).write_csv)
        docs = documents_folder(hydra_config, "portfolio", config.portfolio.docs)
        published = document.write(rows, facts, folder, docs)
        summary |= document.headline(rows, facts)
        record.finish(None, summary)
    if summary["contradictions"] or summary["failed"]:
        raise RuntimeError(
            f"{summary['contradictions']} plans beat a bound called proven, and "
            f"{summary['failed']} calls failed; {folder}/rows.parquet says which."
        )
    print(listed(folder, published))
    return summary


def _state(time_limit_s: float | None, repeats: int) -> str:
    """What all answers depend on, the solver and the instance aside."""
    return f"{code_state()} {time_limit_s} {repeats}"


def _ask_all(
    asker: Asker, entrants: Sequence[Entrant], config: DictConfig
) -> tuple[list[Stop], list[str]]:
    """Ask for every family and load; who stopped where, and loads with nothing to solve."""
    stops: list[Stop] = []
    silent: list[str] = []
    sources = [generated_groups(config, family) for family in config.families or ()]
    with bar(len(sources) + len(config.portfolio.captured), "portfolio") as progress:
        for source in sources:
            stops += run_groups(asker, source, entrants, config)
            progress.update()
        for load in config.portfolio.captured:
            group = captured_group(config, load.engine, load.rate)
            if group.count == 0:
                silent.append(group.source)
            stops += run_groups(asker, [group], entrants, config)
            progress.update()
    return stops, silent


def _one_batch(
    config: DictConfig, store: AnswerStore, answers: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Answers for the best batch size alone."""
    group = one_batch_group(config, answers)
    if group is None:
        return []
    setting = config.portfolio.one_batch
    state = _state(setting.time_limit_s, config.repeats)
    entrants = [
        enter(name, choice.solver, {k: v for k, v in choice.items() if k != "solver"}, state)
        for name, choice in setting.entrants.items()
    ]
    alone = Asker(store, setting.time_limit_s, config.repeats)
    alone.ask(group, range(group.count), entrants, core=False)
    return alone.answers


def shrunk(config: DictConfig) -> DictConfig:
    """Return the configuration; with ``portfolio.tiny`` cut down to its form."""
    if not config.portfolio.tiny:
        return config
    config = config.copy()
    portfolio = config.portfolio
    config.families, config.sizes = list(config.families)[:2], sorted(config.sizes)[:3]
    config.count, config.capture = 1, 3
    config.workload.requests = min(config.workload.requests, 60)
    portfolio.more, portfolio.captured = 1, list(portfolio.captured)[:1]
    first, last = config.sizes[0], config.sizes[-1]
    portfolio.one_batch.requests, portfolio.one_batch.count = last, 1
    portfolio.one_batch.time_limit_s = min(portfolio.one_batch.time_limit_s, config.time_limit_s)
    portfolio.shown.requests, portfolio.shown.fit_from = last, first
    portfolio.shown.panels = sorted({first, last})
    return config
