"""Tokens and their times, read from server-sent events of every dialect."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_server import DONE, FINISH, completion, event, usage

from experiments.client.reply import EventSplitter, ReplyReader, error_message


def read(*events):
    """A reader that got the k-th event at k seconds."""
    reader = ReplyReader()
    for k, data in enumerate(events):
        reader.feed(data, float(k))
    return reader


def times(reader):
    """Token times of a reader, as a list, and whether they are estimates."""
    values, estimated = reader.token_times_s()
    return values.tolist(), estimated


@settings(max_examples=60, deadline=None)
@given(
    payloads=st.lists(st.binary(min_size=1, max_size=12), max_size=6),
    line_end=st.sampled_from([b"\n", b"\r\n"]),
    cuts=st.lists(st.integers(0, 200), max_size=8),
)
def test_events_do_not_depend_on_how_bytes_are_cut(payloads, line_end, cuts):
    """Any cutting of the stream gives the same events, comments and other fields left out."""
    payloads = [p.replace(b"\n", b"x").replace(b"\r", b"x") for p in payloads]
    stream = b"".join(
        b": keep-alive" + line_end * 2 + b"id: 7" + line_end + b"data: " + p + line_end * 2
        for p in payloads
    )
    splitter, found = EventSplitter(), []
    bounds = sorted({0, len(stream), *(min(c, len(stream)) for c in cuts)})
    for first, end in pairwise(bounds):
        found += splitter.feed(stream[first:end])
    assert found == payloads


def test_data_of_several_lines_is_one_event():
    """Lines of data up to an empty line belong together; the space after the colon may lack."""
    assert EventSplitter().feed(b"data:a\ndata: b\n\n") == [b"a\nb"]


def test_counts_in_every_event_place_each_token():
    """With a running count, an event brings as many tokens as the count rises by."""
    reader = read(
        completion("", **usage(7, 1)),  # half a character: a token without text
        completion("ab", **usage(7, 2)),
        completion("cdefg", **usage(7, 5)),
        FINISH,
        event(choices=[], **usage(7, 5)),
        DONE,
    )
    assert times(reader) == ([0.0, 1.0, 2.0, 2.0, 2.0], False)
    assert (reader.prompt_tokens, reader.events) == (7, 3)
    assert reader.finished
    assert reader.done


def test_counts_make_up_for_a_lost_event():
    """An event that makes no sense is passed over; the next count says what it carried."""
    reader = read(
        completion("a", **usage(1, 1)), b"data: {oops\n\n", completion("c", **usage(1, 3))
    )
    assert reader.malformed == 1
    assert times(reader) == ([0.0, 2.0, 2.0], False)


@pytest.mark.parametrize(
    "data",
    [
        b"data: 5\n\n",
        b"data: [1]\n\n",
        b'data: {"choices": [4]}\n\n',
        b'data: {"choices": [{"delta": 3}]}\n\n',
        b'data: {"choices": [], "usage": {"prompt_tokens": "many"}}\n\n',
        b"data: \xff\xfe\n\n",
    ],
)
def test_events_of_another_shape_are_counted_not_raised(data):
    """Whatever a server sends, the reader goes on."""
    reader = read(data, completion("a"))
    assert reader.malformed == 1
    assert times(reader) == ([1.0], False)


def test_listed_tokens_are_counted():
    """Lists of token ids or of log-probabilities tell how many tokens an event brings."""
    ids = event(choices=[{"index": 0, "text": "abc", "token_ids": [5, 6, 7]}])
    chat = event(choices=[{"delta": {"content": "x"}, "logprobs": {"content": [{}, {}]}}])
    old = event(choices=[{"text": "x", "logprobs": {"tokens": ["x"]}}])
    assert times(read(ids, chat, old)) == ([0.0, 0.0, 0.0, 1.0, 1.0, 2.0], False)


def test_a_chat_begins_with_its_role():
    """An event that only names the role is no token; thoughts are."""
    reader = read(
        event(choices=[{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]),
        event(choices=[{"delta": {"reasoning_content": "hm"}}]),
        event(choices=[{"delta": {"content": "Hi"}}]),
        event(choices=[{"delta": {}, "finish_reason": "stop"}]),
        DONE,
    )
    assert times(reader) == ([1.0, 2.0], False)
    assert reader.finished


def test_a_count_at_the_end_spreads_tokens_over_the_text():
    """If events and the final count disagree, tokens follow the characters, as an estimate."""
    more = read(completion("abcd"), completion("ef"), event(choices=[], **usage(3, 6)))
    assert times(more) == ([0.0, 0.0, 0.0, 0.0, 1.0, 1.0], True)
    fewer = read(completion("a"), completion("b"), completion("cd"), event(**usage(3, 2)))
    assert times(fewer) == ([1.0, 2.0], True)
    same = read(completion("abcd"), completion("ef"), event(choices=[], **usage(3, 2)))
    assert times(same) == ([0.0, 1.0], False)


def test_a_count_that_comes_with_the_last_text_is_the_sum():
    """A count in the last event with text says nothing about that event alone."""
    reader = read(completion("ab"), completion("cd", **usage(1, 4)))
    assert times(reader) == ([0.0, 0.0, 1.0, 1.0], True)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=8),
    reported=st.integers(0, 40),
)
def test_estimates_keep_number_and_order(lengths, reported):
    """Whatever the count, there are so many times, within the stream and non-decreasing."""
    reader = read(*(completion("x" * n) for n in lengths), event(choices=[], **usage(1, reported)))
    values, _ = reader.token_times_s()
    if reader.events:
        assert values.size == (reported or reader.events)
        assert (np.diff(values) >= 0).all()
        assert set(values) <= set(range(len(lengths)))


@pytest.mark.parametrize("end", [usage(0, 0), usage(7, 3), {}])
def test_a_count_of_0_says_nothing(end):
    """Some servers send zeros with every event, and a count at the end at best."""
    reader = read(
        event(choices=[{"delta": {"role": "assistant"}}], **usage(0, 0)),
        *(event(choices=[{"delta": {"content": "ab"}}], **usage(0, 0)) for _ in range(3)),
        event(choices=[{"delta": {}, "finish_reason": "length"}], **end),
        DONE,
    )
    assert times(reader) == ([1.0, 2.0, 3.0], False)
    assert reader.prompt_tokens == (7 if end == usage(7, 3) else None)


def test_the_end_of_text_token_came_with_the_end():
    """A reply that ends by itself is counted with a token without text; no time is estimated."""
    texts = [completion("long words "), completion("a"), completion("b")]
    stop = event(choices=[{"index": 0, "text": "", "finish_reason": "stop"}])
    assert times(read(*texts, stop, event(choices=[], **usage(2, 4)), DONE)) == (
        [0.0, 1.0, 2.0, 3.0],
        False,
    )
    # One that was cut off has no such token.
    assert times(read(*texts, FINISH, event(choices=[], **usage(2, 4)), DONE))[1]


def test_hidden_thoughts_are_not_waited_for():
    """Thoughts that are counted but not shown are left out; those that are shown count."""
    end = {
        "usage": {
            "prompt_tokens": 1,
            "completion_tokens": 42,
            "completion_tokens_details": {"reasoning_tokens": 40},
        }
    }
    assert times(read(completion("a"), completion("b"), event(choices=[], **end))) == (
        [0.0, 1.0],
        False,
    )
    thought = event(choices=[{"delta": {"reasoning": "hm"}}])
    values, estimated = times(read(thought, completion("b"), event(choices=[], **end)))
    assert (len(values), estimated) == (42, True)


def test_arguments_of_a_call_are_tokens():
    """Tool calls stream their arguments; their first event names the function only."""

    def call(**function):
        return event(choices=[{"delta": {"tool_calls": [{"index": 0, "function": function}]}}])

    reader = read(call(name="f", arguments=""), call(arguments='{"x"'), call(arguments=": 1}"))
    assert times(reader) == ([1.0, 2.0], False)


def test_empty_fields_mean_nothing():
    """An empty finish_reason is no end, and "error": null no error."""
    reader = read(event(choices=[{"index": 0, "text": "a", "finish_reason": ""}], error=None))
    assert times(reader) == ([0.0], False)
    assert not reader.finished
    assert reader.error is None


def test_errors_in_the_stream_are_told():
    """An error event ends the reply with its own sentence, in either of its forms."""
    nested = read(completion("a"), event(error={"message": "out of\n memory", "code": 500}))
    assert nested.error == "out of memory"
    assert not nested.finished
    assert read(event(object="error", message="bad")).error == "bad"
    assert read(event(error="plain")).error == "plain"


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ('{"error": {"message": "slow down"}}', "slow down"),
        ('{"detail": "Not Found"}', "Not Found"),
        ('{"object": "error", "message": "too long"}', "too long"),
        ("<html>Bad\nGateway</html>", "<html>Bad Gateway</html>"),
        ('["odd"]', '["odd"]'),
        ("", ""),
        ("x" * 999, "x" * 200),
    ],
)
def test_the_sentence_of_a_refusal(body, sentence):
    """The message in an error's body, whatever its form, in one line of bearable length."""
    assert error_message(body) == sentence
