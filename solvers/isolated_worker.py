"""
The worker's side of :mod:`solvers.isolated`: build a solver, then answer instances.

Imports little, so that a worker starts in a fraction of a second; the solver's own imports are
what it pays for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

from andes_opt.instance import GainTable, Instance

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from andes_opt.plan import Plan
    from andes_opt.solver import Solver


def construct(described: str | Mapping[str, Any]) -> Solver:
    """
    Build a solver from its description.

    Parameters
    ----------
    described
        Dotted path of its class, or a mapping with the path as ``_target_`` and the
        constructor's options, as the files of ``conf/solver`` are.

    Raises
    ------
    ImportError
        If there is no such class.
    """
    options = {"_target_": described} if isinstance(described, str) else dict(described)
    module, _, name = str(options.pop("_target_")).rpartition(".")
    try:
        solver_class = getattr(importlib.import_module(module), name)
    except AttributeError as error:
        raise ImportError(f"{module} has no {name}.") from error
    solver: Solver = solver_class(**options)
    return solver


def build_solver(
    message: tuple[str | Mapping[str, Any], int | None],
) -> tuple[bool, Callable[[tuple[Instance, float | None]], Plan]]:
    """
    Build the worker's solver; see :class:`andes_opt.worker_process.WorkerProcess`.

    Parameters
    ----------
    message
        The solver, as for :func:`construct`, and the memory limit in MB or None.

    Returns
    -------
    tuple[bool, Callable]
        Whether the solver is exact, and what answers an instance and its time limit.
    """
    described, memory_limit_mb = message
    solver = construct(described)
    warm_up_solver(solver)
    if memory_limit_mb is not None:
        _limit_memory(memory_limit_mb)

    def answer(asked: tuple[Instance, float | None]) -> Plan:
        instance, time_limit_s = asked
        return solver.solve(instance, time_limit_s=time_limit_s)

    return bool(solver.exact), answer


def warm_up_solver(solver: Solver) -> None:
    """
    Solve two tiny instances, so that compilation is over before the first deadline runs.

    Parameters
    ----------
    solver
        The solver. What it raises is ignored: the first real call will tell.
    """
    for exactly in (False, True):
        gains = GainTable([[1.0, 2.0, 1.5], [0.9, 1.8, 1.4]], 1)
        weights = np.array([3, 5, 4], dtype=np.int64)
        try:
            solver.solve(Instance(weights, 8, 1, 2, gains, exactly=exactly), time_limit_s=None)
        except Exception:
            continue


def _limit_memory(limit_mb: int) -> None:
    """Refuse allocations beyond what the process has mapped already plus the limit."""
    import resource

    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    limit = mapped + limit_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
