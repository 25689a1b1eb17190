"""Progress bars for people, nothing for log files; and how long the JIT compiled."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from numba.core.event import install_timer
from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Iterator


def bar(total: int, description: str) -> tqdm:
    """
    Return a progress bar on standard error, silent unless that is a terminal.

    It is silent in a sweep too, whose runs would write over one another.
    """
    sweeping = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    # Without a console (pythonw, a closed descriptor) there is no standard error at all.
    watched = sys.stderr is not None and sys.stderr.isatty()
    return tqdm(total=total, desc=description, leave=False, disable=sweeping or not watched)


@dataclass(slots=True)
class Seconds:
    """A number of seconds that is still being counted."""

    value: float = 0.0


@contextmanager
def jit_seconds() -> Iterator[Seconds]:
    """Count the wall-clock seconds in which Numba compiles, or loads what it compiled before."""
    seconds = Seconds()

    def add(duration: float) -> None:
        seconds.value += duration

    with install_timer("numba:compile", add):
        yield seconds
