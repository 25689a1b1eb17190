"""The files of a run: their names, and how each is written whole or not at all."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

ROWS, SUMMARY, ENVIRONMENT = "rows.parquet", "summary.json", "env.json"
#: Of some runs: a row per token, and a row per sample of the engine's occupancy.
TOKENS, TIMELINE = "tokens.parquet", "timeline.parquet"
#: Files of a run beside its summary that hold what it measured.
MEASURED = (f"*{ROWS}", TOKENS, TIMELINE)
#: Why a run failed; a run that has it is not complete.
ERROR = "error.json"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """
    Create a file by writing beside it and moving the result into place.

    Parameters
    ----------
    path
        The file.
    write
        Called with the path to write to.
    """
    # The suffix stays, since matplotlib and polars choose the format by it.
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: Mapping[str, Any], indent: int | None = 2) -> None:
    """Write strict JSON; NaN and infinities become null."""
    write_text(path, json.dumps(plain(content), indent=indent, allow_nan=False) + "\n")


def plain(value: Any, *, finite: bool = True) -> Any:
    """
    Return a value as JSON gives it back: no NumPy scalars or tuples; named tuples are objects.

    Parameters
    ----------
    value
        A number, a text, or nested mappings and sequences of them.
    finite
        Whether NaN and infinities become None; strict JSON has none, Python's has.
    """
    if hasattr(value, "_asdict"):  # a NamedTuple
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(key): plain(part, finite=finite) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part, finite=finite) for part in value]
    if hasattr(value, "item"):
        value = value.item()
    if finite and isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def listed(folder: Path, others: Iterable[Path] = ()) -> str:
    """Return the files of a folder, and those written elsewhere, a line each below a heading."""
    paths = [*sorted(path for path in folder.iterdir() if path.is_file()), *others]
    return "\n".join(["Files", *(f"  {printable(path)}" for path in paths)])


def printable(path: Path) -> Path:
    """Return a path as it is printed: relative to the current folder if it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
