"""
Files of other tools as JSON values or text: whole, in lines, cut off, or with lines of other kinds.

What a file that was cut off still says counts: of a JSON document the part before the cut
(:mod:`jiter` reads it), of lines all whole ones, of a ``.gz`` what can be unpacked.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jiter

if TYPE_CHECKING:
    from collections.abc import Sequence

#: A number or a name that a cut may have shortened to another one.
_LAST_WORD = re.compile(r"[\w.+-]+\Z")
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """
    A JSON value of a file.

    Parameters
    ----------
    where
        Where it stands, for people: "line 3"; empty for all of the file.
    value
        The value.
    cut
        Whether the file ends within it.
    """

    where: str
    value: Any
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Document:
    """
    A file.

    Parameters
    ----------
    text
        All of it.
    entries
        Its JSON values, in order; none if it has none.
    unread
        Where there is something else, and why, a sentence each.
    """

    text: str
    entries: Sequence[Entry]
    unread: Sequence[str] = field(default=())


def read_document(path: str | Path) -> Document:
    """
    Read a file, plain or compressed by gzip.

    Raises
    ------
    FileNotFoundError
        If there is nothing, or a folder.
    ValueError
        If it is empty, or no text.
    """
    text, unread = _text(Path(path).expanduser(), path)
    if not text.strip():
        raise ValueError(f"{path} is empty.")
    entries, unread_lines = _entries(text)
    return Document(text, entries, [*unread, *unread_lines])


def _text(place: Path, path: str | Path) -> tuple[str, list[str]]:
    if not place.exists() or place.is_dir():
        but = ": it is a folder" if place.is_dir() else ""
        raise FileNotFoundError(f"there is no file {path}{but}.")
    content, unread = bytearray(), list[str]()
    with gzip.open(place) if place.suffix == ".gz" else open(place, "rb") as file:
        try:
            while chunk := file.read1(_CHUNK_BYTES):
                content += chunk
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            unread.append(f"what follows can't be unpacked: {error}.")
    if b"\0" in content:
        raise ValueError(f"{path} is no text: it has zero bytes.")
    try:
        return content.decode("utf-8-sig"), unread
    except UnicodeDecodeError:
        unread.append("it has bytes that are no UTF-8, read as U+FFFD.")
        return content.decode("utf-8-sig", errors="replace"), unread


def _entries(text: str) -> tuple[list[Entry], list[str]]:
    whole = _parsed(text)
    if isinstance(whole, dict):
        return [Entry("", whole)], []
    if isinstance(whole, list):
        return _of_list(whole, cut=False)
    lines = [(k, line) for k, line in enumerate(text.split("\n"), 1) if line.strip()]
    read = [(k, line, _parsed(line)) for k, line in lines]
    if any(isinstance(value, dict) and value for _, _, value in read):
        return _of_lines(read)
    start = text.lstrip()
    if start[0] not in "{[" or not (part := _before_cut(start)):
        return [], []
    why = ["the file is cut off."]
    if isinstance(part, dict):
        return [Entry("", part, cut=True)], why
    entries, unread = _of_list(part, cut=True)
    return entries, [*unread, *why]


def _of_list(values: Sequence[Any], cut: bool) -> tuple[list[Entry], list[str]]:
    """The elements of a list; with ``cut``, the file ends within the last one."""
    entries = [
        Entry(f"request {k}", value, cut and k == len(values) - 1)
        for k, value in enumerate(values)
        if isinstance(value, dict)
    ]
    others = [k for k, value in enumerate(values) if not isinstance(value, dict)]
    return entries, [f"request {k} is no JSON object." for k in others]


def _of_lines(read: Sequence[tuple[int, str, Any]]) -> tuple[list[Entry], list[str]]:
    """The values of lines; what is left of the last one, if it is cut off."""
    entries, unread = list[Entry](), list[str]()
    for number, line, value in read:
        where = f"line {number}"
        if isinstance(value, dict):
            entries.append(Entry(where, value))
            continue
        is_last = number == read[-1][0]
        part = _before_cut(line.lstrip()) if is_last and line.lstrip()[0] == "{" else None
        if isinstance(part, dict):
            entries.append(Entry(where, part, cut=True))
        unread.append(f"{where} is {'cut off' if is_last and value is None else 'no JSON object'}.")
    return entries, unread


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # also a whole number of too many digits
        return None


def _before_cut(text: str) -> Any:
    """The part of a JSON value that stands before the end of a text; None if there is none."""
    try:
        return jiter.from_json(_LAST_WORD.sub("", text).encode(), partial_mode=True)
    except ValueError:
        return None
