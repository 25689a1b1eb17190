"""Fields of other tools' records: taken if they are what they should be, else absent."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from experiments.configuration.output import visible
from experiments.scoring.logged import MOST_TOKENS

if TYPE_CHECKING:
    from collections.abc import Iterable

_MOST_ERROR_CHARACTERS = 200
_WORDS = ("message", "error_msg", "detail", "error", "type", "error_type", "code")


def at(record: Any, *paths: str) -> Any:
    """
    Return what stands in a record at the first of some dotted paths; None if at none of them.

    Parameters
    ----------
    record
        Nested dicts.
    *paths
        Names of a field in several versions of a tool.
    """
    for path in paths:
        value = record
        for name in path.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None:
            return value
    return None


def number(value: Any) -> float | None:
    """Return a finite number, given as one or as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        # Python reads 1_000 as a number; a file that says so is more likely broken.
        found = math.nan if isinstance(value, str) and "_" in value else float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def count(value: Any) -> int | None:
    """Return a whole number >= 0 that may be a number of tokens; None for anything else."""
    found = number(value)
    if found is None or found != int(found) or not 0 <= found <= MOST_TOKENS:
        return None
    return int(found)


def numbers(value: Any) -> list[float] | None:
    """Return a list of numbers; None if it is none, or one of its elements is none."""
    if not isinstance(value, list):
        return None
    found = [number(each) for each in value]
    return None if None in found else [each for each in found if each is not None]


def counts(value: Any) -> list[int] | None:
    """Return a list of numbers of tokens; None if it is none, or one of its elements is none."""
    if not isinstance(value, list):
        return None
    found = [count(each) for each in value]
    return None if None in found else [each for each in found if each is not None]


def words(error: Any) -> str:
    """Return what an error says, whatever its shape, in one line fit to be printed."""
    while isinstance(error, dict) and (inner := _first(error.get(name) for name in _WORDS)):
        error = inner
    text = error if isinstance(error, str) else "" if error is None else repr(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # Python ends a traceback with what went wrong.
    line = lines[-1] if lines and lines[0].startswith("Traceback") else " ".join(lines)
    return visible(line)[:_MOST_ERROR_CHARACTERS]


def _first(values: Iterable[Any]) -> Any:
    return next((value for value in values if value), None)
