"""What the readers of a log's requests expect: of a file, of the log itself, or of a population."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from andes_opt.files import csv_rows
from andes_opt.qoe import QoETarget
from andes_opt.workload import streams
from experiments.scoring.fields import number

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from andes_opt.readers import Readers
    from experiments.scoring.logged import LoggedReply

#: Targets beyond are no reader's, and their integrals no numbers: tokens/s, seconds.
LEAST_TDS, MOST_TARGET = 1e-6, 1e6


def population_targets(
    replies: Sequence[LoggedReply], readers: Readers, seed: int
) -> list[QoETarget]:
    """
    Draw a reader for each request, and take the log's own targets where it has them.

    Parameters
    ----------
    replies
        In order of arrival: the k-th gets the k-th reader, whichever log it is of.
    readers
        The population.
    seed
        Of the draw, >= 0.
    """
    prompt_tokens = np.array([max(1, reply.prompt_tokens or 1) for reply in replies])
    # As workloads do, so that a scored log has the readers of a run with the same seed.
    _, _, rng = streams(seed)
    ttft_s, tds = readers.sample(rng, prompt_tokens)
    return [
        QoETarget(
            float(ttft_s[k]) if reply.ttft_s is None else reply.ttft_s,
            float(tds[k]) if reply.tds is None else reply.tds,
        )
        for k, reply in enumerate(replies)
    ]


def file_targets(replies: Sequence[LoggedReply], path: str | Path) -> list[QoETarget]:
    """
    Read the target of each request from a CSV file with ``ttft_s`` and ``tds``.

    A column ``request`` names the request, as its log does or by its number there, from 0; without
    it the rows are in the order of the log.

    Parameters
    ----------
    replies
        In any order.
    path
        The file.

    Raises
    ------
    FileNotFoundError, ValueError
        If the file can't be read, a number is out of range, or a request has no target.
    """
    named: dict[str, QoETarget] = {}
    for row, (where, cells) in enumerate(csv_rows(path, ("ttft_s", "tds"), ("request",), "file")):
        name = cells[2] or str(row)
        if name in named:
            raise ValueError(f"{where}: request {name} has a target already.")
        named[name] = _target(where, cells[0], cells[1])
    found = []
    for reply in replies:
        target = named.get(reply.name) if reply.name else None
        target = named.get(str(reply.index)) if target is None else target
        if target is None:
            name = f" ({reply.name})" if reply.name else ""
            raise ValueError(
                f"{path} has no target for request {reply.index}{name}: need a row for each "
                f"request of the log; it has {len(named)}."
            )
        found.append(target)
    return found


def _target(where: str, ttft_s: str, tds: str) -> QoETarget:
    values = []
    for column, text in (("ttft_s", ttft_s), ("tds", tds)):
        value = number(text)
        if value is None or value > MOST_TARGET:
            raise ValueError(f"{where}, column {column}: {text[:40]!r} not understood.")
        values.append(value)
    try:
        return QoETarget(*values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
