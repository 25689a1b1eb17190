"""PuLP models for command-line MIP solvers: CBC and HiGHS, one program per batch size."""

from __future__ import annotations

import math
import os
import re
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from andes_opt.plan import TOLERANCE_MIP
from solvers.backend import check_options, load_back_end, scale_exponent, unscaled_bound
from solvers.knapsack import Answer, sweep_knapsacks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from numpy.typing import NDArray

    from andes_opt.instance import Instance
    from andes_opt.plan import Plan
    from solvers.knapsack import Knapsack

_REQUIREMENT = "pulp>=3.3,<4"

#: Who changes the path of this process's children.
_LIBRARY_PATH = threading.Lock()

#: CBC takes a solution only if it is better by its cutoff increment, 1e-5 by default, and
#: prints bounds to three decimals.
_CBC_GAP = 1e-3
#: HiGHS prints bounds to twelve digits; its absolute gap is set to zero.
_HIGHS_GAP = 1e-6
_NUMBER = r"([-+]?(?:\d[\d.]*(?:[eE][-+]?\d+)?|inf))"

#: Seconds that starting the executable and reading its files back take beside its own time
#: limit: a constant, and a part per request.
_OVERHEAD_S = 0.004
_OVERHEAD_PER_REQUEST_S = 15e-6


class PulpCbc:
    """
    CBC, the COIN-OR branch and cut code bundled with PuLP, in a process of its own.

    Use it where PuLP is the house standard, and as the fastest of the open MIP codes here: 20 ms
    per batch size at 50 requests, 50 ms at 200, 0.15 s at a thousand, process start included. It
    certifies to 1e-6, on objectives scaled to 1e4: unscaled, its cutoff increment has
    returned "optimal" plans that were 6e-5 off. Its limits: everything passes through files (15
    to 25 ms at a thousand requests, where limits below that end before the process starts),
    and its clock is looked at between nodes and cut rounds, so that short time limits are
    missed by some 20 ms, and more where the machine is slow to start processes.

    Parameters
    ----------
    threads
        CBC's threads, >= 1.
    seed
        Random seed.
    presolve
        Whether CBC presolves the model.
    relative_gap
        Gap at which a batch size counts as solved; the solver is exact up to 1e-6.

    Raises
    ------
    ImportError
        If PuLP or its CBC is missing.
    ValueError
        If an option is out of range.
    """

    def __init__(
        self,
        *,
        threads: int = 1,
        seed: int = 0,
        presolve: bool = True,
        relative_gap: float = 0.0,
    ) -> None:
        check_options(threads=threads, seed=seed, relative_gap=relative_gap)
        self._executable = _executable(_import_pulp().PULP_CBC_CMD.pulp_cbc_path, _REQUIREMENT)
        self.threads = threads
        self.seed = seed
        self.presolve = presolve
        self.relative_gap = relative_gap

    @property
    def exact(self) -> bool:
        """True up to a ``relative_gap`` of 1e-6, which is what MIP back-ends certify."""
        return self.relative_gap <= TOLERANCE_MIP

    def solve(self, instance: Instance, *, time_limit_s: float | None = None) -> Plan:
        """Solve an instance; see :class:`andes_opt.solver.Solver`."""
        return sweep_knapsacks(
            instance, self._pack, tolerance=TOLERANCE_MIP, time_limit_s=time_limit_s
        )

    def _pack(self, knapsack: Knapsack, cutoff: float, time_left_s: float | None) -> Answer:
        def command(pulp: ModuleType, folder: Path, limit_s: float | None) -> Any:
            return pulp.COIN_CMD(
                path=self._executable,
                msg=False,
                timeLimit=limit_s,
                presolve=self.presolve,
                # "threads 1" would start a second thread and wait for it.
                threads=self.threads if self.threads > 1 else None,
                options=[
                    f"ratio {self.relative_gap}",
                    "allow 0",
                    # CBC reads 0 as "the time of day".
                    f"randomSeed {self.seed + 1}",
                    f"randomCbcSeed {self.seed + 1}",
                ],
                logPath=str(folder / "log"),
            )

        def bound(log: str) -> float:
            # Only where it stopped early; most other lines state the negated objective.
            found = re.search(rf"^Upper bound:\s+{_NUMBER}", log, re.MULTILINE)
            return float(found.group(1)) if found else math.inf

        return _pack_with(knapsack, command, bound, _CBC_GAP, self.relative_gap, time_left_s)


