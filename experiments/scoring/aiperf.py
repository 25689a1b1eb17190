"""
AIPerf's ``profile_export.jsonl`` (``--export-level records``): a line per request.

By ``common/models/record_models.py`` of AIPerf 0.13: ``metadata`` with times in ns of the wall
clock, ``metrics`` by name, each a value and its unit, ``error``. ``inter_chunk_latency`` lists the
gaps between chunks with content; chunks may carry several tokens.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

from experiments.client.log import Outcome
from experiments.scoring.fields import at, count, number, numbers, words
from experiments.scoring.logged import LoggedReply, LoggedRun, Unread

if TYPE_CHECKING:
    from collections.abc import Iterable

    from experiments.scoring.documents import Entry

NAME = "AIPerf"
_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "seconds": 1.0}


def recognises(value: Any) -> bool:
    """Whether a JSON value is a record of a request."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("metrics"), dict)
        and isinstance(value.get("metadata"), dict)
    )


def belongs(value: Any) -> bool:
    """Whether a JSON value is a record, among others; one that failed may have no metrics."""
    failed = isinstance(value, dict) and bool(value.get("error"))
    return recognises(value) or (failed and isinstance(value.get("metadata"), dict))


def hint(value: Any) -> str:
    """Say what is missing of other files of the tool; empty for anything else."""
    if not isinstance(value, dict):
        return ""
    if "request_latency" in value and "time_to_first_token" in value:
        return f"it is a summary of {NAME}: its requests are in profile_export.jsonl beside it"
    if "responses" in value and "metadata" in value:
        return f"it has {NAME}'s raw responses: its requests are in profile_export.jsonl beside it"
    return ""


def read(entries: Iterable[Entry]) -> list[LoggedRun]:
    """
    Return the run of all records, those of the warm-up left out.

    Parameters
    ----------
    entries
        Values that :func:`recognises` recognises.
    """
    replies, unread, left_out = [], [], 0
    for index, entry in enumerate(entries):
        phases = [at(entry.value, f"metadata.{name}") for name in ("benchmark_phase", "phase_kind")]
        if "warmup" in phases or at(entry.value, "metadata.context_overflow_skip") is True:
            left_out += 1
            continue
        try:
            if entry.cut:
                raise Unread("the file ends within it")
            replies.append(_reply(index, entry))
        except Unread as why:
            unread.append(f"{entry.where}: {why}.")
    return [LoggedRun(NAME, replies, unread, left_out)]


def _reply(index: int, entry: Entry) -> LoggedReply:
    metadata, metrics = entry.value["metadata"], entry.value.get("metrics")
    started_ns = number(metadata.get("request_start_ns"))
    common: dict[str, Any] = {
        "index": index,
        "record": entry.where,
        "name": words(at(metadata, "x_request_id", "session_num")),
        "start_s": None if started_ns is None else started_ns * 1e-9,
        "prompt_tokens": _tokens(metrics, "usage_prompt_tokens", "input_sequence_length"),
    }
    cancelled = metadata.get("was_cancelled") is True
    error = words(entry.value.get("error")) or ("cancelled." if cancelled else "")
    # What the server counted is exact; the tool counts the reply's text again.
    names = ("usage_completion_tokens", "output_sequence_length", "output_token_count")
    tokens = _tokens(metrics, *names)
    if error or tokens == 0:
        why = error or "no token came."
        return LoggedReply(**common, outcome=Outcome.FAILED, error=why)
    return LoggedReply(**common, tokens=tokens, **_times(metrics, tokens))


def _times(metrics: dict[str, Any], tokens: int | None) -> dict[str, Any]:
    """What is known of the times of tokens, as fields of a reply."""
    first_s = _seconds(metrics.get("time_to_first_token"))
    whole_s = _seconds(metrics.get("request_latency"))
    gaps_s = _seconds(metrics.get("inter_chunk_latency"))
    if isinstance(first_s, float) and isinstance(gaps_s, list):
        return {"pieces_s": list(accumulate([first_s, *gaps_s]))}
    if tokens is None:
        raise Unread("it has neither token times nor a number of tokens")
    if isinstance(first_s, float) and tokens == 1:
        return {"pieces_s": [first_s]}
    if not isinstance(whole_s, float):
        raise Unread("it has no request_latency")
    if isinstance(first_s, float):
        return {"pieces_s": [first_s, max(first_s, whole_s)]}
    return {"last_s": whole_s}  # it did not stream, or does not say


def _tokens(metrics: dict[str, Any], *names: str) -> int | None:
    found = (count(at(metrics, f"{name}.value", name)) for name in names)
    return next((tokens for tokens in found if tokens is not None), None)


def _seconds(metric: Any) -> float | list[float] | None:
    """A metric in seconds, one or a list; None if it is absent or in another unit."""
    value, unit = at(metric, "value"), str(at(metric, "unit"))
    seconds = _SECONDS.get(unit.casefold())
    if seconds is None:
        return None
    if isinstance(value, list):
        found = numbers(value)
        return None if found is None else [each * seconds for each in found]
    one = number(value)
    return None if one is None else one * seconds
