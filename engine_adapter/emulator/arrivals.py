"""When each request of an emulated run arrives: at its time, or when a place becomes free."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict, deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from andes_opt.workload import Requests


class Arrivals:
    """
    The requests that are still to come.

    A prompt that begins with another request's reply can't arrive before that reply is complete.

    Parameters
    ----------
    requests
        The requests.
    concurrency
        Requests unfinished at once: a closed loop, in which the next one arrives when one
        leaves and arrival times are ignored. None for arrivals at their times.
    """

    def __init__(self, requests: Requests, concurrency: int | None = None) -> None:
        self._times_s = requests.arrival_s.tolist()
        self._needs = [
            parent if shared > requests.prompt_tokens[parent] else -1
            for parent, shared in zip(
                requests.prefix_of.tolist(), requests.prefix_tokens.tolist(), strict=True
            )
        ]
        self._next = 0  # of those that neither arrived nor wait for another
        self._unfinished = {need for need in self._needs if need >= 0}  # replies that others need
        self._blocked: defaultdict[int, list[int]] = defaultdict(list)
        self._closed = concurrency is not None
        self._due: list[tuple[float, int]] = []  # a heap
        self._ready: deque[int] = deque()  # of a closed loop: those whose reply to need is there
        for _ in range(concurrency or 0):
            self._release(0.0)

    @property
    def next_s(self) -> float:
        """When the next request arrives; infinite if none can before another one leaves."""
        if not self._closed:
            self._block()
            own = self._times_s[self._next] if self._next < len(self._times_s) else math.inf
            return min(own, self._due[0][0]) if self._due else own
        return self._due[0][0] if self._due else math.inf

    def take(self) -> int:
        """Returns the number of the request that arrives at :attr:`next_s`."""
        time_s = self.next_s
        if self._due and self._due[0][0] == time_s:
            return heapq.heappop(self._due)[1]
        self._next += 1
        return self._next - 1

    def left(self, number: int, now_s: float) -> None:
        """Say that a request has left, complete or not."""
        self._unfinished.discard(number)
        for child in self._blocked.pop(number, ()):
            if self._closed:
                self._ready.append(child)
            else:
                heapq.heappush(self._due, (max(now_s, self._times_s[child]), child))
        if self._closed:
            self._release(now_s)

    def _block(self) -> None:
        """Step over those that need a reply which is not complete."""
        while self._next < len(self._times_s) and self._needs[self._next] in self._unfinished:
            self._blocked[self._needs[self._next]].append(self._next)
            self._next += 1

    def _release(self, now_s: float) -> None:
        """Let the next request of a closed loop arrive now."""
        if self._ready:
            heapq.heappush(self._due, (now_s, self._ready.popleft()))
            return
        self._block()
        if self._next < len(self._times_s):
            heapq.heappush(self._due, (now_s, self._next))
            self._next += 1
