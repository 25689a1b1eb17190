"""What a measurement must say about the machine it was taken on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version

from experiments.runs.environment import cpu_model


def describe() -> dict[str, object]:
    """Processor, cores, load (1, 5 and 15 minutes) and versions, for the head of a result."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "load": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "numba": version("numba"),
        "scipy": version("scipy"),
    }


def headline() -> str:
    """The description in one line."""
    facts = describe()
    return ", ".join(f"{name} {value}" for name, value in facts.items())
