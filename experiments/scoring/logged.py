"""What a log says of its requests, whatever tool wrote it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from experiments.client.log import Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Counts and times beyond are nonsense: no reply is so long.
MOST_TOKENS = 1_000_000
MOST_SECONDS = 1e7
#: A clock in seconds may count from 1970, none shows more.
_MOST_CLOCK_S = 1e11
#: Choices of token times that are weighed for one reply.
_MOST_WORK = 20_000_000


class Unread(ValueError):
    """Why a record of a log can't be scored, a part of a sentence: "it has no end"."""


@dataclass(frozen=True, slots=True)
class LoggedReply:
    """
    One request of a log. Times are since its arrival.

    Parameters
    ----------
    index
        Which of the log's requests it is, from 0, in the log's own order.
    record
        Where it stands in the log, for people: "line 3".
    name
        The tool's own name of the request; empty if it has none.
    outcome, error
        How it ended, and why if not well.
    start_s
        When it arrived, on the log's clock; None if the log does not say.
    send_lag_s
        How long after that it was sent; NaN if the log does not say.
    prompt_tokens, wanted_tokens
        Lengths of the prompt and of the reply that was asked for; None if unknown.
    tokens
        Length of the reply; None if the log does not say: then each of ``pieces_s`` is one.
    pieces_s
        When pieces of the reply came, non-decreasing. Nothing came before the first or after the
        last; tokens that are in none of them came in between.
    piece_tokens
        Tokens of each piece; None if the log does not say.
    last_s
        When the last token came; of a reply without ``pieces_s`` it is all that is known.
    ttft_s, tds
        What its reader expects, where the log says so.
    """

    index: int
    record: str
    name: str = ""
    outcome: Outcome = Outcome.COMPLETED
    error: str = ""
    start_s: float | None = None
    send_lag_s: float = math.nan
    prompt_tokens: int | None = None
    wanted_tokens: int | None = None
    tokens: int | None = None
    pieces_s: Sequence[float] = ()
    piece_tokens: Sequence[int] | None = None
    last_s: float | None = None
    ttft_s: float | None = None
    tds: float | None = None

    def __post_init__(self) -> None:
        if self.start_s is not None and not abs(self.start_s) <= _MOST_CLOCK_S:
            raise Unread("its start is no time in seconds")
        if self.outcome is not Outcome.COMPLETED:
            # Of a reply that failed its reader has no use: whatever came of it scores 0.
            object.__setattr__(self, "pieces_s", ())
            object.__setattr__(self, "piece_tokens", None)
            object.__setattr__(self, "tokens", 0)
            return
        self._check_times(list(self.pieces_s))
        if self.tokens == 0:
            raise Unread("it has no token")
        if self.tokens is None and self.piece_tokens is not None:
            object.__setattr__(self, "tokens", sum(self.piece_tokens))
        n = len(self.pieces_s) if self.tokens is None else self.tokens
        if n > MOST_TOKENS:
            raise Unread(f"it has {n} tokens, more than {MOST_TOKENS}")
        if n * max(1, len(self.pieces_s) - n + 1) > _MOST_WORK:
            raise Unread(f"it has {len(self.pieces_s)} times for {n} tokens")

    def _check_times(self, pieces_s: list[float]) -> None:
        times_s = pieces_s or ([] if self.last_s is None else [self.last_s])
        if not times_s:
            raise Unread("it has neither token times nor an end")
        if not pieces_s and self.tokens is None:
            raise Unread("it has neither token times nor a number of tokens")
        if not all(math.isfinite(time_s) and time_s <= MOST_SECONDS for time_s in times_s):
            raise Unread("a token time is no number of seconds")
        if min(times_s) < 0:
            raise Unread("a token came before its request")
        if self.piece_tokens is not None and len(self.piece_tokens) != len(pieces_s):
            raise Unread("it has not as many token counts as times")
        if pieces_s != sorted(pieces_s):
            raise Unread("its token times fall")


@dataclass(frozen=True, slots=True)
class LoggedRun:
    """
    The requests of one benchmark of a log.

    Parameters
    ----------
    tool
        Which tool wrote it.
    replies
        Its requests, those that can be scored.
    unread
        Where there is a request or a line that can't be, and why, a sentence each.
    left_out
        Requests that are no part of the measurement, such as those of a warm-up; how many.
    rate
        Requests/s that the tool aimed at; None if the log does not say or there was no such aim.
    concurrency
        Most requests that the tool had in flight at once; None if unlimited, or not said.
    """

    tool: str
    replies: Sequence[LoggedReply]
    unread: Sequence[str] = field(default=())
    left_out: int = 0
    rate: float | None = None
    concurrency: float | None = None

    def with_unread(self, unread: Sequence[str]) -> LoggedRun:
        """Return the same run, with other sentences on what could not be read."""
        return replace(self, unread=tuple(unread))
