"""
Plain logs of token times: CSV, or JSON objects, one a line or in a list.

JSON: an object per request, with ``token_times_s`` (``time_s``), a list, in seconds since the
request's arrival. CSV: a row per token or chunk, with ``request`` and ``time_s`` (our own
``tokens.parquet`` as CSV, say), or a row per request, with ``first_token_s`` and ``completion_s``.
All may have ``arrival_s``, ``tokens`` (of each time), ``output_tokens`` (of the reply),
``prompt_tokens``, ``ttft_s`` and ``tds`` (the reader's target) and ``error``.
"""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any

from experiments.client.log import Outcome
from experiments.scoring.fields import at, count, counts, number, numbers, words
from experiments.scoring.logged import LoggedReply, LoggedRun, Unread
from experiments.scoring.targets import LEAST_TDS, MOST_TARGET

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from experiments.scoring.documents import Entry

NAME = "token times"
_TIMES = ("token_times_s", "time_s")
_ENDS = ("first_token_s", "completion_s")
#: What belongs to a token, in a row of a CSV file, rather than to its request.
_OF_TOKENS = ("time_s", "tokens")
_MOST_FIELD_CHARACTERS = 2**31 - 1


def recognises(value: Any) -> bool:
    """Whether a JSON value is a request with its token times."""
    if not isinstance(value, dict):
        return False
    return (
        "token_times_s" in value
        or isinstance(value.get("time_s"), list)
        or {"completion_s", "output_tokens"} <= value.keys()
    )


def belongs(value: Any) -> bool:
    """Whether a JSON value is a request, among others with token times; it may have failed."""
    failed = isinstance(value, dict) and bool(value.get("error"))
    return recognises(value) or (failed and bool({"request", "arrival_s"} & value.keys()))


def hint(_value: Any) -> str:
    """Return nothing: no other JSON comes of the same source."""
    return ""


def read(entries: Iterable[Entry]) -> list[LoggedRun]:
    """
    Return the run of all requests.

    Parameters
    ----------
    entries
        Values that :func:`recognises` recognises.
    """
    return [_run([(entry.where or "request 0", entry.value, entry.cut) for entry in entries], ())]


def recognises_csv(header: Sequence[str]) -> bool:
    """Whether the first row of a CSV file names what a log of token times has."""
    return {"request", "time_s"} <= set(header) or {*_ENDS, "output_tokens"} <= set(header)


def read_csv(text: str) -> list[LoggedRun]:
    """
    Return the run of all rows.

    Parameters
    ----------
    text
        CSV with a header that :func:`recognises_csv` recognises.
    """
    unread = list[str]()
    rows = _rows(text, unread)
    header = next(rows)[1]
    tokens_in_rows = "time_s" in header
    records: dict[str, tuple[str, dict[str, Any]]] = {}
    for where, cells in rows:
        row = {name: cell for name, cell in zip(header, cells, strict=False) if name and cell}
        if len(cells) != len(header):
            unread.append(f"{where}: it has {len(cells)} fields, the header {len(header)}.")
        elif not tokens_in_rows:
            records[where] = (where, row)
        elif "request" not in row:
            unread.append(f"{where}: it has no request.")
        else:
            _add(records, where, row)
    return [_run([(*record, False) for record in records.values()], unread)]


def header_of(text: str) -> list[str]:
    """Return the names in the first row of a text that may be CSV."""
    return next(_rows(text, []), ("", []))[1]


def _rows(text: str, unread: list[str]) -> Iterator[tuple[str, list[str]]]:
    """The rows of a CSV file with their places; each line by itself, so that quotes end with it."""
    limit = csv.field_size_limit(_MOST_FIELD_CHARACTERS)
    try:
        for number_, line in enumerate(text.split("\n"), 1):
            try:
                cells = next(csv.reader([line.rstrip("\r")], skipinitialspace=True), [])
            except csv.Error as error:
                unread.append(f"line {number_} is not CSV: {error}.")
                continue
            cells = [cell.strip() for cell in cells]
            if any(cells):
                yield f"line {number_}", cells
    finally:
        csv.field_size_limit(limit)


def _add(records: dict[str, tuple[str, dict[str, Any]]], where: str, row: dict[str, Any]) -> None:
    """Add a row of a token to those of its request; what is about the request counts once."""
    _, record = records.setdefault(row["request"], (where, {"time_s": []}))
    for name, cell in row.items():
        if name not in _OF_TOKENS:
            record.setdefault(name, cell)
    if "time_s" in row:
        record["time_s"].append(row["time_s"])
    if "tokens" in row:
        record.setdefault("tokens", []).append(row["tokens"])


def _run(records: Sequence[tuple[str, dict[str, Any], bool]], unread: Sequence[str]) -> LoggedRun:
    """The run of some records, each with its place and whether the file ends within it."""
    replies, why_not = [], list(unread)
    for index, (where, record, cut) in enumerate(records):
        try:
            if cut:
                raise Unread("the file ends within it")
            replies.append(_reply(index, where, record))
        except Unread as why:
            why_not.append(f"{where}: {why}.")
    return LoggedRun(NAME, replies, why_not)


def _reply(index: int, where: str, record: dict[str, Any]) -> LoggedReply:
    arrival_s, ttft_s, tds = (number(record.get(name)) for name in ("arrival_s", "ttft_s", "tds"))
    common: dict[str, Any] = {
        "index": index,
        "record": where,
        "name": words(str(record.get("request", ""))),
        "start_s": arrival_s,
        "prompt_tokens": count(record.get("prompt_tokens")),
        "wanted_tokens": count(record.get("wanted_tokens")),
    }
    for name, value, least in (("ttft_s", ttft_s, 0.0), ("tds", tds, LEAST_TDS)):
        if record.get(name) is not None and (value is None or not least <= value <= MOST_TARGET):
            raise Unread(f"its {name} is no target")
    common |= {"ttft_s": ttft_s, "tds": tds}
    given, tokens = at(record, *_TIMES), count(record.get("output_tokens"))
    error = words(record.get("error"))
    if error or tokens == 0 or given == []:
        why = error or "no token came."
        return LoggedReply(**common, outcome=Outcome.FAILED, error=why)
    if given is None:
        return LoggedReply(**common, tokens=tokens, **_ends(record, tokens))
    times_s = numbers(given)
    if times_s is None:
        raise Unread("a token time is no number of seconds")
    of_pieces = counts(record["tokens"]) if isinstance(record.get("tokens"), list) else None
    if record.get("tokens") is not None and of_pieces is None:
        raise Unread("its tokens are no list of whole numbers")
    if of_pieces is not None and len(of_pieces) != len(times_s):
        raise Unread("it has not as many token counts as times")
    order = sorted(range(len(times_s)), key=times_s.__getitem__)
    pieces_s = [times_s[k] for k in order]
    piece_tokens = None if of_pieces is None else [of_pieces[k] for k in order]
    return LoggedReply(**common, tokens=tokens, pieces_s=pieces_s, piece_tokens=piece_tokens)


def _ends(record: dict[str, Any], tokens: int | None) -> dict[str, Any]:
    """First and last time of a reply, as fields of :class:`LoggedReply`."""
    first_s, last_s = (number(record.get(name)) for name in _ENDS)
    if tokens is None or last_s is None:
        raise Unread("it has neither token times nor completion_s and output_tokens")
    if first_s is None:
        return {"last_s": last_s}
    return {"pieces_s": [first_s] if tokens == 1 else [first_s, last_s]}
