"""
Results of ``vllm bench serve --save-result --save-detailed``, one or several in a file.

Columns of requests, by ``vllm/benchmarks/serve.py`` and ``lib/endpoint_request_func.py`` of vLLM
0.32: ``ttfts`` and ``itls`` in seconds, the latter between chunks, which may carry several tokens;
``output_lens`` as the server counted them, 0 for a request that failed; ``start_times`` on one
clock (since 0.11), ``queue_times`` that a request waited for ``--max-concurrency``. SGLang's
``bench_serving --output-details`` writes the same columns.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from experiments.client.log import Outcome
from experiments.scoring.fields import count, number, numbers, words
from experiments.scoring.logged import LoggedReply, LoggedRun, Unread

if TYPE_CHECKING:
    from collections.abc import Iterable

    from experiments.scoring.documents import Entry

NAME = "vllm bench serve"
_COLUMNS = ("ttfts", "itls", "output_lens", "input_lens", "start_times", "errors", "latencies")


def recognises(value: Any) -> bool:
    """Whether a JSON value is a result with its requests."""
    return isinstance(value, dict) and isinstance(value.get("ttfts"), list) and "itls" in value


def hint(value: Any) -> str:
    """Say what is missing of a result without its requests; empty for anything else."""
    if isinstance(value, dict) and "mean_ttft_ms" in value and "itls" not in value:
        return f"it is a result of {NAME} without its requests: run it with --save-detailed"
    return ""


def read(entries: Iterable[Entry]) -> list[LoggedRun]:
    """
    Return a run for each result.

    Parameters
    ----------
    entries
        Values that :func:`recognises` recognises.
    """
    return [_run(entry) for entry in entries]


def _run(entry: Entry) -> LoggedRun:
    columns = {name: entry.value.get(name) for name in (*_COLUMNS, "queue_times")}
    lists = {name: list(each) for name, each in columns.items() if isinstance(each, list)}
    last = next(reversed(entry.value))
    if entry.cut and lists.get(last) and isinstance(lists[last][-1], list):
        lists[last].pop()  # the list within which the file ends
    rate = number(entry.value.get("request_rate"))
    rate = None if rate is None or rate <= 0 else rate
    if rate is None:
        # All arrive at once then, and wait for each other: that is no wish of any reader.
        lists.pop("queue_times", None)
    replies, unread = [], []
    for k in range(max(len(lists.get(name, ())) for name in _COLUMNS)):
        row = {name: each[k] for name, each in lists.items() if k < len(each)}
        try:
            replies.append(_reply(k, row))
        except Unread as why:
            unread.append(f"{entry.where}{', ' if entry.where else ''}request {k}: {why}.")
    concurrency = number(entry.value.get("max_concurrency"))
    return LoggedRun(NAME, replies, unread, 0, rate, concurrency)


def _reply(index: int, row: dict[str, Any]) -> LoggedReply:
    sent_s = number(row.get("start_times"))
    queue_s = max(0.0, number(row.get("queue_times")) or 0.0)
    tokens = count(row.get("output_lens"))
    error = words(row.get("errors"))
    common: dict[str, Any] = {
        "index": index,
        "record": f"request {index}",
        "start_s": None if sent_s is None else sent_s - queue_s,
        "send_lag_s": queue_s if "queue_times" in row else math.nan,
        "prompt_tokens": count(row.get("input_lens")),
    }
    if error or tokens == 0:
        why = error or "no token came."
        return LoggedReply(**common, outcome=Outcome.FAILED, error=why)
    return LoggedReply(**common, tokens=tokens, pieces_s=_pieces_s(row, queue_s))


def _pieces_s(row: dict[str, Any], queue_s: float) -> list[float]:
    first_s = number(row.get("ttfts"))
    gaps_s = numbers(row.get("itls"))
    if first_s is None or gaps_s is None:
        raise Unread("its ttfts or itls are missing or no numbers")
    if first_s > 0:
        return [queue_s + time_s for time_s in accumulate([first_s, *gaps_s])]
    # The server did not stream: all there is is when the reply was there.
    whole_s = number(row.get("latencies"))
    if not whole_s:
        raise Unread("it has no time to first token")
    return [queue_s + whole_s]
