"""Options of the command line that every run of a live study replaces, refused beforehand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments.configuration.errors import UsageError
from experiments.configuration.overrides import key_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: What each run sets itself, and the study's option in its place.
_SET = {"live_engine": "engine", "seed": "seeds", "load": "loads", "workload.rate": "loads"}
#: What vLLM's own scheduler does not read.
_OURS = ("policy", "solver", "objective", "live", "isolation")


def check_given(words: Iterable[str], arms: Iterable[Sequence[str]], node: str) -> None:
    """
    Refuse an option that has no effect on any run.

    Parameters
    ----------
    words
        Overrides of the command line.
    arms
        Overrides of every arm.
    node
        The study's node.

    Raises
    ------
    UsageError
        With the option, and which to set in its place.
    """
    arms = [list(arm) for arm in arms]
    for word in words:
        key = word.lstrip("+~").partition("=")[0]
        if key in _SET and (key, node) != ("live_engine", "live_fidelity"):  # compares any engine
            raise UsageError(
                f"{word} has no effect: the study sets it for each run; see {node}.{_SET[key]}."
            )
        ours = key_of(word) in _OURS
        if all(_replaced(key, arm) or (ours and "stock=true" in arm) for arm in arms):
            raise UsageError(f"{word} has no effect: every arm sets its own; see {node}.arms.")


def _replaced(key: str, arm: Iterable[str]) -> bool:
    return any(word.lstrip("+~").partition("=")[0] == key for word in arm)
