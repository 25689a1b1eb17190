"""The formats of logs there are: which one a file has is told by what is in it."""

from __future__ import annotations

from itertools import compress
from typing import TYPE_CHECKING

from experiments.scoring import aiperf, guidellm, inference_perf, token_times, vllm_bench
from experiments.scoring.documents import read_document

if TYPE_CHECKING:
    from pathlib import Path

    from experiments.scoring.documents import Document
    from experiments.scoring.logged import LoggedRun

#: Each with ``NAME``, ``recognises``, ``hint`` and ``read``; some with ``belongs`` for records that
#: are theirs only among others.
_FORMATS = (vllm_bench, guidellm, aiperf, inference_perf, token_times)
KNOWN = (
    "results of vllm bench serve (--save-result --save-detailed), GuideLLM's JSON, AIPerf's "
    "profile_export.jsonl, inference-perf's per_request_lifecycle_metrics.json, or token times in "
    "CSV or JSON (docs/score.md)"
)


def read_log(path: str | Path) -> list[LoggedRun]:
    """
    Read the log of any tool.

    Parameters
    ----------
    path
        A file, plain or compressed by gzip.

    Returns
    -------
    list[LoggedRun]
        A run for each benchmark in it, at least one, each with a reply that can be scored.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If its format is unknown, or none of its requests can be scored.
    """
    document = read_document(path)
    runs = _runs(document)
    if not runs:
        hints = (form.hint(entry.value) for form in _FORMATS for entry in document.entries)
        why = next((hint for hint in hints if hint), f"need {KNOWN}")
        raise ValueError(f"{path} not understood: {why}.")
    scored = [run for run in runs if run.replies]
    unread = [why for run in runs for why in run.unread]
    if not scored:
        first = f": {unread[0]}" if unread else "."
        raise ValueError(f"{path} has no request that can be scored{first}")
    # What could not be read stays told once, whichever benchmark it is about.
    return [scored[0].with_unread(unread), *(run.with_unread(()) for run in scored[1:])]


def _runs(document: Document) -> list[LoggedRun]:
    often = [sum(form.recognises(entry.value) for entry in document.entries) for form in _FORMATS]
    most = max(range(len(_FORMATS)), key=often.__getitem__)
    if not often[most]:
        if document.entries or not token_times.recognises_csv(token_times.header_of(document.text)):
            return []
        runs, others = token_times.read_csv(document.text), list[str]()
    else:
        form = _FORMATS[most]
        belongs = getattr(form, "belongs", form.recognises)
        own = [belongs(entry.value) for entry in document.entries]
        runs = form.read(list(compress(document.entries, own)))
        others = [
            f"{entry.where} is no record of {form.NAME}."
            for entry, is_own in zip(document.entries, own, strict=True)
            if not is_own and not entry.cut
        ]
    unread = [*runs[0].unread, *document.unread, *others]
    return [runs[0].with_unread(unread), *runs[1:]]
