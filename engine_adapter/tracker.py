"""
What the adapter knows about each request and its reader, incrementally.

Two tables (reals and integers) with a column per request, in order of arrival. An iteration
touches only the requests that ran; readers who got nothing are brought up to date when a
snapshot is taken, exactly, because a reader's fluid has a closed form
(:func:`andes_opt.qoe.advance`). The compiled functions at the bottom do the work: a snapshot of
80 requests has to take no more than about 100 microseconds of the engine's thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from andes_opt.compilation import jit
from andes_opt.qoe import advance, ideal_area_capped
from andes_opt.snapshot import Snapshot, State

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from andes_opt.latency import LatencyModel
    from andes_opt.qoe import QoETarget

# Rows of the table of reals. UPDATED: when DIGESTED and AREA were brought up to date;
# TOKEN, TOKEN_AREA: time of the last token, and the area then.
_ARRIVAL, _TTFT, _TDS, _DIGESTED, _AREA, _UPDATED, _TOKEN, _TOKEN_AREA = range(8)
_REALS = 8
# Rows of the table of integers. LONGEST: prompt and the longest reply allowed; CONTEXT: prompt
# and reply so far; TO_COMPUTE: tokens to compute before the next one, beyond a normal iteration;
# STEERABLE: policies may decide about it.
(
    _NUMBER,
    _PROMPT,
    _LONGEST,
    _DELIVERED,
    _KV,
    _CONTEXT,
    _TO_COMPUTE,
    _PREEMPTIONS,
    _STATE,
    _STEERABLE,
    _ALIVE,
) = range(11)
_INTEGERS = 11

_WAITING, _PREEMPTED = int(State.WAITING), int(State.PREEMPTED)


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
        self._place: dict[str, int] = {}  # key -> column
        self._keys: list[str] = []  # column -> key, also of requests that left
        self._reals = np.zeros((_REALS, max(1, room)))
        self._integers = np.zeros((_INTEGERS, max(1, room)), dtype=np.int64)

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
        if len(self._keys) == self._reals.shape[1]:
            self._make_room()
        place = len(self._keys)
        self._keys.append(key)
        self._place[key] = place
        self.seen += 1

        reals, integers = self._reals[:, place], self._integers[:, place]
        reals[:] = 0.0
        integers[:] = 0
        reals[_ARRIVAL] = reals[_UPDATED] = arrival_s
        reals[_TTFT] = target.ttft_s
        reals[_TDS] = target.tds
        integers[_NUMBER] = self.seen
        integers[_PROMPT] = integers[_CONTEXT] = integers[_TO_COMPUTE] = prompt_tokens
        integers[_LONGEST] = longest_tokens
        integers[_STATE] = _WAITING
        integers[_STEERABLE] = steerable
        integers[_ALIVE] = 1
        return self.seen

    def remove(self, key: str) -> int:
        """Forget a request; its number comes back. KeyError if it is not tracked."""
        place = self._place.pop(key)
        self._integers[_ALIVE, place] = 0
        self._integers[_KV, place] = 0
        return int(self._integers[_NUMBER, place])

    def mark_steerable(self, key: str) -> None:
        """Say that policies may decide about a request now; KeyError if it is not tracked."""
        self._integers[_STEERABLE, self._place[key]] = 1

    def qoe_area(self, key: str) -> float | None:
        """
        QoE (`area`) of a request up to its last token; None if it has none yet.

        Whoever calls this after the last token has the reader's score.
        """
        place = self._place[key]
        tokens = int(self._integers[_DELIVERED, place])
        if tokens == 0:
            return None
        reals = self._reals[:, place]
        last_s = reals[_TOKEN] - reals[_ARRIVAL]
        ideal = ideal_area_capped(last_s, reals[_TTFT], reals[_TDS], tokens)
        return min(1.0, float(reals[_TOKEN_AREA]) / ideal) if ideal > 0 else 1.0

    def number(self, key: str) -> int:
        """Number of a tracked request; KeyError if it is not tracked."""
        return int(self._integers[_NUMBER, self._place[key]])

    def need_blocks(self, key: str) -> int:
        """Blocks a request holds if it is served now: those of its context and one more."""
        place, block = self._place[key], self.block_tokens
        context = int(self._integers[_CONTEXT, place]) + self.lookahead_tokens
        longest = int(self._integers[_LONGEST, place]) + self.lookahead_tokens
        return min(-(-context // block) + 1, -(-longest // block))

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
        table = self._table(keys, output_tokens)
        return int(_deliver(table, now_s, self._reals, self._integers))

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
            _update_resident(table, int(state), self.block_tokens, self._integers)

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
        integers = self._integers[:, place]
        self.preemptions_seen += max(0, preemptions - int(integers[_PREEMPTIONS]))
        integers[_PREEMPTIONS] = preemptions
        integers[_STATE] = _PREEMPTED
        integers[_KV] = 0
        integers[_CONTEXT] = integers[_TO_COMPUTE] = context_tokens

    def resident_tokens(self) -> int:
        """KV tokens that tracked requests hold, in whole blocks."""
        return int(self._integers[_KV, : len(self._keys)].sum())

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
        count = len(self._keys)
        places = _select(count, max_candidates, self._integers)
        integers, need, restore_s = _describe(
            places,
            now_s,
            self.block_tokens,
            self.lookahead_tokens,
            capacity_tokens,
            latency.per_prefill_token_s * (1.0 - cached_share[0]),
            latency.per_prefill_token_s * (1.0 - cached_share[1]),
            latency.per_prefill_token_s,
            self._reals,
            self._integers,
        )
        reals = self._reals[:, places]
        keys = self._keys
        return Snapshot(
            time_s=now_s,
            request_id=integers[_NUMBER],
            arrival_s=reals[_ARRIVAL],
            prompt_tokens=integers[_PROMPT],
            generated_tokens=integers[_DELIVERED],
            kv_tokens=integers[_KV],
            need_tokens=need,
            state=integers[_STATE].astype(np.int8),
            ttft_s=reals[_TTFT],
            tds=reals[_TDS],
            delivered=integers[_DELIVERED],
            digested=reals[_DIGESTED],
            area=reals[_AREA],
            preemptions=integers[_PREEMPTIONS],
            restore_s=restore_s,
            capacity_tokens=capacity_tokens,
            block_tokens=self.block_tokens,
            max_batch=max_batch,
            token_budget=token_budget,
            latency=latency,
            requests_seen=self.seen,
            preemptions_seen=self.preemptions_seen,
        ), [keys[place] for place in places.tolist()]

    def _table(self, keys: Sequence[str], *columns: Sequence[int]) -> NDArray[np.int64]:
        """Places of requests (-1 if not tracked) and numbers about them, one row each."""
        place = self._place
        rows: list[Any] = [[place.get(key, -1) for key in keys], *columns]
        return np.array(rows, dtype=np.int64)

    def _make_room(self) -> None:
        """Close the gaps of requests that left, or double the tables if there are few."""
        keep = np.flatnonzero(self._integers[_ALIVE])
        room = self._reals.shape[1]
        room = room if keep.size <= room // 2 else 2 * room
        reals = np.zeros((_REALS, room))
        integers = np.zeros((_INTEGERS, room), dtype=np.int64)
        reals[:, : keep.size] = self._reals[:, keep]
        integers[:, : keep.size] = self._integers[:, keep]
        self._reals, self._integers = reals, integers
        self._keys = [self._keys[place] for place in keep.tolist()]
        self._place = {key: place for place, key in enumerate(self._keys)}


@jit
def _blocks(context: int, longest: int, block: int) -> int:
    return min((context + block - 1) // block + 1, (longest + block - 1) // block)


@jit
def _bring_up_to_date(
    i: int, now_s: float, reals: NDArray[np.float64], integers: NDArray[np.int64]
) -> None:
    reals[_DIGESTED, i], reals[_AREA, i] = advance(
        reals[_UPDATED, i] - reals[_ARRIVAL, i],
        now_s - reals[_ARRIVAL, i],
        float(integers[_DELIVERED, i]),
        reals[_DIGESTED, i],
        reals[_AREA, i],
        reals[_TTFT, i],
        reals[_TDS, i],
    )
    reals[_UPDATED, i] = now_s


@jit
def _deliver(
    table: NDArray[np.int64],
    now_s: float,
    reals: NDArray[np.float64],
    integers: NDArray[np.int64],
) -> int:
    new = 0
    for k in range(table.shape[1]):
        i, tokens = table[0, k], table[1, k]
        if i >= 0 and tokens != integers[_DELIVERED, i]:
            _bring_up_to_date(i, now_s, reals, integers)
            reals[_TOKEN, i] = now_s
            reals[_TOKEN_AREA, i] = reals[_AREA, i]
            new += tokens - integers[_DELIVERED, i]
            integers[_DELIVERED, i] = tokens
    return new


@jit
def _update_resident(
    table: NDArray[np.int64], state: int, block: int, integers: NDArray[np.int64]
) -> None:
    for k in range(table.shape[1]):
        i, computed, context = table[0, k], table[1, k], table[2, k]
        if i < 0:
            continue
        integers[_KV, i] = (computed + block - 1) // block * block
        integers[_CONTEXT, i] = context
        integers[_TO_COMPUTE, i] = max(0, context - computed - 1)
        integers[_STATE, i] = state
        integers[_STEERABLE, i] = 1


@jit
def _select(count: int, most: int, integers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Columns to show: whoever has started, and the first arrivals of the others."""
    started = 0
    for i in range(count):
        shown = integers[_ALIVE, i] and integers[_STEERABLE, i]
        started += shown and integers[_STATE, i] != _WAITING
    room = max(0, most - started)

    places = np.empty(min(count, started + room), dtype=np.int64)
    size = 0
    for i in range(count):
        if integers[_ALIVE, i] and integers[_STEERABLE, i]:
            if integers[_STATE, i] == _WAITING:
                if room == 0:
                    continue
                room -= 1
            places[size] = i
            size += 1
    return places[:size]


@jit
def _describe(
    places: NDArray[np.int64],
    now_s: float,
    block: int,
    lookahead: int,
    capacity: int,
    new_s: float,
    preempted_s: float,
    resident_s: float,
    reals: NDArray[np.float64],
    integers: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Bring readers up to date; their integers, needs and restore times (n,)."""
    n = places.size
    chosen = np.empty((_INTEGERS, n), dtype=np.int64)
    need = np.empty(n, dtype=np.int64)
    restore_s = np.empty(n)
    for k in range(n):
        i = places[k]
        _bring_up_to_date(i, now_s, reals, integers)
        for row in range(_INTEGERS):
            chosen[row, k] = integers[row, i]
        blocks = _blocks(
            integers[_CONTEXT, i] + lookahead, integers[_LONGEST, i] + lookahead, block
        )
        # A request that fills the KV on its own still has to be served one day.
        need[k] = max(1, min(blocks * block, capacity))
        state = integers[_STATE, i]
        token_s = new_s if state == _WAITING else resident_s
        token_s = preempted_s if state == _PREEMPTED else token_s
        restore_s[k] = integers[_TO_COMPUTE, i] * token_s
    return chosen, need, restore_s
