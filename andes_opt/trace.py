"""
Replay of recorded requests from CSV files.

A trace has a header and one request per row, in columns ``arrival_s``,
``prompt_tokens``, ``output_tokens`` and, if the targets were recorded, ``ttft_s`` and
``tds``; the rest is as :func:`andes_opt.files.csv_rows` says.
"""

from __future__ import annotations

import csv
import math
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from andes_opt import checks
from andes_opt.files import csv_rows, written_whole
from andes_opt.readers import Readers, reading
from andes_opt.workload import Requests, streams

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_REQUIRED = ("arrival_s", "prompt_tokens", "output_tokens")
_OPTIONAL = ("ttft_s", "tds")
_COLUMNS = _REQUIRED + _OPTIONAL

# Beyond any context window; keeps the sum over a million requests exact.
_MOST_TOKENS = 2**31


@dataclass(frozen=True, slots=True)
class Trace:
    """
    Requests as recorded in a CSV file, at their own or another rate.

    Rows are sorted by arrival (stable), since logs are often written in order of
    completion, and shifted so that the first request arrives at 0. Targets that the file
    lacks, as a column or in a cell, come from ``readers``.

    Parameters
    ----------
    path
        The CSV file, which may be packed (``.csv.gz``) or a pipe; its columns are described in
        :mod:`andes_opt.trace`.
    rate
        If given, arrivals are scaled to this mean rate, requests per second, > 0.
    rate_scale
        Otherwise the recorded rate is multiplied by this, > 0.
    requests
        Number of requests to keep, the earliest ones, >= 1; None for all.
    readers
        Distribution of the QoE targets that the file does not give.

    Raises
    ------
    ValueError
        If a number is out of range, or both ``rate`` and ``rate_scale`` are given.
    """

    path: str | Path
    rate: float | None = None
    rate_scale: float = 1.0
    requests: int | None = None
    readers: Readers = field(default_factory=reading)

    def __post_init__(self) -> None:
        checks.positive("rate_scale", self.rate_scale)
        if self.rate is not None:
            checks.positive("rate", self.rate)
        if self.requests is not None:
            checks.whole("requests", self.requests, 1)
        if self.rate is not None and self.rate_scale != 1:
            raise ValueError(
                f"rate = {self.rate} and rate_scale = {self.rate_scale} exclude each other."
            )

    def generate(self, seed: int) -> Requests:
        """
        Read the requests; the seed is used only for targets that the file lacks.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is no trace (the sentence names file, line and column), or has fewer
            than ``requests`` requests.
        """
        arrival_s, prompt_tokens, output_tokens, ttft_s, tds = read_columns(self.path)
        found = arrival_s.size
        if self.requests is not None and self.requests > found:
            raise ValueError(f"requests = {self.requests}, but {self.path} holds {found}.")

        kept = np.argsort(arrival_s, kind="stable")[: self.requests]
        arrival_s = arrival_s[kept] - arrival_s[kept[0]]
        if self.rate is not None:
            if arrival_s[-1] == 0:
                raise ValueError(
                    f"rate = {self.rate} can't be reached: all {arrival_s.size} requests "
                    f"taken from {self.path} arrive at once."
                )
            arrival_s = arrival_s * ((arrival_s.size - 1) / arrival_s[-1] / self.rate)
        else:
            arrival_s = arrival_s / self.rate_scale

        prompt_tokens, ttft_s, tds = prompt_tokens[kept], ttft_s[kept], tds[kept]
        _, _, reader_rng = streams(seed)
        drawn_ttft_s, drawn_tds = self.readers.sample(reader_rng, prompt_tokens)
        return Requests(
            arrival_s=arrival_s,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens[kept],
            ttft_s=np.where(np.isnan(ttft_s), drawn_ttft_s, ttft_s),
            tds=np.where(np.isnan(tds), drawn_tds, tds),
        )


def read_columns(
    path: str | Path,
) -> tuple[
    NDArray[np.float64],
    NDArray[np.int64],
    NDArray[np.int64],
    NDArray[np.float64],
    NDArray[np.float64],
]:
    """
    The columns of a trace in the order of the file, read without keeping its text in memory.

    Returns
    -------
    tuple
        arrival_s, prompt_tokens, output_tokens, ttft_s, tds, (n,) each, n >= 1; NaN where
        the file gives no target.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is no trace; the sentence names file, line and column.
    """
    arrival_s, ttft_s, tds = array("d"), array("d"), array("d")
    prompt_tokens, output_tokens = array("q"), array("q")
    for where, row in csv_rows(path, _REQUIRED, _OPTIONAL, "trace file"):
        arrival_s.append(_seconds(where, "arrival_s", row[0]))
        prompt_tokens.append(_tokens(where, "prompt_tokens", row[1]))
        output_tokens.append(_tokens(where, "output_tokens", row[2]))
        ttft_s.append(_seconds(where, "ttft_s", row[3]) if row[3] else math.nan)
        tds.append(_speed(where, row[4]) if row[4] else math.nan)
    if not arrival_s:
        raise ValueError(f"{path} has a header but no requests.")
    return (
        np.frombuffer(arrival_s, dtype=np.float64),
        np.frombuffer(prompt_tokens, dtype=np.int64),
        np.frombuffer(output_tokens, dtype=np.int64),
        np.frombuffer(ttft_s, dtype=np.float64),
        np.frombuffer(tds, dtype=np.float64),
    )


def write_trace(requests: Requests, path: str | Path) -> None:
    """Write requests as a trace that :class:`Trace` reads back without loss."""
    columns = [getattr(requests, name).tolist() for name in _COLUMNS]
    with (
        written_whole(path) as partial,
        open(partial, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows(zip(*columns, strict=True))


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
