"""
Server-sent events that carry JSON, cut from a byte stream: each as soon as its JSON is whole.

The standard (https://html.spec.whatwg.org/multipage/server-sent-events.html) ends an event with a
blank line, drops one that the stream's end cuts off, and joins lines of data that no blank line
parts. Servers of language models don't all keep to it: some end events with a single newline, some
end the stream right after ``data: [DONE]``. Their data is JSON, which is whole or not whatever
follows, so that nothing is lost by not waiting for the blank line: an event ends where its JSON
does. Otherwise as the standard says: lines end with LF, CR or CRLF, wherever chunks are cut; a
byte-order mark and comments are passed over; bytes that are no UTF-8 become U+FFFD.

No library for server-sent events does this. httpx-sse 0.4.3 and sseclient-py 1.9.0 take the
byte-order mark for a part of the first field, which loses the first event, and read events that end
with one newline as a single one that is no JSON; the former also drops a last event without a
blank line, and needs httpx; the latter reads from blocking iterators only. aiohttp-sse-client 0.2.1
splits lines at LF alone, and connects again by itself, which would send a request twice.
"""

from __future__ import annotations

import json
import re
from enum import Enum
from typing import Any, NamedTuple

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BYTE_ORDER_MARK = "\ufeff"


class Mark(Enum):
    """What stands in an event in place of JSON."""

    DONE = "the end of the stream: [DONE]"
    NONSENSE = "data that is no JSON"


class Event(NamedTuple):
    """An event: its type (empty if it has none), and its JSON, parsed, or a mark."""

    kind: str
    data: Any


class EventStream:
    """Cuts a byte stream, in chunks of any size, into events."""

    __slots__ = ("_after_cr", "_kind", "_pending", "_rest")

    def __init__(self) -> None:
        self._rest = b""  # the last line, as far as it has come
        self._after_cr = False  # whether a line feed would belong to the last line's end
        self._kind = ""
        self._pending = ""  # lines of data that may become JSON

    def feed(self, chunk: bytes) -> list[Event]:
        """
        Return the events that a chunk completes.

        Parameters
        ----------
        chunk
            The next bytes of the stream.
        """
        if not chunk:
            return []
        if self._after_cr:
            chunk = chunk.removeprefix(b"\n")
        *lines, self._rest = _LINE_END.split(self._rest + chunk)
        self._after_cr = not self._rest and chunk.endswith(b"\r")
        return [event for line in lines for event in self._line(line)]

    def end(self) -> list[Event]:
        """Return the event that the end of the stream completes, a last line without its end."""
        line, self._rest = self._rest, b""
        events = self._line(line) if line else []
        return [event for event in events if event.data is not Mark.NONSENSE]

    def _line(self, raw: bytes) -> list[Event]:
        # A mark within the stream is where a server joined two.
        line = raw.decode(errors="replace").lstrip(_BYTE_ORDER_MARK)
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            return self._data(value)
        if field == "event":
            self._kind = value
        elif field == "error":  # llama.cpp's servers
            return [Event("error", value)]
        elif not line:
            return self._dropped()
        return []  # comments (keep-alives) and other fields say nothing about tokens

    def _data(self, value: str) -> list[Event]:
        if value.strip() == "[DONE]":
            return [*self._dropped(), Event("", Mark.DONE)]
        joined = f"{self._pending}\n{value}" if self._pending else value
        whole, found = _json(joined)
        if self._pending and (found is Mark.NONSENSE or (not whole and _is_object(value))):
            # What was begun never ended, and this line is an event of its own: JSON that is put
            # on several lines has no line that is a whole object.
            return [*self._dropped(), *self._data(value)]
        if not whole:
            self._pending = joined
            return []
        self._pending = ""
        return [Event(self._kind, found)]

    def _dropped(self) -> list[Event]:
        """Give up what was begun, as an event's end does."""
        events = [Event(self._kind, Mark.NONSENSE)] if self._pending else []
        self._kind = self._pending = ""
        return events


def _is_object(line: str) -> bool:
    found = _json(line)[1]
    return isinstance(found, dict) and bool(found)


def _json(text: str) -> tuple[bool, Any]:
    """
    Parse JSON, as far as it is whole.

    Returns
    -------
    tuple
        Whether nothing is missing, and what it is; (False, None) if more may make it JSON.
    """
    try:
        return True, json.loads(text)
    except json.JSONDecodeError as error:
        if error.pos >= len(text.rstrip()):
            return False, None
    except (ValueError, RecursionError):
        pass  # a number of thousands of digits, brackets within brackets
    return True, Mark.NONSENSE
