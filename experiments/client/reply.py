"""
One streamed reply of a language model: when did which token come, and is it complete?

Servers stream chunks of text, not tokens: a chunk may carry none (the first of a chat names
the role), one, or several (vLLM joins what piles up while the client or the server is busy).
Tokens are counted by the best that the server says:

1. a count in every event (:mod:`experiments.client.token_counts`);
2. lists of token ids or of log-probabilities in the event;
3. else one token for each choice with text in the event.

A count of 0 says nothing: some servers send it with every event. All tokens of an event came
when it did. A reply that ends by itself may be counted with its end-of-text token, which has no
text and came with the word of the end. If the count at the end disagrees with the sum otherwise,
token j of n is placed in the event that brings the text to j/n of its characters, and the reply
says that its times are estimates. Thoughts that a server counts but keeps to itself are left out.

Text is whatever a chunk has of it, in whichever field: content, thoughts, refusals, arguments of
calls. A field that is not what it should be (a count that is no number, say) is passed over, and
the rest of its event counts.

A reply is complete when each of its choices has a reason for its end, and one of those that
complete replies have: ``"abort"``, ``"error"`` and whatever is no text are none. Where a server
gives no reasons at all, its ``[DONE]`` has to do.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from experiments.client.event_stream import EventStream, Mark
from experiments.client.token_counts import Piece, tokens_of
from experiments.configuration.output import visible

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from experiments.client.event_stream import Event

#: Why complete replies end, by servers of OpenAI's protocol (vLLM, SGLang, TGI, llama.cpp, Mistral,
#: and proxies for Anthropic's, Google's and Cohere's models). Those that come of the model itself
#: may be counted with an end-of-text token; those of a limit are not.
_BY_ITSELF = frozenset(
    [
        "stop",
        "eos",
        "eos_token",
        "stop_sequence",
        "end_turn",
        "tool_calls",
        "tool_call",
        "tool_use",
        "function_call",
        "content_filter",
        "refusal",
        "complete",
        "completed",
        "repetition",
    ]
)
_BY_LIMIT = frozenset(["length", "max_tokens", "model_length", "limit"])

#: Fields of a delta that hold no text of the reply.
_NO_TEXT = frozenset(
    ["role", "name", "id", "type", "object", "index", "format", "signature", "tool_call_id"]
)
#: Names that servers give thoughts; some send the same under several.
_THOUGHTS = ("reasoning_content", "reasoning", "thinking", "reasoning_details")

#: Counts beyond are nonsense.
_MOST_TOKENS = 10_000_000
_MOST_ERROR_CHARACTERS = 200
_BEGINNING_BYTES = 80


class ReplyReader:
    """
    Reads a reply's events as they come.

    Parameters
    ----------
    choices
        How many choices (``n``) were asked for.

    Attributes
    ----------
    done
        Whether the stream itself is over; counts may come between the end and this.
    error
        What the server said went wrong, or None.
    malformed
        Events that made no sense, wholly or in part.
    prompt_tokens
        Length of the prompt as the server counted it, or None.
    counted
        Whether the server, not the number of events, says how many tokens there are.
    """

    def __init__(self, choices: int = 1) -> None:
        self.done = False
        self.error: str | None = None
        self.malformed = 0
        self.prompt_tokens: int | None = None
        self.counted = False
        self._stream = EventStream()
        self._pieces: list[Piece] = []
        self._wanted_choices = choices
        self._seen: set[int] = set()
        self._ended: set[int] = set()
        self._ended_s: float | None = None  # when it ended by itself, in an event without tokens
        self._last_s = 0.0
        self._thought = False  # whether it showed its thoughts
        self._understood = False  # whether there was any event
        self._beginning = b""

    @property
    def gives_reasons(self) -> bool:
        """Whether the server says why choices end."""
        return bool(self._ended)

    @property
    def finished(self) -> bool:
        """Whether the server said that the reply is complete."""
        choices = max(self._wanted_choices, len(self._seen))
        if self._ended:
            return len(self._ended) >= choices
        return self.done and len(self._seen) >= choices

    @property
    def events(self) -> int:
        """Events with tokens or text."""
        counts, _ = tokens_of(self._pieces)
        return sum(
            bool(count or piece.characters)
            for count, piece in zip(counts, self._pieces, strict=True)
        )

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
        if len(self._beginning) < _BEGINNING_BYTES:
            self._beginning += chunk[:_BEGINNING_BYTES]
        self._last_s = time_s
        self._read(self._stream.feed(chunk))

    def end(self) -> None:
        """Read what the end of the stream completes."""
        self._read(self._stream.end())

    def what_is_missing(self) -> str:
        """Return why a reply that ended without an error is not complete."""
        if self._beginning and not self._understood:
            return f"no event of a stream; it begins with {self._beginning[:_BEGINNING_BYTES]!r}."
        if self._ended:
            choices = max(self._wanted_choices, len(self._seen))
            return f"the stream broke off: {len(self._ended)} of {choices} choices ended."
        return "the stream broke off."

    def token_times_s(self) -> tuple[NDArray[np.float64], bool]:
        """
        When each token came, and whether that had to be estimated.

        Returns
        -------
        tuple[NDArray[float64], bool]
            (n,), on the clock of :meth:`feed`, non-decreasing.
        """
        counts, total = tokens_of(self._pieces)
        times_s = np.array([piece.time_s for piece in self._pieces], dtype=np.float64)
        lengths = np.array([piece.characters for piece in self._pieces], dtype=np.float64)
        brought = (counts > 0) | (lengths > 0)
        times_s, counts, lengths = times_s[brought], counts[brought], lengths[brought]
        counted = int(counts.sum())
        if total in (0, counted):
            return np.repeat(times_s, counts), False
        if times_s.size == 0:  # counted, and never shown
            return np.full(total, self._last_s), True
        if total == counted + 1 and self._ended_s is not None:
            return np.append(np.repeat(times_s, counts), self._ended_s), False
        characters = np.cumsum(lengths)
        if characters[-1] == 0:
            characters = np.arange(1.0, times_s.size + 1)
        share = np.arange(1, total + 1) / total
        # A little less, since j/n of the characters is often a whole number but for rounding.
        places = np.searchsorted(characters, share * characters[-1] * (1 - 1e-12))
        return times_s[places], True

    def _read(self, events: Iterable[Event]) -> None:
        for event in events:
            if event.data is Mark.DONE:
                self.done = self._understood = True
            elif event.kind == "error":
                self._fail(event.data if event.data is not Mark.NONSENSE else "error")
            elif isinstance(event.data, dict):
                self._understood = True
                self.malformed += not self._event(event.data)
            else:
                # A count in a later event makes up for the tokens that this one may have carried.
                self.malformed += 1

    def _event(self, event: dict[str, Any]) -> bool:
        """Read an event; whether all of it made sense."""
        if event.get("error") or "error" in (event.get("object"), event.get("type")):
            self._fail(event.get("error") or event)
            return True
        choices = event.get("choices")
        sensible = choices is None or isinstance(choices, list)
        characters = tokens = 0
        numbers = []
        by_itself = False
        for place, choice in enumerate(choices if isinstance(choices, list) else []):
            if not isinstance(choice, dict):
                sensible = False
                continue
            index = choice.get("index")
            number = int(index) if _is_count(index) else place
            numbers.append(number)
            found, listed, understood = self._content(choice)
            characters += found
            tokens += int(found > 0) if listed is None else listed
            self.counted |= listed is not None
            by_itself |= self._end_of(number, choice.get("finish_reason"))
            sensible &= understood
        self._seen.update(numbers)
        reported, understood = self._count(event.get("usage"))
        if by_itself and not tokens:
            self._ended_s = self._last_s
        if tokens or characters or reported:
            piece = Piece(self._last_s, tokens, characters, reported, tuple(sorted(numbers)))
            self._pieces.append(piece)
        return sensible and understood

    def _end_of(self, number: int, reason: Any) -> bool:
        """Note why a choice ended, if it did; whether it ended by itself."""
        if reason is None or reason is False or reason == "":
            return False
        word = reason.casefold() if isinstance(reason, str) else ""
        if word not in _BY_ITSELF | _BY_LIMIT:
            self._fail(f"the server ended it with finish_reason {json.dumps(reason)}.")
        self._ended.add(number)
        return word in _BY_ITSELF

    def _content(self, choice: dict[str, Any]) -> tuple[int, int | None, bool]:
        """Characters of a choice, its tokens if they are listed, whether it made sense."""
        if choice.get("error"):
            self._fail(choice["error"])
        content = choice.get("delta") if "delta" in choice else choice.get("message")
        sensible = content is None or isinstance(content, dict)
        fields = dict(content) if isinstance(content, dict) else {}
        thoughts = 0
        for name in _THOUGHTS:
            thoughts = _characters(fields.pop(name, None)) or thoughts
        self._thought |= thoughts > 0
        characters = _characters(choice.get("text")) + _characters(fields) + thoughts

        listed = choice.get("token_ids")
        if listed is None:
            logprobs = choice.get("logprobs") or {}
            known = isinstance(logprobs, dict)
            listed = (logprobs.get("content") or logprobs.get("tokens")) if known else logprobs
        if listed is None:
            return characters, None, sensible
        if not isinstance(listed, list):
            return characters, None, False
        return characters, len(listed), sensible

    def _count(self, usage: Any) -> tuple[int, bool]:
        """Tokens by an event's usage, 0 if it gives none; whether it made sense."""
        if usage is None:
            return 0, True
        if not isinstance(usage, dict):
            return 0, False
        details = usage.get("completion_tokens_details")
        details = {} if details is None else details
        sensible = isinstance(details, dict)
        reasoning = details.get("reasoning_tokens") if sensible else None
        given = (usage.get("prompt_tokens"), usage.get("completion_tokens"), reasoning)
        sensible &= all(count is None or _is_count(count) for count in given)
        prompt, completion, thoughts = (int(count) if _is_count(count) else 0 for count in given)
        if prompt > 0:
            self.prompt_tokens = prompt
        counted = max(0, completion - (0 if self._thought else thoughts))
        self.counted |= counted > 0
        return counted, sensible

    def _fail(self, error: Any) -> None:
        """Note the first of the reply's errors."""
        self._understood = True
        if self.error is None:
            self.error = _message(error) or "an error without words."


def _is_count(value: Any) -> TypeGuard[float]:
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return whole and not isinstance(value, bool) and 0 <= value <= _MOST_TOKENS


def _characters(value: Any) -> int:
    """Characters of text in a field, whatever its shape."""
    waiting, count = [value], 0
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            count += len(part)
        elif isinstance(part, list):
            waiting += part
        elif isinstance(part, dict):
            waiting += [inner for name, inner in part.items() if name not in _NO_TEXT]
    return count


def _message(error: Any) -> str:
    """An error object's own sentence, cut to a readable length, fit to be printed."""
    text = error
    if isinstance(error, dict):
        text = error.get("message") or error.get("detail") or error
    return visible(" ".join(str(text or error).split()))[:_MOST_ERROR_CHARACTERS]


def error_message(body: str) -> str:
    """The sentence in the body of an answer that is no stream, JSON or not."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return _message(body)
    if isinstance(answer, dict):
        # OpenAI: {"error": {...}}; FastAPI: {"detail": ...}.
        return _message(answer.get("error") or answer.get("detail") or answer)
    return _message(body)
