"""The files of a run: their names, and how each is written whole or not at all."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from andes_opt.files import written_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

ROWS, SUMMARY, ENVIRONMENT = "rows.parquet", "summary.json", "env.json"
#: Of some runs: a row per token, and a row per sample of the engine's occupancy.
TOKENS, TIMELINE = "tokens.parquet", "timeline.parquet"
#: Files of a run beside its summary that hold what it measured.
MEASURED = (f"*{ROWS}", TOKENS, TIMELINE)
#: What a file begins with that Git LFS has not fetched.
_LFS_POINTER = b"version https://git-lfs"
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

    Raises
    ------
    OSError
        If the file can't be written; nothing of it is left.
    """
    # The suffix stays, since matplotlib and polars choose the format by it.
    with written_whole(path) as partial:
        try:
            write(partial)
        except pl.exceptions.PolarsError as error:  # its name for a full disk, among others
            raise OSError(f"{path} can't be written: {error}") from error


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


def read_table(path: Path, rows: int | None = None) -> pl.DataFrame:
    """
    Return a table of a run.

    Parameters
    ----------
    path
        The file.
    rows
        How many of its first rows; None for all.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If the file is no table, is cut off, or is a pointer of Git LFS; the sentence names it.
    """
    try:
        return pl.read_parquet(path, n_rows=rows)
    except FileNotFoundError:
        raise
    except Exception as error:  # polars has a dozen kinds
        raise ValueError(f"{path} can't be read: {_what_is_wrong(path, error)}") from error


def read_json(path: Path) -> dict[str, Any]:
    """
    Return the object in a JSON file of a run.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If the file holds no JSON object; the sentence names it.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} can't be read: {_what_is_wrong(path, error)}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} can't be read: it holds no JSON object.")
    return found


def _what_is_wrong(path: Path, error: Exception) -> str:
    if path.is_file():
        with open(path, "rb") as file:
            if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                return "it is a pointer of Git LFS; git lfs pull brings the file."
    return f"{str(error).strip().splitlines()[0]}."


def printable(path: Path) -> Path:
    """Return a path as it is printed: relative to the current folder if it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
