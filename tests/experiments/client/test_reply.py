"""Tokens and their times, read from server-sent events of every dialect."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_server import DONE, FINISH, completion, event, usage

from experiments.client.reply import ReplyReader, error_message


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
        b'data: {"choices": 7, "usage": [1]}\n\n',
        b'data: {"choices": [{"token_ids": 3, "logprobs": 4}]}\n\n',
        b'data: {"choices": [], "usage": {"completion_tokens": 1e99}}\n\n',
        b'data: {"choices": [], "usage": {"completion_tokens": -1}}\n\n',
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


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": None}, {"completion_tokens": None}])
def test_text_counts_whatever_its_usage_lacks(usage):
    """A usage that is null, or has missing or null parts, says nothing and costs nothing."""
    reader = read(completion("a", usage=usage), completion("b", usage=usage), FINISH, DONE)
    assert times(reader) == ([0.0, 1.0], False)
    assert reader.malformed == 0


def test_text_counts_beside_what_makes_no_sense():
    """A count that is no number, or a choice that is no object, costs only itself."""
    odd = event(choices=[{"text": "a"}], usage={"prompt_tokens": "many", "completion_tokens": []})
    reader = read(odd, event(choices=[5, {"index": 1, "text": "b"}]))
    assert times(reader) == ([0.0, 1.0], False)
    assert reader.malformed == 2


def test_counts_of_events_alone_are_added():
    """Counts that don't rise are each event's own, with a total at the end or without."""
    alone = [completion("ab", **usage(5, 1)) for _ in range(10)]
    ten = [float(k) for k in range(10)]
    assert times(read(*alone, FINISH, DONE)) == (ten, False)
    assert times(read(*alone, FINISH, event(choices=[], **usage(5, 10)), DONE)) == (ten, False)
    finish = event(choices=[{"text": "", "finish_reason": "length"}], **usage(5, 10))
    assert times(read(*alone, finish, DONE)) == (ten, False)
    several = [completion("x", **usage(5, k)) for k in (3, 1, 2)]
    assert times(read(*several)) == ([0.0, 0.0, 0.0, 1.0, 2.0, 2.0], False)


def test_text_that_comes_late_does_not_make_counts_others():
    """A count so far may stay where the last text is only flushed."""
    so_far = [completion("x", **usage(5, min(k, 4))) for k in (1, 2, 3, 4, 5)]
    assert times(read(*so_far)) == ([0.0, 1.0, 2.0, 3.0], False)


def choices(*texts, ids=False, **extra):
    """An event with some choices, by number; None for one that is not in it."""
    return event(
        choices=[
            {"index": k, "text": text, **({"token_ids": list(range(len(text)))} if ids else {})}
            for k, text in enumerate(texts)
            if text is not None
        ],
        **extra,
    )


def ends(*numbers, reason="length"):
    """An event that ends some choices."""
    return event(choices=[{"index": k, "text": "", "finish_reason": reason} for k in numbers])


def test_tokens_of_all_choices_count():
    """With several choices in an event, each one's tokens count, listed or not."""
    assert times(read(choices("ab", "cde", ids=True))) == ([0.0] * 5, False)
    assert times(read(choices("ab", "cde"), choices(None, "f"))) == ([0.0, 0.0, 1.0], False)


def test_counts_of_choices_are_told_from_those_of_the_reply():
    """vLLM counts each choice for itself, others the reply; the total at the end says which."""
    turns = [(k, choice) for k in (1, 2, 3) for choice in (0, 1)]
    each = [choices(*[None] * choice, "x", **usage(1, k)) for k, choice in turns]
    six = [float(k) for k in range(6)]
    for end in ([], [event(choices=[], **usage(1, 6))]):
        assert times(read(*each, *end)) == (six, False)
        so_far = [choices(*[None] * (k % 2), "x", **usage(1, k + 1)) for k in range(6)]
        assert times(read(*so_far, *end)) == (six, False)
    totals = [choices("x"), choices(None, "x"), choices("", **usage(1, 1))]
    assert times(read(*totals, choices(None, "", **usage(1, 1)))) == ([0.0, 1.0], False)


def test_a_reply_is_complete_when_each_choice_is():
    """The end of one choice is not that of the others; those that were asked for count."""

    def finished(*events, n=2):
        reader = ReplyReader(n)
        for data in events:
            reader.feed(data, 0.0)
        return reader.finished

    text = choices("a", "b")
    assert not finished(text, ends(0))
    assert not finished(text, ends(0), DONE)
    assert not finished(choices("a"), ends(0), DONE)
    assert finished(text, ends(0), ends(1))
    assert finished(text, ends(0, 1), DONE)
    assert finished(text, DONE)  # by a server that gives no reasons
    assert finished(choices("a"), ends(0), n=1)
    assert not finished(choices("a"), n=1)
    assert not finished(text, ends(0), n=1)  # more came than was asked for


