"""
What the adapters of third-party back-ends share: loading, scaling, honest bounds.

A back-end works with tolerances of its own. So objectives are scaled to the range in which
these tolerances are small, scale factors are powers of two (scaling is free of rounding), and
what a back-end proves is widened by what its tolerances may hide before it is believed.
"""

from __future__ import annotations

import importlib
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from andes_opt import checks

if TYPE_CHECKING:
    from types import ModuleType

    from numpy.typing import NDArray

#: Largest |objective coefficient| that MIP back-ends see. Their absolute tolerances (1e-6 and
#: the like; CBC's cutoff increment) are then below 1e-9 of one request's gain.
_LARGEST_COEFFICIENT = 1e4
#: Gains are scaled by at most this power of two, and at least by its inverse.
_MOST_SHIFT = 1000
#: CP-SAT's "no limit".
CP_SAT_FREE = 2**62
#: Back-ends with integer objectives add these up in 64 bits and report them as doubles.
_INTEGER_BITS = 53


def load_back_end(module: str, requirement: str) -> ModuleType:
    """
    Import a back-end when a solver is constructed, not when its file is.

    Parameters
    ----------
    module
        Dotted name of the module.
    requirement
        What to install if it is missing, as pip takes it.

    Raises
    ------
    ImportError
        With one sentence that names what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module} can't be imported ({error}); pip install '{requirement}' provides it."
        ) from error


def new_cp_solver(
    cp_model: ModuleType, *, threads: int, seed: int, presolve: bool, relative_gap: float
) -> Any:
    """
    A solver of OR-Tools' CP-SAT with the options that ours have.

    Parameters
    ----------
    cp_model
        The module ``ortools.sat.python.cp_model``.
    threads, seed, presolve, relative_gap
        As for :class:`solvers.cp_sat.CpSat`.
    """
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = threads
    solver.parameters.random_seed = seed
    solver.parameters.cp_model_presolve = presolve
    solver.parameters.relative_gap_limit = relative_gap
    # Ctrl-C is for Python: CP-SAT would hand back what it has as if nothing had happened.
    solver.parameters.catch_sigint_signal = False
    return solver


def check_options(*, threads: int = 1, seed: int = 0, relative_gap: float = 0.0) -> None:
    """
    Refuse options that no back-end understands.

    Parameters
    ----------
    threads
        Threads, >= 1.
    seed
        Random seed, 0 <= seed < 2**31.
    relative_gap
        Gap at which a back-end may stop, 0 <= gap < 1.

    Raises
    ------
    ValueError
        If one of them is out of range.
    """
    checks.whole("threads", threads, 1)
    if not 0 <= seed < 2**31:
        raise ValueError(f"seed = {seed} not understood: need 0 <= seed < 2**31.")
    if not 0 <= relative_gap < 1:
        raise ValueError(f"relative_gap = {relative_gap} not understood: need 0 <= gap < 1.")


def scale_exponent(profits: NDArray[np.float64]) -> int:
    """
    Power of two that brings the largest |profit| as close to 1e4 as it can from below.

    Parameters
    ----------
    profits
        Objective coefficients, (k,).
    """
    largest = float(np.abs(profits).max(initial=0.0))
    if largest == 0.0:
        return 0
    ratio = _LARGEST_COEFFICIENT / largest
    return _clip(math.floor(math.log2(ratio)) if math.isfinite(ratio) else _MOST_SHIFT)


def unscaled_bound(
    scaled: float, exponent: int, num_requests: int, *, absolute_slack: float
) -> float:
    """
    A MIP back-end's bound in units of gain, widened by what its tolerances may hide.

    Parameters
    ----------
    scaled
        The bound, in scaled units.
    exponent
        The objective's :func:`scale_exponent`.
    num_requests
        Columns of the model, k. Each may carry a reduced cost that is off by the dual
        tolerance, 1e-7.
    absolute_slack
        The back-end's own absolute tolerance on the objective, in scaled units.
    """
    if not math.isfinite(scaled):
        return math.inf
    slack = absolute_slack + 1e-7 * num_requests + 1e-11 * abs(scaled)
    return math.ldexp(scaled + slack, -exponent)


def integer_profits(profits: NDArray[np.float64]) -> tuple[NDArray[np.int64], int]:
    """
    Profits rounded to integers at the largest power of two with sum |integer| < 2**53.

    Each integer is at most half a unit off, so k of them hide at most k / 2 units; see
    :func:`integer_bound`.

    Parameters
    ----------
    profits
        Objective coefficients, (k,).

    Returns
    -------
    integers, exponent
        ``integers`` = round(profits * 2**exponent), (k,).
    """
    total = float(np.abs(profits).sum())
    if total == 0.0:
        return np.zeros(profits.size, dtype=np.int64), 0
    exponent = _clip(_INTEGER_BITS - 1 - math.floor(math.log2(total)))
    while total * 2.0**exponent + profits.size / 2 >= 2.0**_INTEGER_BITS:
        exponent -= 1
    return np.rint(np.ldexp(profits, exponent)).astype(np.int64), exponent


def integer_floor(cutoff: float, exponent: int, num_requests: int) -> int:
    """
    What a selection reaches in integer units if it is worth more than a cutoff.

    However its gains were rounded, so that nothing is lost by demanding it.

    Parameters
    ----------
    cutoff
        In units of gain.
    exponent
        As :func:`integer_profits` gave it.
    num_requests
        How many requests a selection may hold at most.

    Returns
    -------
    int
        ``-CP_SAT_FREE`` if the cutoff is out of range.
    """
    with np.errstate(over="ignore"):
        scaled = float(np.ldexp(cutoff, exponent))
    if not abs(scaled) < CP_SAT_FREE:
        return -CP_SAT_FREE
    return math.floor(scaled) - num_requests // 2 - 1


def integer_bound(bound: int, exponent: int, num_requests: int) -> float:
    """
    Upper bound in units of gain from one in integer units: rounding slack added.

    Parameters
    ----------
    bound
        The bound on the sum of integers.
    exponent
        As :func:`integer_profits` gave it.
    num_requests
        How many requests a selection may hold at most.
    """
    # One more unit for the conversion to a double, which may round down.
    return math.ldexp(bound + num_requests / 2 + 1, -exponent)


def _clip(exponent: int) -> int:
    """Keep 2**exponent and 2**-exponent finite and normal."""
    return max(-_MOST_SHIFT, min(_MOST_SHIFT, exponent))
