"""Files: text that is read from wherever it lies, tables in CSV, and what is written whole."""

from __future__ import annotations

import csv
import gzip
import os
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import TextIO

# csv's own limit, 131,072 characters, is less than a prompt that a log may hold.
_MOST_FIELD_CHARACTERS = 2**31 - 1


@contextmanager
def open_text(path: str | Path, what: str = "file") -> Iterator[TextIO]:
    """
    Open a text file: UTF-8, with or without a byte-order mark.

    Pipes (``<(zcat FILE)``) are read like files, ``.gz`` is unpacked, ``~`` is one's own folder.

    Parameters
    ----------
    path
        Where it lies.
    what
        What a message calls it.

    Raises
    ------
    FileNotFoundError
        If there is nothing, or a folder.
    ValueError
        If what is read in the block is no UTF-8 or not whole; the sentence names it.
    """
    place = Path(path).expanduser()
    if not place.exists() or place.is_dir():
        but = ": it is a folder" if place.is_dir() else ""
        raise FileNotFoundError(f"there is no {what} {path}{but}.")
    opener = gzip.open if place.suffix == ".gz" else open
    try:
        with opener(place, "rt", newline="", encoding="utf-8-sig") as file:
            yield file
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason}.") from error
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path} can't be unpacked: {error}.") from error


def csv_rows(
    path: str | Path, required: Sequence[str], optional: Sequence[str] = (), what: str = "file"
) -> Iterator[tuple[str, list[str]]]:
    """
    Yield the rows of a CSV file that has a header.

    Columns may stand in any order and others are ignored; any line ends; rows without any content
    (Excel's ``,,``) are passed over, and so are empty cells after a row's end.

    Parameters
    ----------
    path, what
        As for :func:`open_text`.
    required, optional
        Names of columns.

    Yields
    ------
    str
        The row's place: file and line.
    list[str]
        Its cells, of the required columns and then the optional ones, without blanks around; ""
        for an optional column that the file lacks.

    Raises
    ------
    FileNotFoundError, ValueError
        As :func:`open_text`; if a column is missing or named twice, or a row has not as many
        fields as the header.
    """
    limit = csv.field_size_limit(_MOST_FIELD_CHARACTERS)
    try:
        with open_text(path, what) as file:
            yield from _rows(path, file, required, optional)
    finally:
        csv.field_size_limit(limit)


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """
    Let a file appear whole or not at all: what the block writes beside it is moved into its place.

    Yields
    ------
    Path
        Where to write; it has the suffix of the file. It is gone after the block.
    """
    path = Path(path)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _rows(
    path: str | Path, file: Iterable[str], required: Sequence[str], optional: Sequence[str]
) -> Iterator[tuple[str, list[str]]]:
    # Strict, since a quote that is never closed would hide all rows after it in one cell.
    reader = csv.reader(file, skipinitialspace=True, strict=True)
    header: list[str] | None = None
    named, index = 0, list[int | None]()
    try:
        for raw in reader:
            where = f"{path}, line {reader.line_num}"
            cells = [cell.strip() for cell in raw]
            if not any(cells):
                continue
            if header is None:
                header = cells
                named = max(k for k, name in enumerate(header, start=1) if name)
                index = _column_index(where, header, required, optional)
                continue
            while len(cells) > len(header) and not cells[-1]:
                cells.pop()
            if not named <= len(cells) <= len(header):
                at = f", column {header[len(cells)]}" if len(cells) < named else ""
                raise ValueError(
                    f"{where}{at}: the row has {len(cells)} fields, the header {len(header)}."
                )
            yield where, [cells[i] if i is not None else "" for i in index]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num} is not CSV: {error}.") from error
    if header is None:
        raise ValueError(f"{path} is empty; need a header with {', '.join(required)}.")


def _column_index(
    where: str, header: list[str], required: Sequence[str], optional: Sequence[str]
) -> list[int | None]:
    missing = [name for name in required if name not in header]
    if missing:
        found = ", ".join(header)
        raise ValueError(f"{where} lacks column {', '.join(missing)}; found {found[:200]}.")
    columns = [*required, *optional]
    for name in columns:
        if header.count(name) > 1:
            raise ValueError(f"{where} names column {name} {header.count(name)} times.")
    return [header.index(name) if name in header else None for name in columns]