@pytest.mark.parametrize(
    "reason", ["abort", "error", "cancelled", {"type": "abort"}, ["stop"], 7, True, "\x1b[31m"]
)
def test_only_known_reasons_complete_a_reply(reason):
    """An aborted reply is none, though [DONE] follows; what came is kept."""
    reader = read(completion("a"), ends(0, reason=reason), DONE)
    assert "finish_reason" in reader.error
    assert "\x1b" not in reader.error
    assert times(reader) == ([0.0], False)


@pytest.mark.parametrize("reason", ["stop", "length", "tool_calls", "eos_token", "MAX_TOKENS"])
def test_reasons_of_many_servers_are_known(reason):
    """Those of a complete reply, in capitals or not."""
    reader = read(completion("a"), ends(0, reason=reason))
    assert reader.finished
    assert reader.error is None


@pytest.mark.parametrize(
    "delta",
    [
        {"refusal": "I can't"},
        {"function_call": {"arguments": "{}"}},
        {"content": [{"type": "text", "text": "a"}]},
        {"audio": {"id": "x", "transcript": "a"}},
        {"thinking": "hm"},
    ],
)
def test_text_is_text_in_whatever_field(delta):
    """Refusals, calls of a function, parts of content: somebody waits for each."""
    none = event(choices=[{"delta": {"role": "assistant", "function_call": {"name": "f"}}}])
    assert times(read(none, event(choices=[{"delta": delta}]), FINISH)) == ([1.0], False)


def test_thoughts_under_two_names_count_once():
    """vLLM sends the same thoughts under an old and a new name."""
    both = event(choices=[{"delta": {"reasoning": "abcd", "reasoning_content": "abcd"}}])
    reader = read(both, completion("efgh"), event(choices=[], **usage(1, 4)))
    assert times(reader) == ([0.0, 0.0, 1.0, 1.0], True)


def test_tokens_that_were_counted_but_not_shown_came_by_the_end():
    """A reply of special tokens only is not empty where the server counts them."""
    reader = read(ends(0), event(choices=[], **usage(1, 3)), DONE)
    assert times(reader) == ([2.0] * 3, True)


@pytest.mark.parametrize(
    "data",
    [
        b'event: error\ndata: {"message": "no memory"}\n\n',
        b'error: {"message": "no memory"}\n\n',
        event(type="error", error={"message": "no memory"}),
        event(choices=[{"index": 0, "error": {"message": "no memory"}}]),
    ],
)
def test_errors_of_every_dialect_fail_the_reply(data):
    """By the event's type, a field of its own, or inside a choice."""
    reader = read(completion("a"), data, FINISH, DONE)
    assert "no memory" in reader.error


def test_what_is_no_stream_at_all_is_said():
    """Lines without data are no tokens, and the reader says how they begin."""
    reader = read(b'{"choices": []}\n')
    assert "no event of a stream" in reader.what_is_missing()
    assert "choices" in reader.what_is_missing()


def test_a_message_is_fit_for_a_terminal():
    """Escape sequences of a server's are spelled out."""
    assert error_message('{"error": "\\u001b[2Jgone\\u202e"}') == "\\x1b[2Jgone\\u202e"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                [
                    "choices",
                    "usage",
                    "delta",
                    "text",
                    "content",
                    "index",
                    "finish_reason",
                    "error",
                    "completion_tokens",
                    "prompt_tokens",
                    "token_ids",
                    "logprobs",
                    "object",
                    "type",
                    "completion_tokens_details",
                    "reasoning_tokens",
                    "reasoning",
                ]
            ),
            inner,
        )
    ),
    max_leaves=12,
)
ODD = st.sampled_from(
    [
        completion("ab"),
        completion("ab", usage=None),
        completion("ab", **usage(1, 1)),
        completion("", **usage(1, 2)),
        event(choices=[], **usage(3, 7)),
        choices("a", "b", ids=True),
        b"\xef\xbb\xbf",
        b": ping\n",
        b"data: {\n",
        b"garbage\r",
    ]
)


@settings(max_examples=300, deadline=None)
@given(
    parts=st.lists(
        ODD | st.builds(lambda value: f"data: {json.dumps(value)}\n".encode(), VALUES), max_size=8
    ),
    end=st.sampled_from(
        [b"", DONE, FINISH, FINISH + DONE, b"data: [DONE]", ends(0, reason="abort")]
    ),
    cuts=st.lists(st.integers(0, 500), max_size=5),
)
def test_no_stream_breaks_the_reader(parts, end, cuts):
    """Whatever comes, times are in order, and only what ends well is complete."""
    stream = b"".join(parts) + end
    bounds = [0, *sorted(min(place, len(stream)) for place in cuts), len(stream)]
    reader = ReplyReader()
    for k, (first, last) in enumerate(pairwise(bounds)):
        reader.feed(stream[first:last], float(k))
    reader.end()
    values, _ = reader.token_times_s()
    assert (np.diff(values) >= 0).all()
    assert reader.events <= stream.count(b"data:")
    if end == ends(0, reason="abort"):
        assert reader.error is not None
    if reader.finished and reader.error is None and not reader.gives_reasons:
        assert b"[DONE]" in stream
