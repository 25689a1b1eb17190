"""
Replay of recorded requests from files.

A trace is a CSV file with a header and one request per row, in columns ``arrival_s``,
``prompt_tokens``, ``output_tokens`` and, if the targets were recorded, ``ttft_s`` and ``tds``;
the rest is as :func:`andes_opt.files.csv_rows` says.

What prompts share, for engines with a prefix cache, is said by ``session`` (any text) and
``prefix_tokens``: the prompt begins with so many tokens of the session's last prompt and reply;
with all of them where ``prefix_tokens`` is empty. Without a session, or at the start of one, it
begins as all such prompts do. In their place ``prefix_of`` may name the row, counted from 0,
whose prompt and reply a prompt begins with.

A file named ``.jsonl`` has Mooncake's form: ``timestamp`` (ms), ``input_length``,
``output_length`` and perhaps ``hash_ids``, one id for each 512 tokens of the prompt, equal for
equal tokens. Files of either kind may be compressed (``.gz``).
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from andes_opt import checks
from andes_opt.files import written_whole
from andes_opt.readers import Readers, reading
from andes_opt.trace_files import read_trace
from andes_opt.workload import REQUEST_FIELDS, Requests, streams

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Trace:
    """
    Requests as recorded in a file, at their own or another rate.

    Rows are sorted by arrival (stable), since logs are often written in order of
    completion, and shifted so that the first request arrives at 0. Targets that the file
    lacks, as a column or in a cell, come from ``readers``.

    Parameters
    ----------
    path
        The file, which may be packed (``.gz``) or a pipe; what it holds is described in
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
        recorded = read_trace(self.path)
        arrival_s = np.asarray(recorded.arrival_s)
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

        prompt_tokens = np.asarray(recorded.prompt_tokens)[kept]
        ttft_s, tds = np.asarray(recorded.ttft_s)[kept], np.asarray(recorded.tds)[kept]
        prefix_of, prefix_tokens = recorded.prefixes(kept)
        _, _, reader_rng = streams(seed)
        drawn_ttft_s, drawn_tds = self.readers.sample(reader_rng, prompt_tokens)
        return Requests(
            arrival_s=arrival_s,
            prompt_tokens=prompt_tokens,
            output_tokens=np.asarray(recorded.output_tokens)[kept],
            ttft_s=np.where(np.isnan(ttft_s), drawn_ttft_s, ttft_s),
            tds=np.where(np.isnan(tds), drawn_tds, tds),
            prefix_of=prefix_of,
            prefix_tokens=prefix_tokens,
        )


def write_trace(requests: Requests, path: str | Path) -> None:
    """Write requests as a trace that :class:`Trace` reads back without loss."""
    names = list(REQUEST_FIELDS)
    columns: list[Sequence[object]] = [getattr(requests, name).tolist() for name in names]
    if (requests.prefix_of >= 0).any():
        names += ["prefix_of", "prefix_tokens"]
        columns += [
            ["" if row < 0 else row for row in requests.prefix_of.tolist()],
            requests.prefix_tokens.tolist(),
        ]
    with (
        written_whole(path) as partial,
        open(partial, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(zip(*columns, strict=True))
