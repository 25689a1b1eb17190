"""
Results of GuideLLM in JSON: a run for each of its benchmarks.

By ``schemas/base/request_stats.py`` and ``info.py`` of GuideLLM 0.8: requests in three lists,
``successful``, ``errored`` and ``incomplete`` (in flight when the benchmark ended), with the times
of the first and the last token and the number of tokens, not the times of those between. Versions
0.2 to 0.5 have the same under other names.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from experiments.client.log import Outcome
from experiments.scoring.fields import at, count, number, words
from experiments.scoring.logged import LoggedReply, LoggedRun, Unread

if TYPE_CHECKING:
    from collections.abc import Iterable

    from experiments.scoring.documents import Entry

NAME = "GuideLLM"
_TIMINGS = ("info.timings", "info.request_timings", "scheduler_info.request_timings")
_START = (*(f"{t}.request_start" for t in _TIMINGS), "request_start_time", "start_time")
_PLANNED = tuple(f"{t}.targeted_start" for t in _TIMINGS)
_FIRST = (
    *(f"{t}.{name}" for t in _TIMINGS for name in ("first_token_iteration", "first_iteration")),
    "first_token_time",
)
_LAST = (
    *(f"{t}.{name}" for t in _TIMINGS for name in ("last_token_iteration", "last_iteration")),
    "last_token_time",
)
_END = (*(f"{t}.request_end" for t in _TIMINGS), "request_end_time", "end_time")
_TOKENS = ("output_metrics.total_tokens", "output_metrics.text_tokens", "output_tokens")
_PROMPT = ("input_metrics.total_tokens", "input_metrics.text_tokens", "prompt_tokens")
_ERROR = ("info.error", "scheduler_info.error", "error")
_STRATEGY = ("config.strategy", "args.strategy", "scheduler.strategy", "strategy")


def recognises(value: Any) -> bool:
    """Whether a JSON value is a report with benchmarks and their requests."""
    return any("requests" in each for each in _benchmarks(value))


def hint(value: Any) -> str:
    """Say what is missing of a report without requests; empty for anything else."""
    if _benchmarks(value) and not recognises(value):
        return f"it is a report of {NAME} without its requests"
    return ""


def _benchmarks(value: Any) -> list[dict[str, Any]]:
    found = value.get("benchmarks") if isinstance(value, dict) else None
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def read(entries: Iterable[Entry]) -> list[LoggedRun]:
    """
    Return a run for each benchmark of each report.

    Parameters
    ----------
    entries
        Values that :func:`recognises` recognises.
    """
    runs = []
    for entry in entries:
        benchmarks = _benchmarks(entry.value)
        for place, benchmark in enumerate(benchmarks):
            cut = entry.cut and place == len(benchmarks) - 1
            runs.append(_run(benchmark, cut))
    return runs


def _run(benchmark: dict[str, Any], cut: bool) -> LoggedRun:
    groups = benchmark.get("requests")
    if not isinstance(groups, dict):
        groups = {"successful": groups if isinstance(groups, list) else []}
    strategy = at(benchmark, *_STRATEGY)
    rate = number(at(strategy, "rate"))
    replies, unread, index, left_out = list[LoggedReply](), list[str](), 0, 0
    lists = {name: group for name, group in groups.items() if isinstance(group, list)}
    for name, group in lists.items():
        if name == "incomplete":
            left_out += len(group)
            continue
        for place, record in enumerate(group):
            is_cut = cut and name == next(reversed(lists)) and place == len(group) - 1
            try:
                if is_cut or not isinstance(record, dict):
                    raise Unread("the file ends within it" if is_cut else "it is no object")
                where, failed = f"{name} {place}", name == "errored"
                replies.append(_reply(index, where, record, failed, rate is not None))
            except Unread as why:
                unread.append(f"{name} {place}: {why}.")
            index += 1
    streams = number(at(strategy, "streams", "max_concurrency"))
    return LoggedRun(NAME, replies, unread, left_out, rate, streams if rate is None else None)


def _reply(
    index: int, where: str, record: dict[str, Any], failed: bool, scheduled: bool
) -> LoggedReply:
    sent_s, planned_s = number(at(record, *_START)), number(at(record, *_PLANNED))
    # With a rate, requests arrive by its schedule, however late the tool sends them.
    start_s = sent_s
    if scheduled and sent_s is not None and planned_s is not None and planned_s > 0:
        start_s = min(sent_s, planned_s)
    common: dict[str, Any] = {
        "index": index,
        "record": where,
        "name": words(at(record, "request_id", "id")),
        "start_s": start_s,
        "send_lag_s": math.nan if start_s is None or sent_s is None else sent_s - start_s,
        "prompt_tokens": count(at(record, *_PROMPT)),
    }
    tokens = count(at(record, *_TOKENS))
    error = words(at(record, *_ERROR))
    if failed or tokens == 0:
        why = error or ("it failed." if failed else "no token came.")
        return LoggedReply(**common, outcome=Outcome.FAILED, error=why)
    if start_s is None or tokens is None:
        raise Unread("it has no start or no number of tokens")
    first_s, last_s = number(at(record, *_FIRST)), number(at(record, *_LAST))
    end_s = number(at(record, *_END)) if last_s is None else last_s
    if end_s is None:
        raise Unread("it has no end")
    if first_s is None:  # it did not stream, or does not say
        return LoggedReply(**common, tokens=tokens, last_s=end_s - start_s)
    pieces_s = [first_s - start_s] if tokens == 1 else [first_s - start_s, end_s - start_s]
    return LoggedReply(**common, tokens=tokens, pieces_s=pieces_s)