class PulpHighs:
    """
    HiGHS as an executable (``highsbox``), driven by PuLP.

    Use it for the current HiGHS beside OR-Tools: highspy and OR-Tools can't share a process,
    an executable can. SciPy's HiGHS (``highs``) is often an older version; otherwise the two
    solve the same model, and ``highs`` saves the files. It certifies to 1e-6. Its limits:
    those of ``highs``, presolve and clock included, plus 10 ms to start a process and
    15 to 25 ms for files at a thousand requests.

    Parameters
    ----------
    threads
        HiGHS' threads, >= 1.
    seed
        Random seed.
    presolve
        Whether HiGHS presolves the model.
    relative_gap
        Gap at which a batch size counts as solved; the solver is exact up to 1e-6.

    Raises
    ------
    ImportError
        If PuLP or highsbox is missing.
    ValueError
        If an option is out of range.
    """

    def __init__(
        self,
        *,
        threads: int = 1,
        seed: int = 0,
        presolve: bool = False,
        relative_gap: float = 0.0,
    ) -> None:
        check_options(threads=threads, seed=seed, relative_gap=relative_gap)
        _import_pulp()
        highsbox = load_back_end("highsbox", "highsbox>=1.8")
        self._executable = _executable(highsbox.highs_bin_path(), "highsbox>=1.8")
        self._library = str(highsbox.highs_lib_dir())
        self.threads = threads
        self.seed = seed
        self.presolve = presolve
        self.relative_gap = relative_gap

    @property
    def exact(self) -> bool:
        """True up to a ``relative_gap`` of 1e-6, which is what MIP back-ends certify."""
        return self.relative_gap <= TOLERANCE_MIP

    def solve(self, instance: Instance, *, time_limit_s: float | None = None) -> Plan:
        """Solve an instance; see :class:`andes_opt.solver.Solver`."""
        return sweep_knapsacks(
            instance, self._pack, tolerance=TOLERANCE_MIP, time_limit_s=time_limit_s
        )

    def _pack(self, knapsack: Knapsack, cutoff: float, time_left_s: float | None) -> Answer:
        def command(pulp: ModuleType, folder: Path, limit_s: float | None) -> Any:
            return pulp.HiGHS_CMD(
                path=self._executable,
                msg=False,
                timeLimit=limit_s,
                # As options in the file: PuLP's own `threads` would turn on parallel mode.
                options=[
                    f"threads={self.threads}",
                    f"parallel={'on' if self.threads > 1 else 'off'}",
                    f"random_seed={self.seed}",
                    f"presolve={'on' if self.presolve else 'off'}",
                    f"mip_rel_gap={self.relative_gap}",
                    "mip_abs_gap=0",
                ],
                logPath=str(folder / "log"),
            )

        def bound(log: str) -> float:
            found = re.search(rf"^\s+Dual bound\s+{_NUMBER}", log, re.MULTILINE)
            return float(found.group(1)) if found else math.inf

        with _library_path(self._library):
            return _pack_with(knapsack, command, bound, _HIGHS_GAP, self.relative_gap, time_left_s)


