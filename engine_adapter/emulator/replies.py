"""What has reached the readers of an emulated run, and what it is worth."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from andes_opt import qoe
from andes_opt.qoe import QoETarget

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from andes_opt.workload import Requests


@dataclass(slots=True)
class Reply:
    """A reply under way: vLLM's request, and when each token came (virtual time)."""

    number: int
    arrival_s: float
    request: Any
    times_s: list[float] = field(default_factory=list)


class Replies:
    """
    The replies of a run. Token times are kept while a reply is under way, and scored at its end.

    Parameters
    ----------
    requests
        The requests.
    record_tokens
        Whether to keep all token times.

    Attributes
    ----------
    active
        Request id to its reply, of those under way.
    finished
        Requests that have left: complete, rejected or given up.
    arrival_s, first_token_s, completion_s, qoe, preemptions, tokens, rejected
        (n,) each; ``qoe`` (n, 3): area, delay, window. Of requests that have left.
    """

    def __init__(self, requests: Requests, record_tokens: bool = False) -> None:
        n = requests.num_requests
        self._requests = requests
        self.active: dict[str, Reply] = {}
        # Asked for every token, so without a way round.
        self._add: dict[str, Callable[[float], None]] = {}
        self.finished = 0
        self.arrival_s = requests.arrival_s.copy()
        self.first_token_s = np.full(n, np.nan)
        self.completion_s = np.full(n, np.nan)
        self.qoe = np.zeros((n, 3))
        self.preemptions = np.zeros(n, dtype=np.int64)
        self.tokens = requests.output_tokens.copy()
        self.rejected = np.zeros(n, dtype=np.bool_)
        self.token_times_s: list[NDArray[np.float64]] | None = None
        if record_tokens:
            self.token_times_s = [np.empty(0)] * n
        self._delivered = 0
        self._last: tuple[float, int] = (0.0, 0)  # the latest moment, and tokens at it
        self.tokens_by_last_arrival = 0

    def reject(self, number: int, now_s: float) -> None:
        """Count a request that can never fit."""
        self._arrive(number, now_s)
        self.rejected[number] = True
        self.finished += 1

    def begin(self, number: int, key: str, request: Any, now_s: float) -> None:
        """Let a request's reply begin."""
        self._arrive(number, now_s)
        reply = self.active[key] = Reply(number, now_s, request)
        self._add[key] = reply.times_s.append

    def _arrive(self, number: int, now_s: float) -> None:
        self.arrival_s[number] = now_s
        late = self._last[1] if self._last[0] > now_s else 0
        self.tokens_by_last_arrival = self._delivered - late

    def deliver(self, items: list[Any], now_s: float) -> list[int]:
        """
        Let tokens reach their readers.

        Parameters
        ----------
        items
            vLLM's outputs.
        now_s
            When.

        Returns
        -------
        list[int]
            Numbers of the requests that are complete.
        """
        add = self._add
        complete = []
        tokens = 0
        for item in items:
            key = item.request_id
            if key not in add:
                continue  # given up before
            for _ in item.new_token_ids:
                add[key](now_s)
                tokens += 1
            if item.finish_reason is not None:
                complete.append(self.end(key))
        self._delivered += tokens
        self._last = (now_s, tokens)
        return complete

    def end(self, key: str) -> int:
        """Score a reply that has got its last token, and return its number."""
        reply = self.active.pop(key)
        del self._add[key]
        number = reply.number
        self.finished += 1
        self.preemptions[number] = reply.request.num_preemptions
        times_s = np.array(reply.times_s) - reply.arrival_s
        if self.token_times_s is not None:
            self.token_times_s[number] = times_s
        if times_s.size:
            requests = self._requests
            target = QoETarget(float(requests.ttft_s[number]), float(requests.tds[number]))
            self.first_token_s[number] = times_s[0]
            self.qoe[number] = qoe.scores(times_s, target)
        if times_s.size >= self.tokens[number]:
            self.completion_s[number] = times_s[-1]
        self.tokens[number] = times_s.size
        return number
