"""What prompts share: by blocks of tokens and by sessions, against the tokens themselves."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from andes_opt.shared_prefixes import by_blocks, by_sessions

BLOCK = 4


def common(a: list[int], b: list[int]) -> int:
    """Tokens with which both begin."""
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=12))
def test_blocks_share_the_longest_beginning_of_any_earlier_prompt(ids: list[list[int]]) -> None:
    """Whatever the ids are, nothing longer is shared with any earlier prompt, and nothing else."""
    prompts = [[token for key in blocks for token in [key] * BLOCK] for blocks in ids]
    lengths = np.array([len(prompt) for prompt in prompts])
    parent, shared = by_blocks(ids, BLOCK, lengths)
    for i, prompt in enumerate(prompts):
        # Equal blocks at other places are no common beginning.
        best = max((common(prompt, other) // BLOCK * BLOCK for other in prompts[:i]), default=0)
        assert shared[i] == best
        if best:
            assert 0 <= parent[i] < i
            assert prompt[:best] == prompts[parent[i]][:best]
        else:
            assert parent[i] == -1


def test_a_last_block_with_fewer_tokens_counts_as_it_is() -> None:
    """Two prompts with the same ids share no more tokens than the shorter one has."""
    parent, shared = by_blocks([[1, 2], [1, 2], [1, 3]], BLOCK, np.array([6, 7, 8]))
    assert parent.tolist() == [-1, 0, 0]
    assert shared.tolist() == [0, 6, 4]


def sessions(rows: list[tuple[str, int, int, int]]) -> tuple[list[int], list[int]]:
    """Rows of session, stated tokens, prompt and reply; what they share."""
    names, stated, prompt, output = zip(*rows, strict=True)
    parent, shared = by_sessions(names, np.array(stated), np.array(prompt), np.array(output))
    return parent.tolist(), shared.tolist()


def test_a_session_goes_on_where_its_last_reply_ended() -> None:
    """Without a number the whole of it is shared, unless the prompt is too short for that."""
    rows = [("a", -1, 10, 5), ("b", -1, 8, 2), ("a", -1, 20, 5), ("a", -1, 12, 5), ("b", -1, 30, 1)]
    assert sessions(rows) == ([-1, -1, 0, -1, 1], [0, 0, 15, 0, 10])


def test_stated_tokens_are_capped_at_what_there_was() -> None:
    """A log may count tokens otherwise; no prompt begins with more than there was."""
    assert sessions([("a", 0, 10, 5), ("a", 40, 50, 1)]) == ([-1, 0], [0, 15])


def test_prompts_without_a_session_begin_alike() -> None:
    """A system prompt is shared by all, as far as an earlier one had it."""
    rows = [("", 5, 10, 1), ("", 8, 10, 1), ("", 8, 9, 1), ("x", 6, 9, 1), ("", 0, 9, 1)]
    assert sessions(rows) == ([-1, 0, 1, 1, -1], [0, 5, 8, 6, 0])


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["", "a", "b"]),
            st.integers(-1, 30),
            st.integers(0, 30),
            st.integers(1, 9),
        ),
        min_size=1,
        max_size=15,
    )
)
def test_sessions_never_share_what_is_not_there(rows: list[tuple[str, int, int, int]]) -> None:
    """Parents come before their children and have what is shared, and so has the prompt."""
    rows = [(name, stated, max(1, stated, own), out) for name, stated, own, out in rows]
    parent, shared = sessions(rows)
    for i, (before, tokens) in enumerate(zip(parent, shared, strict=True)):
        assert -1 <= before < i
        assert (before >= 0) == (tokens > 0)
        if tokens:
            assert tokens <= rows[i][2]
            assert tokens <= rows[before][2] + rows[before][3]
