"""
The files of traces: CSV of our own columns, and Mooncake's JSON lines; plain or compressed by gzip.

Read line by line, without keeping the text in memory; a line that is wrong is named.
"""

from __future__ import annotations

import json
import math
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from andes_opt.files import csv_rows, open_text
from andes_opt.shared_prefixes import by_blocks, by_sessions

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

_REQUIRED = ("arrival_s", "prompt_tokens", "output_tokens")
_OPTIONAL = ("ttft_s", "tds", "session", "prefix_tokens", "prefix_of")

#: Tokens of a block of Mooncake's ``hash_ids`` (FAST'25 release of kvcache-ai/Mooncake).
HASH_BLOCK_TOKENS = 512
# Beyond any context window; keeps the sum over a million requests exact.
_MOST_TOKENS = 2**31


@dataclass(slots=True)
class Recorded:
    """
    The columns of a trace, in the order of the file.

    Parameters
    ----------
    arrival_s, prompt_tokens, output_tokens
        Of each request, (n,).
    ttft_s, tds
        Targets, (n,); NaN where the file gives none.
    session
        Of each request; empty for none.
    prefix_tokens
        As stated, (n,); -1 where nothing is.
    prefix_of
        Rows, (n,), counted from 0; -1 where nothing is stated.
    hash_ids
        Ids of each prompt's blocks; empty without such.
    """

    arrival_s: array[float] = field(default_factory=lambda: array("d"))
    prompt_tokens: array[int] = field(default_factory=lambda: array("q"))
    output_tokens: array[int] = field(default_factory=lambda: array("q"))
    ttft_s: array[float] = field(default_factory=lambda: array("d"))
    tds: array[float] = field(default_factory=lambda: array("d"))
    session: list[str] = field(default_factory=list)
    prefix_tokens: array[int] = field(default_factory=lambda: array("q"))
    prefix_of: array[int] = field(default_factory=lambda: array("q"))
    hash_ids: list[array[int]] = field(default_factory=list)

    def prefixes(self, kept: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """
        Returns ``prefix_of`` and ``prefix_tokens`` of some requests, places among these.

        Parameters
        ----------
        kept
            Their rows, in order of arrival, (m,).
        """
        prompt = np.asarray(self.prompt_tokens)[kept]
        if any(self.hash_ids):
            return by_blocks([self.hash_ids[i] for i in kept], HASH_BLOCK_TOKENS, prompt)
        stated = np.asarray(self.prefix_tokens)[kept]
        row = np.asarray(self.prefix_of)
        if (row >= 0).any():
            place = np.full(row.size, -1)
            place[kept] = np.arange(kept.size)
            parent = np.where(row[kept] >= 0, place[row[kept]], -1)
            return parent, np.where(parent >= 0, np.maximum(stated, 0), 0)
        output = np.asarray(self.output_tokens)[kept]
        return by_sessions([self.session[i] for i in kept], stated, prompt, output)


def read_trace(path: str | Path) -> Recorded:
    """
    Read a trace; its name says which kind it is: ``.jsonl`` or CSV, either followed by ``.gz``.

    Returns
    -------
    Recorded
        With at least one request.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is no trace; the sentence names file, line and column.
    """
    recorded = Recorded()
    json_lines = str(path).removesuffix(".gz").endswith(".jsonl")
    if json_lines:
        with open_text(path, "trace file") as file:
            _read_json(path, file, recorded)
    else:
        _read_csv(path, recorded)
    if not recorded.arrival_s:
        lacks = "is empty" if json_lines else "has a header but no requests"
        raise ValueError(f"{path} {lacks}.")
    rows = len(recorded.arrival_s)
    for number, row in enumerate(recorded.prefix_of):
        if row >= rows:
            raise ValueError(
                f"{path}, request {number}: prefix_of = {row} not understood: the file has "
                f"{rows} requests, counted from 0."
            )
    return recorded


def _read_csv(path: str | Path, recorded: Recorded) -> None:
    for where, row in csv_rows(path, _REQUIRED, _OPTIONAL, "trace file"):
        prompt_tokens = _tokens(where, "prompt_tokens", row[1])
        recorded.arrival_s.append(_seconds(where, "arrival_s", row[0]))
        recorded.prompt_tokens.append(prompt_tokens)
        recorded.output_tokens.append(_tokens(where, "output_tokens", row[2]))
        recorded.ttft_s.append(_seconds(where, "ttft_s", row[3]) if row[3] else math.nan)
        recorded.tds.append(_speed(where, row[4]) if row[4] else math.nan)
        recorded.session.append(row[5])
        stated = _whole(where, "prefix_tokens", row[6], prompt_tokens) if row[6] else -1
        recorded.prefix_tokens.append(stated)
        recorded.prefix_of.append(_whole(where, "prefix_of", row[7]) if row[7] else -1)


def _read_json(path: str | Path, file: Iterable[str], recorded: Recorded) -> None:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is no JSON: {error}.") from error
        missing = [
            name
            for name in ("timestamp", "input_length", "output_length")
            if not isinstance(row, dict) or name not in row
        ]
        if missing:
            raise ValueError(f"{where} lacks {', '.join(missing)}.")
        prompt_tokens = _tokens(where, "input_length", _text(row["input_length"]))
        milliseconds = _seconds(where, "timestamp", _text(row["timestamp"]))
        recorded.arrival_s.append(milliseconds / 1000.0)
        recorded.prompt_tokens.append(prompt_tokens)
        recorded.output_tokens.append(_tokens(where, "output_length", _text(row["output_length"])))
        recorded.ttft_s.append(math.nan)
        recorded.tds.append(math.nan)
        recorded.session.append("")
        recorded.prefix_tokens.append(-1)
        recorded.prefix_of.append(-1)
        recorded.hash_ids.append(_hash_ids(where, row.get("hash_ids"), prompt_tokens))


def _text(value: Any) -> str:
    """A JSON value as the checks of numbers take it: no truth value is a number."""
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _hash_ids(where: str, ids: Any, prompt_tokens: int) -> array[int]:
    if ids is None:
        return array("q")
    good = isinstance(ids, list) and all(
        isinstance(key, int) and not isinstance(key, bool) and 0 <= key < 2**63 for key in ids
    )
    if not good:
        raise ValueError(f"{where}, hash_ids: need a list of whole numbers >= 0.")
    blocks = -(-prompt_tokens // HASH_BLOCK_TOKENS)
    if len(ids) != blocks:
        raise ValueError(
            f"{where}, hash_ids: {len(ids)} ids for {prompt_tokens} tokens not understood: need "
            f"{blocks}, one for each {HASH_BLOCK_TOKENS} tokens."
        )
    return array("q", ids)


def _number(where: str, column: str, text: str, need: str) -> float:
    try:
        # Python reads 1_000 as a number; a CSV file that says so is more likely broken.
        value = math.nan if "_" in text else float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where}, column {column}: {text[:40]!r} not understood: need {need}.")
    return value


def _seconds(where: str, column: str, text: str) -> float:
    value = _number(where, column, text, "seconds >= 0")
    if value < 0:
        raise ValueError(f"{where}, column {column}: {text} < 0 not understood.")
    return value


def _speed(where: str, text: str) -> float:
    value = _number(where, "tds", text, "tokens/s > 0")
    if value <= 0:
        raise ValueError(f"{where}, column tds: {text} <= 0 not understood.")
    return value


def _tokens(where: str, column: str, text: str) -> int:
    value = _number(where, column, text, "a whole number >= 1")
    need = "a whole number >= 1" + (f" and <= {_MOST_TOKENS}" if value > _MOST_TOKENS else "")
    if not 1 <= value <= _MOST_TOKENS or value != int(value):
        raise ValueError(f"{where}, column {column}: {text[:40]} not understood: need {need}.")
    return int(value)


def _whole(where: str, column: str, text: str, most: int = _MOST_TOKENS) -> int:
    need = f"a whole number, 0 to {most}"
    value = _number(where, column, text, need)
    if not 0 <= value <= most or value != int(value):
        raise ValueError(f"{where}, column {column}: {text[:40]} not understood: need {need}.")
    return int(value)
