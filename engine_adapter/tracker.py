"""
What the adapter knows about each request and its reader, incrementally.

An array holds a record per request (:class:`TrackedRequest`), in order of arrival. An iteration
touches only the requests that ran. The other readers are brought up to date when a snapshot is
taken; that is exact, because what a reader digests between two tokens has a closed form
(:func:`andes_opt.qoe.advance`). The compiled functions at the bottom do the work: a snapshot of
80 requests has to take no more than about 100 microseconds of the engine's thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from andes_opt.compilation import jit
from andes_opt.request_state import (
    PREEMPTED,
    RUNNING,
    WAITING,
    RequestState,
    area_scores,
    blocks_for,
    columns,
    deliver,
    prompt_s,
    read_on,
    records,
    show,
    snapshot_of,
    to_restore,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from andes_opt.latency import LatencyModel
    from andes_opt.qoe import QoETarget
    from andes_opt.snapshot import Snapshot, State


class TrackedRequest(RequestState):
    """A request of a live engine."""

    longest_tokens: int  # of the prompt and the longest reply allowed
    context_tokens: int  # of the prompt and the reply so far
    steerable: bool  # policies may decide about it
    alive: bool  # False: it has left, and its record is unused


class ReaderTracker:
    """
    State of all unfinished requests, ready to be shown to a policy.

    Parameters
    ----------
    block_tokens
        Tokens of a KV block.
    lookahead_tokens
        Tokens beyond the context that the engine reserves for each request.
    room
        Requests to make room for at first.

    Attributes
    ----------
    seen, preemptions_seen
        Requests and preemptions since the start.
    """

    def __init__(self, block_tokens: int, lookahead_tokens: int = 0, room: int = 256) -> None:
        self.block_tokens = block_tokens
        self.lookahead_tokens = lookahead_tokens
        self.seen = 0
        self.preemptions_seen = 0
        self._place: dict[str, int] = {}  # key -> place of the record
        self._keys: list[str] = []  # place -> key, also of requests that left
        self._requests = records(TrackedRequest, max(1, room))

    def __len__(self) -> int:
        return len(self._place)

    def __contains__(self, key: str) -> bool:
        return key in self._place

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._place))

    def add(
        self,
        key: str,
        arrival_s: float,
        prompt_tokens: int,
        longest_tokens: int,
        target: QoETarget,
        *,
        steerable: bool = True,
    ) -> int:
        """
        Start to track a request.

        Parameters
        ----------
        key
            The engine's id, not tracked yet.
        arrival_s
            Arrival on the engine's clock.
        prompt_tokens, longest_tokens
            Length of the prompt, and of prompt and longest reply together.
        target
            The reader's target.
        steerable
            False for a request that no policy may decide about yet.

        Returns
        -------
        int
            Its number, increasing with each request.
        """
        if len(self._keys) == self._requests.size:
            self._make_room()
        place = len(self._keys)
        self._keys.append(key)
        self._place[key] = place
        self.seen += 1

        request = self._requests[place]
        request["request_id"] = self.seen
        request["arrival_s"] = arrival_s
        request["prompt_tokens"] = request["context_tokens"] = prompt_tokens
        request["longest_tokens"] = longest_tokens
        request["state"] = WAITING
        request["ttft_s"] = target.ttft_s
        request["tds"] = target.tds
        request["steerable"] = steerable
        request["alive"] = True
        return self.seen

    def remove(self, key: str) -> int:
        """Forget a request, and return its number. KeyError if it is not tracked."""
        request = self._requests[self._place.pop(key)]
        request["alive"] = False
        request["num_blocks"] = 0
        return int(request["request_id"])

    def mark_steerable(self, key: str, *, steerable: bool = True) -> bool:
        """
        Say whether policies may decide about a request from now on.

        Returns
        -------
        bool
            Whether that is new.

        Raises
        ------
        KeyError
            If it is not tracked.
        """
        request = self._requests[self._place[key]]
        new = bool(request["steerable"]) is not steerable
        request["steerable"] = steerable
        return new

    def qoe_area(self, key: str) -> float | None:
        """
        QoE (`area`) of a request up to its last token; None if it has none yet.

        After the reply's last token this is the reader's score.
        """
        place = self._place[key]
        if self._requests[place]["generated_tokens"] == 0:
            return None
        return float(area_scores(self._requests[place : place + 1])[0])

    def number(self, key: str) -> int:
        """Number of a tracked request; KeyError if it is not tracked."""
        return int(self._requests[self._place[key]]["request_id"])

    def need_blocks(self, key: str) -> int:
        """Blocks a request holds if it is served now: those of its context and one more."""
        request = self._requests[self._place[key]]
        return int(
            _need_blocks(
                request["context_tokens"] + self.lookahead_tokens,
                request["longest_tokens"] + self.lookahead_tokens,
                self.block_tokens,
            )
        )

    def delivered(self, keys: Sequence[str], output_tokens: Sequence[int], now_s: float) -> int:
        """
        Count what has reached the clients by now.

        Parameters
        ----------
        keys
            Requests that may have got tokens; those not tracked are left out.
        output_tokens
            Tokens each has got since its arrival.
        now_s
            Now, on the engine's clock.

        Returns
        -------
        int
            Tokens that are new.
        """
        if not keys:
            return 0
        return int(_deliver(self._requests, self._table(keys, output_tokens), now_s))

    def resident(
        self,
        keys: Sequence[str],
        computed_tokens: Sequence[int],
        context_tokens: Sequence[int],
        state: State,
    ) -> None:
        """
        Say how far requests with KV on the GPU are.

        Parameters
        ----------
        keys
            The requests; those not tracked are left out.
        computed_tokens
            Tokens whose KV is there or being computed.
        context_tokens
            Prompt and reply so far.
        state
            RUNNING or HELD.
        """
        if keys:
            table = self._table(keys, computed_tokens, context_tokens)
            _update_resident(self._requests, table, int(state), self.block_tokens)

    def preempted(self, key: str, context_tokens: int, preemptions: int) -> None:
        """
        Say that the KV of a request was taken away.

        Parameters
        ----------
        key
            The request; ignored if it is not tracked.
        context_tokens
            Prompt and reply so far, all to compute again.
        preemptions
            How often that has happened to the request.
        """
        place = self._place.get(key)
        if place is None:
            return
        request = self._requests[place]
        self.preemptions_seen += max(0, preemptions - int(request["preemptions"]))
        request["preemptions"] = preemptions
        request["state"] = PREEMPTED
        request["num_blocks"] = request["computed_tokens"] = 0
        request["context_tokens"] = context_tokens

    def resident_tokens(self) -> int:
        """KV tokens that tracked requests hold, in whole blocks."""
        return int(self._requests["num_blocks"].sum()) * self.block_tokens

    def snapshot(
        self,
        now_s: float,
        *,
        capacity_tokens: int,
        max_batch: int,
        token_budget: int,
        latency: LatencyModel,
        max_candidates: int,
        cached_share: tuple[float, float] = (0.0, 0.0),
    ) -> tuple[Snapshot, list[str]]:
        """
        The engine as a policy sees it.

        Parameters
        ----------
        now_s
            Now, on the engine's clock.
        capacity_tokens, max_batch, token_budget, latency
            The engine.
        max_candidates
            Most requests to show: all that have started, then the first to arrive.
        cached_share
            Share of its tokens that the prefix cache is expected to have for a new request
            and for a preempted one.

        Returns
        -------
        tuple[Snapshot, list[str]]
            The snapshot, and the key of each of its requests.
        """
        places = _select(self._requests[: len(self._keys)], max_candidates)
        integers, reals = columns(places.size)
        _describe(
            self._requests,
            places,
            now_s,
            self.block_tokens,
            self.lookahead_tokens,
            capacity_tokens,
            token_budget,
            (latency.per_prefill_token_s, latency.mixed_base_s, latency.mixed_per_request_s),
            cached_share,
            integers,
            reals,
        )
        snapshot = snapshot_of(
            integers,
            reals,
            time_s=now_s,
            capacity_tokens=capacity_tokens,
            block_tokens=self.block_tokens,
            max_batch=max_batch,
            token_budget=token_budget,
            latency=latency,
            requests_seen=self.seen,
            preemptions_seen=self.preemptions_seen,
        )
        return snapshot, [self._keys[place] for place in places.tolist()]

    def _table(self, keys: Sequence[str], *columns: Sequence[int]) -> NDArray[np.int64]:
        """Places of requests (-1 if not tracked) and numbers about them, one row each."""
        place = self._place
        rows: list[Any] = [[place.get(key, -1) for key in keys], *columns]
        return np.array(rows, dtype=np.int64)

    def _make_room(self) -> None:
        """Close the gaps of requests that left, or double the array if there are few."""
        keep = np.flatnonzero(self._requests["alive"])
        room = self._requests.size
        requests = records(TrackedRequest, room if keep.size <= room // 2 else 2 * room)
        requests[: keep.size] = self._requests[keep]
        self._requests = requests
        self._keys = [self._keys[place] for place in keep.tolist()]
        self._place = {key: place for place, key in enumerate(self._keys)}


@jit
def _need_blocks(context: int, longest: int, block_tokens: int) -> int:
    return min(blocks_for(context, block_tokens) + 1, blocks_for(longest, block_tokens))


@jit
def _deliver(requests: Sequence[TrackedRequest], table: NDArray[np.int64], now_s: float) -> int:
    """Count delivered tokens, from rows of places and of tokens since the arrival."""
    new = 0
    for k in range(table.shape[1]):
        place, tokens = table[0, k], table[1, k]
        if place < 0 or tokens == requests[place].generated_tokens:
            continue
        request = requests[place]
        new += tokens - request.generated_tokens
        deliver(request, tokens - request.generated_tokens, now_s - request.arrival_s)
    return new


@jit
def _update_resident(
    requests: Sequence[TrackedRequest], table: NDArray[np.int64], state: int, block_tokens: int
) -> None:
    """Take over progress, from rows of places, computed tokens and context."""
    for k in range(table.shape[1]):
        place = table[0, k]
        if place < 0:
            continue
        request = requests[place]
        request.computed_tokens = table[1, k]
        request.num_blocks = blocks_for(request.computed_tokens, block_tokens)
        request.context_tokens = table[2, k]
        request.state = state
        request.steerable = True


@jit
def _select(requests: Sequence[TrackedRequest], most: int) -> NDArray[np.int64]:
    """Places of the requests to show: all that have started, then the first to arrive."""
    started = 0
    for i in range(len(requests)):
        request = requests[i]
        started += request.alive and request.steerable and request.state != WAITING
    room = max(0, most - started)

    places = np.empty(min(len(requests), started + room), dtype=np.int64)
    size = 0
    for i in range(len(requests)):
        request = requests[i]
        if not (request.alive and request.steerable):
            continue
        if request.state == WAITING:
            if room == 0:
                continue
            room -= 1
        places[size] = i
        size += 1
    return places[:size]


@jit
def _describe(
    requests: Sequence[TrackedRequest],
    places: NDArray[np.int64],
    now_s: float,
    block_tokens: int,
    lookahead_tokens: int,
    capacity_tokens: int,
    token_budget: int,
    prompt_costs_s: tuple[float, float, float],
    cached_share: tuple[float, float],
    integers: NDArray[np.int64],
    reals: NDArray[np.float64],
) -> None:
    """Bring readers up to date, and fill the columns of a snapshot."""
    running = 0
    for place in places:
        running += requests[place].state == RUNNING
    for k in range(places.size):
        request = requests[places[k]]
        read_on(request, now_s - request.arrival_s)
        blocks = _need_blocks(
            request.context_tokens + lookahead_tokens,
            request.longest_tokens + lookahead_tokens,
            block_tokens,
        )
        # A request that fills the KV on its own still has to be served one day.
        need_tokens = max(1, min(blocks * block_tokens, capacity_tokens))
        lacking = request.context_tokens - request.computed_tokens
        tokens = float(to_restore(lacking, request.generated_tokens))
        if request.state == WAITING:
            tokens *= 1.0 - cached_share[0]
        elif request.state == PREEMPTED:
            tokens *= 1.0 - cached_share[1]
        restore_s = prompt_s(tokens, token_budget, running, *prompt_costs_s)
        show(request, block_tokens, need_tokens, restore_s, k, integers, reals)
