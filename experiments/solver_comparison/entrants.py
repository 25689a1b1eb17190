"""The solvers that the portfolio asks: those of the configuration, or all that can be built."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from experiments.configuration.compose import build, groups
from experiments.configuration.errors import UsageError
from experiments.solver_comparison import compare

if TYPE_CHECKING:
    from collections.abc import Mapping

    from omegaconf import DictConfig

    from andes_opt.solver import Solver


@dataclass(frozen=True, slots=True)
class Entrant:
    """A solver under the name that rows show, and a hash of all that its answers depend on."""

    name: str
    solver: Solver
    state: str


def enter(name: str, solver: str, options: Mapping[str, Any], state: str) -> Entrant:
    """
    Return a solver of ``conf/solver`` with some options changed, as an entrant.

    Raises
    ------
    UsageError
        If there is no such solver, or it can't be built.
    """
    node = compare.solver_node(solver, options)
    digest = hashlib.sha256((state + OmegaConf.to_yaml(node)).encode()).hexdigest()
    return Entrant(name, build(node), digest[:16])


def entrants_of(config: DictConfig, state: str) -> tuple[list[Entrant], dict[str, str]]:
    """
    Return the solvers that the configuration names, or all that can be built here.

    Returns
    -------
    tuple
        The entrants; and the solvers left out for want of a back-end, with the reason.
    """
    options = config.options or {}
    if config.solvers is not None:
        compare.build_solvers(config.solvers, config.options)  # its checks of the names
    entrants, missing = [], {}
    for name in config.solvers if config.solvers is not None else groups()["solver"]:
        try:
            entrants.append(enter(name, name, options.get(name, {}), state))
        except UsageError as error:
            lacks = _missing_package(error)
            if config.solvers is not None or lacks is None:
                raise
            missing[name] = lacks
    return entrants, missing


def _missing_package(error: BaseException | None) -> str | None:
    """What the solver says about a package that it lacks; None if it is another error."""
    while error is not None:
        if isinstance(error, ImportError):
            return str(error)
        error = error.__cause__
    return None
