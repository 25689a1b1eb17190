"""Server-sent events with JSON, as the standard says and as servers really send them."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.client.event_stream import Event, EventStream, Mark

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


def events_of(*chunks):
    """All events of a stream that comes in some chunks."""
    stream = EventStream()
    return [event for chunk in chunks for event in stream.feed(chunk)] + stream.end()


def cut(stream, cuts):
    """A stream in pieces."""
    bounds = sorted({0, len(stream), *(min(place, len(stream)) for place in cuts)})
    return [stream[first:end] for first, end in pairwise(bounds)]


@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(st.dictionaries(st.text(max_size=3), JSON, max_size=3), max_size=5),
    line_end=st.sampled_from([b"\n", b"\r\n", b"\r"]),
    blank_lines=st.integers(0, 2),
    indent=st.sampled_from([None, 1]),
    mark=st.booleans(),
    whole=st.booleans(),
    cuts=st.lists(st.integers(0, 400), max_size=8),
)
def test_events_do_not_depend_on_form_or_cuts(
    values, line_end, blank_lines, indent, mark, whole, cuts
):
    """Any line ends, with or without blank lines, comments, byte-order mark: the same events."""
    stream = b"\xef\xbb\xbf" if mark else b""
    for value in values:
        lines = json.dumps(value, indent=indent, ensure_ascii=False).encode().split(b"\n")
        data = line_end.join(b"data: " + line for line in lines)
        stream += b": keep-alive" + line_end + b"id: 7" + line_end + data
        stream += line_end * (1 + blank_lines)
    stream += b"data: [DONE]" + (line_end if whole else b"")
    wanted = [Event("", value) for value in values] + [Event("", Mark.DONE)]
    assert events_of(*cut(stream, cuts)) == wanted


@settings(max_examples=200, deadline=None)
@given(
    parts=st.lists(
        st.binary(max_size=9)
        | st.sampled_from(
            [
                b"data: ",
                b"data:[DONE]",
                b"\n",
                b"\r",
                b"\r\n",
                b'{"a": ',
                b"}",
                b"[",
                b"event: error",
            ]
        ),
        max_size=30,
    ),
    cuts=st.lists(st.integers(0, 200), max_size=8),
)
def test_any_bytes_give_the_same_events_however_cut(parts, cuts):
    """Nothing raises, and cuts change nothing."""
    stream = b"".join(parts)
    assert events_of(*cut(stream, cuts)) == events_of(stream)


def test_an_event_comes_with_its_own_last_byte():
    """Neither a blank line nor the second half of a line's end is waited for."""
    stream = EventStream()
    assert stream.feed(b'data: {"a": 1}') == []
    assert stream.feed(b"\r") == [Event("", {"a": 1})]
    assert stream.feed(b"\n") == []
    assert stream.feed(b"\r\ndata: [DONE]\r") == [Event("", Mark.DONE)]


def test_what_never_becomes_json_costs_no_other_event():
    """Broken data is told once, and the next event is read, with a blank line between or not."""
    nonsense, good = Event("", Mark.NONSENSE), Event("", {"a": 1})
    for broken in (b"{oops", b'{"a": "x', b'{"a": [', b'{"a":'):
        for line_end in (b"\n", b"\n\n"):
            stream = b"data: " + broken + line_end + b'data: {"a": 1}' + line_end
            assert events_of(stream) == [nonsense, good]
    assert events_of(b"data: " + b"[" * 100_000 + b"\n\ndata: 1\n") == [nonsense, Event("", 1)]


def test_a_cut_off_end_is_no_event():
    """What the connection's end cuts off is dropped, as the standard says."""
    assert events_of(b'data: {"a": 1}\n\ndata: {"a"') == [Event("", {"a": 1})]
    assert events_of(b"data: [DON") == []
    assert events_of(b'data: {"a": 1}') == [Event("", {"a": 1})]


@pytest.mark.parametrize(
    "stream", [b'event: error\ndata: {"message": "x"}\n\n', b'error: {"message": "x"}\n\n']
)
def test_errors_have_a_kind_of_their_own(stream):
    """An event of type error, or llama.cpp's field error, is told from data."""
    assert [event.kind for event in events_of(stream + b"data: 1\n\n")] == ["error", ""]


def test_bytes_that_are_no_text_are_replaced():
    """As the standard says: a letter is lost, not the event."""
    assert events_of(b'data: {"a": "\xff"}\n\n') == [Event("", {"a": "\ufffd"})]


def test_a_byte_order_mark_between_events_is_passed_over():
    """Where a server joins two streams, the second one's mark costs no event."""
    stream = b'data: {"a": 1}\n\n\xef\xbb\xbf\xef\xbb\xbfdata: {"a": 2}\n\n\xef\xbb\xbf\n'
    assert events_of(stream) == [Event("", {"a": 1}), Event("", {"a": 2})]
