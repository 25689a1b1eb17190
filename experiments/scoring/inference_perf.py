"""
inference-perf's ``per_request_lifecycle_metrics.json``: a list of requests.

By ``reportgen/base.py`` and ``apis/base.py`` of inference-perf 0.7: ``start_time``, ``end_time``
and ``output_token_times`` in seconds on one clock; the latter are those of chunks, or of tokens if
the tool counted those of each chunk. The server's count of tokens is in ``server_usage``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from experiments.client.log import Outcome
from experiments.scoring.fields import at, count, number, numbers, words
from experiments.scoring.logged import LoggedReply, LoggedRun, Unread

if TYPE_CHECKING:
    from collections.abc import Iterable

    from experiments.scoring.documents import Entry

NAME = "inference-perf"
_RESPONSE = ("info.response_metrics", "info.response_info", "info")


def recognises(value: Any) -> bool:
    """Whether a JSON value is a request."""
    return isinstance(value, dict) and {"start_time", "end_time", "info"} <= value.keys()


def hint(value: Any) -> str:
    """Say what is missing of a summary; empty for anything else."""
    if isinstance(value, dict) and {"load_summary", "successes", "failures"} <= value.keys():
        return f"it is a summary of {NAME}: set report.request_lifecycle.per_request to true"
    return ""


def read(entries: Iterable[Entry]) -> list[LoggedRun]:
    """
    Return the run of all requests.

    Parameters
    ----------
    entries
        Values that :func:`recognises` recognises.
    """
    replies, unread = list[LoggedReply](), list[str]()
    for index, entry in enumerate(entries):
        try:
            if entry.cut:
                raise Unread("the file ends within it")
            replies.append(_reply(index, entry.where, entry.value))
        except Unread as why:
            unread.append(f"{entry.where}: {why}.")
    return [LoggedRun(NAME, replies, unread)]


def _reply(index: int, where: str, record: dict[str, Any]) -> LoggedReply:
    start_s, end_s = number(record["start_time"]), number(record["end_time"])
    prompt = ("info.request_metrics.text.input_tokens", "info.input_tokens")
    common: dict[str, Any] = {
        "index": index,
        "record": where,
        "start_s": start_s,
        "prompt_tokens": count(at(record, *prompt)),
    }
    if record.get("error"):
        error = words(record["error"]) or "it failed."
        return LoggedReply(**common, outcome=Outcome.FAILED, error=error)
    if start_s is None:
        raise Unread("its start_time is no number")

    def of_reply(*names: str) -> Any:
        return at(record, *(f"{place}.{name}" for name in names for place in _RESPONSE))

    tokens = count(of_reply("server_usage.completion_tokens"))
    tokens = count(of_reply("output_tokens")) if tokens is None else tokens
    times_s = numbers(of_reply("output_token_times", "chunk_times"))
    if tokens == 0:
        return LoggedReply(**common, outcome=Outcome.FAILED, error="no token came.")
    if times_s:
        pieces_s = [time_s - start_s for time_s in times_s]
        return LoggedReply(**common, tokens=tokens, pieces_s=pieces_s)
    if tokens is None or end_s is None:
        raise Unread("it has neither token times nor a number of tokens and an end")
    # It did not stream, or does not say.
    return LoggedReply(**common, tokens=tokens, last_s=end_s - start_s)
