"""Conversations: prompts that grow, turns that wait for their readers, a system prompt for all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andes_opt.conversations import Conversations
from andes_opt.lengths import FixedLengths, TableLengths
from andes_opt.readers import fixed
from andes_opt.workload import Workload


def chat(**changes: Any) -> Conversations:
    """Short turns, all alike."""
    options: dict[str, Any] = {
        "rate": 2.0,
        "requests": 200,
        "turns": 3.0,
        "system_prompt_tokens": 40,
        "lengths": FixedLengths(prompt_tokens=10, output_tokens=20),
        "readers": fixed(tds=5.0, ttft_s=1.0),
    }
    return Conversations(**{**options, **changes})


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(1.0, 6.0), st.integers(0, 60))
def test_each_turn_begins_with_all_that_was_said(seed: int, turns: float, system: int) -> None:
    """A prompt is its parent's prompt and reply and new words; a first turn, system and words."""
    requests = chat(turns=turns, system_prompt_tokens=system).generate(seed)
    whole = requests.prompt_tokens + requests.output_tokens
    for i, parent in enumerate(requests.prefix_of.tolist()):
        shared, prompt = int(requests.prefix_tokens[i]), int(requests.prompt_tokens[i])
        if shared > system:
            assert shared == whole[parent] == prompt - 10
            # An ideal reader has read the reply before the next turn comes.
            read_s = requests.arrival_s[parent] + 1.0 + 20 / 5.0
            assert requests.arrival_s[i] >= read_s - 1e-9
        else:
            assert prompt == system + 10
            assert (parent, shared) == ((0, system) if i and system else (-1, 0))


def test_the_rate_is_that_of_requests() -> None:
    """Once conversations come and go, so many requests a second arrive, whatever the turns."""
    requests = chat(requests=8000, rate=5.0, turns=4.0, think_s=2.0).generate(0)
    late = requests.arrival_s[4000:]
    assert 4000 / (late[-1] - late[0]) == pytest.approx(5.0, rel=0.1)


def test_a_conversation_ends_before_it_is_too_long() -> None:
    """No prompt is longer than allowed, but for first turns."""
    requests = chat(turns=50.0, max_prompt_tokens=150, requests=500).generate(1)
    assert requests.prompt_tokens.max() <= 150
    assert requests.prompt_tokens.max() > 110
    assert chat(max_prompt_tokens=1, requests=20).generate(1).num_requests == 20


def test_a_higher_rate_brings_the_same_conversations_closer_together() -> None:
    """Lengths of conversation k do not depend on the rate, and its start is that much earlier."""
    alone = {"turns": 1.0, "lengths": TableLengths()}
    slow, fast = chat(rate=1.0, **alone).generate(3), chat(rate=4.0, **alone).generate(3)
    np.testing.assert_array_equal(slow.prompt_tokens, fast.prompt_tokens)
    np.testing.assert_allclose(slow.arrival_s, 4.0 * fast.arrival_s)
    assert isinstance(chat(), Workload)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("rate", 0.0),
        ("requests", 0),
        ("turns", 0.5),
        ("system_prompt_tokens", -1),
        ("think_s", -1.0),
        ("max_prompt_tokens", 0),
    ],
)
def test_bad_options(option: str, value: float) -> None:
    """Each is refused in a sentence with its name."""
    with pytest.raises(ValueError, match=option):
        chat(**{option: value})