def _pack_with(
    knapsack: Knapsack,
    command: Callable[[ModuleType, Path, float | None], Any],
    bound_in_log: Callable[[str], float],
    absolute_gap: float,
    relative_gap: float,
    time_left_s: float | None,
) -> Answer:
    """
    Pose the knapsack in PuLP, run a solver's executable on it, read answer and bound.

    PuLP hands on neither the bound nor, in ``status``, whether a time limit struck: the bound
    is in the solver's log, the truth in ``sol_status``.
    """
    started = time.perf_counter()
    pulp = _import_pulp()
    exponent = scale_exponent(knapsack.profits)
    problem, columns = _model(pulp, knapsack, np.ldexp(knapsack.profits, exponent))
    built = time.perf_counter()
    limit_s = None
    if time_left_s is not None:
        limit_s = time_left_s - (built - started)
        limit_s -= _OVERHEAD_S + _OVERHEAD_PER_REQUEST_S * knapsack.size
        if limit_s <= 0:  # the process would not even start in time
            return Answer(None, math.inf, built - started)

    # The folder goes with whatever is in it, also when PuLP raises half-way.
    with tempfile.TemporaryDirectory(prefix="andes-opt-") as folder:
        if " " in folder:
            raise RuntimeError(
                f"PuLP can't work in {folder!r}: set TMPDIR to one without a blank in its name."
            )
        solver = command(pulp, Path(folder), limit_s)
        solver.tmpDir = folder
        try:
            problem.solve(solver)
            log = Path(folder, "log").read_text(errors="replace")
        except (pulp.PulpSolverError, OSError) as error:
            raise RuntimeError(f"{solver.path} failed on a model: {error}") from error

    found = problem.sol_status in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible)
    values = np.array([column.varValue or 0.0 for column in columns]) if found else None
    scaled = bound_in_log(log)
    if values is not None and problem.sol_status == pulp.LpSolutionOptimal and math.isinf(scaled):
        scaled = float(np.ldexp(knapsack.profits, exponent) @ np.rint(values))
        scaled += relative_gap / (1 - relative_gap) * abs(scaled)
    return Answer(
        values,
        unscaled_bound(scaled, exponent, knapsack.size, absolute_slack=absolute_gap),
        built - started,
        time.perf_counter() - built,
    )


def _model(
    pulp: ModuleType, knapsack: Knapsack, profits: NDArray[np.float64]
) -> tuple[Any, list[Any]]:
    problem = pulp.LpProblem("step", pulp.LpMaximize)
    # PuLP 3.3.2 deprecates the constructor that 3.3.0 has alone.
    variable = getattr(problem, "add_variable", pulp.LpVariable)
    columns = [variable(f"x{column}", cat="Binary") for column in range(knapsack.size)]
    problem += pulp.LpAffineExpression(zip(columns, profits.tolist(), strict=True))
    used = pulp.LpAffineExpression(zip(columns, knapsack.weights.tolist(), strict=True))
    problem += used <= knapsack.capacity
    count = pulp.LpAffineExpression((column, 1) for column in columns)
    problem += count == knapsack.slots if knapsack.exactly else count <= knapsack.slots
    return problem, columns


def _import_pulp() -> ModuleType:
    """
    PuLP without highspy.

    PuLP imports highspy wherever it is installed, and highspy and OR-Tools in one
    process crash each other: both bring a libhighs.so.1.
    """
    if "pulp" in sys.modules or "highspy" in sys.modules:
        return load_back_end("pulp", _REQUIREMENT)
    sys.modules["highspy"] = None  # type: ignore[assignment]  # makes its import fail
    try:
        return load_back_end("pulp", _REQUIREMENT)
    finally:
        del sys.modules["highspy"]


def _executable(path: str, requirement: str) -> str:
    if not os.access(path, os.X_OK):
        raise ImportError(f"{path} is no executable; pip install '{requirement}' provides it.")
    return str(path)


@contextmanager
def _library_path(folder: str) -> Iterator[None]:
    """
    Let child processes find shared libraries in a folder.

    Some highsbox wheels look for libhighs.so in the wrong place. The loader of this process
    read its own path when it started; only children see the change.
    """
    # One call at a time: threads would put back each other's changes.
    with _LIBRARY_PATH:
        before = os.environ.get("LD_LIBRARY_PATH")
        os.environ["LD_LIBRARY_PATH"] = folder if not before else f"{folder}{os.pathsep}{before}"
        try:
            yield
        finally:
            if before is None:
                del os.environ["LD_LIBRARY_PATH"]
            else:
                os.environ["LD_LIBRARY_PATH"] = before
