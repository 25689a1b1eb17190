"""Conversations: prompts that grow by what was said before, after a system prompt for all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from andes_opt import checks
from andes_opt.lengths import Lengths, TableLengths
from andes_opt.readers import Readers, reading
from andes_opt.workload import Requests, check_load, streams

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Conversations:
    """
    Conversations that begin independently of each other, and go on turn by turn.

    Each prompt consists of the system prompt, all that was said before, and new words. The next
    turn comes when an ideal reader has read the reply and thought. So the requests are the same on
    every engine; one that is slower than its readers sees a turn before its last reply ends.

    Parameters
    ----------
    rate
        Mean requests per second once conversations come and go, > 0.
    requests
        Number of requests, the earliest ones, >= 1. The first arrives at 0.
    turns
        Mean turns of a conversation (geometric), >= 1; 1 leaves the system prompt alone to share.
    system_prompt_tokens
        Tokens with which every prompt begins, >= 0.
    think_s
        Mean seconds from the end of reading to the next turn (exponential), >= 0.
    max_prompt_tokens
        A conversation ends before a turn whose prompt would be longer, >= 1.
    lengths
        Distribution of the lengths of new words and of replies.
    readers
        Distribution of QoE targets; the speed is the same in all turns of a conversation.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    rate: float
    requests: int
    turns: float = 4.0
    system_prompt_tokens: int = 0
    think_s: float = 10.0
    max_prompt_tokens: int = 8192
    lengths: Lengths = field(default_factory=TableLengths)
    readers: Readers = field(default_factory=reading)

    def __post_init__(self) -> None:
        check_load(self.rate, self.requests)
        checks.positive("turns", self.turns)
        if self.turns < 1:
            raise ValueError(f"turns = {self.turns} not understood: need at least 1.")
        checks.whole("system_prompt_tokens", self.system_prompt_tokens, 0)
        checks.non_negative("think_s", self.think_s)
        checks.whole("max_prompt_tokens", self.max_prompt_tokens, 1)

    def generate(self, seed: int) -> Requests:
        """Make the requests; see :meth:`andes_opt.workload.Workload.generate`."""
        arrival_rng, length_rng, reader_rng = streams(seed)
        gap_rng, turn_rng, think_rng = arrival_rng.spawn(3)
        # One conversation a request is more than enough: each has one that fits.
        gaps_s = gap_rng.standard_exponential(self.requests) * (self.turns / self.rate)
        turns = turn_rng.geometric(1 / self.turns, self.requests)
        conversation = np.repeat(np.arange(self.requests), turns)
        first = np.repeat(np.cumsum(turns) - turns, turns)  # place of the first turn

        new_tokens, output_tokens = self.lengths.sample(length_rng, conversation.size)
        said = new_tokens + output_tokens
        before = np.cumsum(said) - said
        prompt_tokens = self.system_prompt_tokens + before - before[first] + new_tokens
        ttft_s, tds = self.readers.sample(reader_rng, prompt_tokens)
        tds = tds[first]
        pause_s = ttft_s + output_tokens / tds
        pause_s = pause_s + self.think_s * think_rng.standard_exponential(conversation.size)
        since_s = np.cumsum(pause_s) - pause_s
        start_s = np.cumsum(gaps_s) - gaps_s[0]
        arrival_s = start_s[conversation] + since_s - since_s[first]

        kept = self._kept(prompt_tokens, first, arrival_s)
        prefix_of, prefix_tokens = self._prefixes(kept, first, prompt_tokens + output_tokens)
        return Requests(
            arrival_s=arrival_s[kept] - arrival_s[kept[0]],
            prompt_tokens=prompt_tokens[kept],
            output_tokens=output_tokens[kept],
            ttft_s=ttft_s[kept],
            tds=tds[kept],
            prefix_of=prefix_of,
            prefix_tokens=prefix_tokens,
        )

    def _kept(
        self,
        prompt_tokens: NDArray[np.int64],
        first: NDArray[np.int64],
        arrival_s: NDArray[np.float64],
    ) -> NDArray[np.int64]:
        """Places of the earliest requests, the turns that became too long left out."""
        # A first turn stays however long it is, or there would be too few requests.
        fits = (prompt_tokens <= self.max_prompt_tokens) | (first == np.arange(first.size))
        too_long = np.cumsum(~fits)
        fits &= too_long == too_long[first]
        places = np.flatnonzero(fits)
        return places[np.argsort(arrival_s[places], kind="stable")][: self.requests]

    def _prefixes(
        self,
        kept: NDArray[np.int64],
        first: NDArray[np.int64],
        whole_tokens: NDArray[np.int64],
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Each turn begins with the one before it, a first one with the system prompt."""
        place_of = np.full(first.size, -1)
        place_of[kept] = np.arange(kept.size)
        begins = first[kept] == kept
        prefix_of = np.where(begins, 0, place_of[kept - 1])
        prefix_tokens = np.where(begins, self.system_prompt_tokens, whole_tokens[kept - 1])
        alone = prefix_tokens == 0
        alone[0] = True
        return np.where(alone, -1, prefix_of), np.where(alone, 0, prefix_tokens)
