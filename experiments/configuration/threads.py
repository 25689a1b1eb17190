"""How many threads numerical libraries use, set before they are imported."""

from __future__ import annotations

import os

#: Variables that set how many threads numerical libraries use.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "POLARS_MAX_THREADS",
)


#: Those of them that :func:`limit_threads` has set.
_limited: list[str] = []


def limit_threads() -> None:
    """
    Set one numerical thread per process, where the user has set no variable.

    Sweeps run one process per core, and timings of solvers are for one thread. Must run
    before numpy is imported.
    """
    for name in THREAD_VARIABLES:
        if name not in os.environ:
            os.environ[name] = "1"
            _limited.append(name)


def users_environment() -> dict[str, str]:
    """Return the environment as the user set it, for a program with threads of its own."""
    return {name: value for name, value in os.environ.items() if name not in _limited}
