"""
One streamed reply, as server-sent events bring it: when did which token come?

Servers stream chunks of text, not tokens: a chunk may carry none (the first of a chat names
the role), one, or several (vLLM joins what piles up while the client or the server is busy).
Tokens are counted by the best that the server says:

1. a count of tokens so far in every event (vLLM's ``continuous_usage_stats``);
2. lists of token ids or of log-probabilities in the event;
3. else one token per event with text.

A count of 0 says nothing: some servers send it with every event. All tokens of an event came
when it did. A reply that ends by itself may be counted with its end-of-text token, which has no
text and came with the word of the end. If the count at the end disagrees with the sum otherwise,
token j of n is placed in the event that brings the text to j/n of its characters, and the reply
says that its times are estimates. Thoughts that a server counts but keeps to itself are left out.

Server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

from __future__ import annotations

import json
from array import array
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MOST_ERROR_CHARACTERS = 200


class EventSplitter:
    """Cuts a byte stream, in chunks of any size, into the data of its events."""

    __slots__ = ("_data", "_rest")

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[bytes]:
        """
        The data of the events that a chunk completes.

        Parameters
        ----------
        chunk
            The next bytes of the stream.
        """
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        events = []
        for raw in lines:
            line = raw.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data.clear()
            # Comments (keep-alives) and other fields say nothing about tokens.
        return events


class ReplyReader:
    """
    Reads a reply's events as they come.

    Attributes
    ----------
    finished
        Whether the server said that the reply is complete.
    done
        Whether the stream itself is over; counts may come between the two.
    error
        What the server said went wrong, or None.
    malformed
        Events that made no sense, and were passed over.
    prompt_tokens
        Length of the prompt as the server counted it, or None.
    """

    __slots__ = (
        "_characters",
        "_counted",
        "_counts",
        "_ended_s",
        "_reported",
        "_splitter",
        "_thought",
        "_times_s",
        "done",
        "error",
        "finished",
        "malformed",
        "prompt_tokens",
    )

    def __init__(self) -> None:
        self.finished = False
        self.done = False
        self.error: str | None = None
        self.malformed = 0
        self.prompt_tokens: int | None = None
        self._splitter = EventSplitter()
        self._times_s = array("d")  # of each event with tokens or text
        self._counts = array("q")  # its tokens
        self._characters = array("q")
        self._counted = 0  # sum of _counts
        self._reported = 0  # tokens so far by the server's count; 0 if it said nothing
        self._ended_s: float | None = None  # when it ended by itself, in an event without tokens
        self._thought = False  # whether it showed its thoughts

    @property
    def events(self) -> int:
        """Events with tokens or text."""
        return len(self._times_s)

    def feed(self, chunk: bytes, time_s: float) -> None:
        """
        Read what came at a time.

        Parameters
        ----------
        chunk
            The next bytes of the reply.
        time_s
            When they came, not before the last ones.
        """
        for data in self._splitter.feed(chunk):
            if data == b"[DONE]":
                self.finished = self.done = True
                continue
            try:
                self._event(json.loads(data.decode()), time_s)
            except (ValueError, TypeError, AttributeError, LookupError):
                # Not JSON, or not of the shape of an event. A count in a later event makes
                # up for the tokens that this one may have carried.
                self.malformed += 1

    def token_times_s(self) -> tuple[NDArray[np.float64], bool]:
        """
        When each token came, and whether that had to be estimated.

        Returns
        -------
        tuple[NDArray[float64], bool]
            (n,), on the clock of :meth:`feed`, non-decreasing.
        """
        times_s = np.array(self._times_s, dtype=np.float64)
        counts = np.array(self._counts, dtype=np.int64)
        if self._reported in (0, self._counted) or times_s.size == 0:
            return np.repeat(times_s, counts), False
        if self._reported == self._counted + 1 and self._ended_s is not None:
            return np.append(np.repeat(times_s, counts), self._ended_s), False
        characters = np.cumsum(np.array(self._characters, dtype=np.float64))
        if characters[-1] == 0:
            characters = np.arange(1.0, times_s.size + 1)
        share = np.arange(1, self._reported + 1) / self._reported
        # A little less, since j/n of the characters is often a whole number but for rounding.
        places = np.searchsorted(characters, share * characters[-1] * (1 - 1e-12))
        return times_s[places], True

    def _event(self, event: dict[str, Any], time_s: float) -> None:
        if event.get("error") or event.get("object") == "error":
            self.error = _message(event.get("error") or event)
            return
        choices = event.get("choices") or []
        characters, listed, reason = 0, None, None
        for choice in choices:
            text, thoughts, listed = _content(choice)
            characters += len(text) + len(thoughts)
            self._thought |= bool(thoughts)
            reason = choice.get("finish_reason") or reason
        self.finished |= reason is not None

        tokens = listed if listed is not None else int(characters > 0)
        so_far = self._count(event.get("usage"))
        if so_far:
            # Counts from the first event on tell what each brought. A count that comes with
            # the last text only is the sum, which says nothing about that event.
            if choices and (self._reported or not self._times_s):
                tokens = max(0, so_far - self._counted)
            self._reported = so_far
        if reason not in (None, "length") and not tokens:
            self._ended_s = time_s
        if tokens or characters:
            self._counted += tokens
            self._times_s.append(time_s)
            self._counts.append(tokens)
            self._characters.append(characters)

    def _count(self, usage: dict[str, Any] | None) -> int:
        """Tokens of the reply so far, by an event's usage; 0 if that says nothing."""
        if not usage:
            return 0
        prompt_tokens = int(usage["prompt_tokens"])
        if prompt_tokens > 0:
            self.prompt_tokens = prompt_tokens
        details = usage.get("completion_tokens_details") or {}
        hidden = 0 if self._thought else int(details.get("reasoning_tokens") or 0)
        return max(0, int(usage["completion_tokens"]) - hidden)


def _content(choice: dict[str, Any]) -> tuple[str, str, int | None]:
    """The text and the thoughts that a choice brings, and its tokens if they are listed."""
    text, thoughts = choice.get("text") or "", ""
    delta = choice.get("delta")
    if delta:
        text = delta.get("content") or ""
        # Thoughts and the arguments of a call are tokens that somebody waits for, too.
        thoughts = delta.get("reasoning_content") or delta.get("reasoning") or ""
        for call in delta.get("tool_calls") or []:
            text += (call.get("function") or {}).get("arguments") or ""
    if choice.get("token_ids") is not None:
        return text, thoughts, len(choice["token_ids"])
    logprobs = choice.get("logprobs") or {}
    tokens = logprobs.get("content") or logprobs.get("tokens")
    return text, thoughts, None if tokens is None else len(tokens)


def _message(error: Any) -> str:
    """An error object's own sentence, cut to a readable length."""
    text = error.get("message") if isinstance(error, dict) else error
    return " ".join(str(text or error).split())[:_MOST_ERROR_CHARACTERS]


def error_message(body: str) -> str:
    """The sentence in the body of an answer that is no stream, JSON or not."""
    try:
        answer = json.loads(body)
    except ValueError:
        return _message(body)
    if isinstance(answer, dict):
        # OpenAI: {"error": {...}}; FastAPI: {"detail": ...}.
        return _message(answer.get("error") or answer.get("detail") or answer)
    return _message(body)
