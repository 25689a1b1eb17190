"""
What prompts have in common: the earlier request with which each prompt begins.

Traces say it by sessions (a prompt goes on where the session's last reply ended), or by ids of
blocks of tokens (equal ids, equal tokens). Both become places of earlier requests and numbers of
tokens, as :class:`andes_opt.workload.Requests` has them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def by_blocks(
    ids: Sequence[Sequence[int]], block_tokens: int, prompt_tokens: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """
    Find the longest common beginning of each prompt with an earlier one.

    Parameters
    ----------
    ids
        Of the blocks of each prompt, in order.
    block_tokens
        Tokens of a block; the last one of a prompt may have fewer.
    prompt_tokens
        Prompt lengths, (n,).

    Returns
    -------
    tuple[NDArray[np.int64], NDArray[np.int64]]
        ``prefix_of`` and ``prefix_tokens``, (n,) each.
    """
    parent = np.full(len(ids), -1)
    shared = np.zeros(len(ids), dtype=np.int64)
    # A tree of beginnings: (beginning, next id) to the longer beginning, and who had it first.
    longer: dict[tuple[int, int], int] = {}
    first_with: list[int] = [-1]
    for number, blocks in enumerate(ids):
        beginning, blocks_shared = 0, 0
        for block in blocks:
            known = longer.get((beginning, block))
            if known is None:
                known = longer[beginning, block] = len(first_with)
                first_with.append(number)
            else:
                blocks_shared += 1
                parent[number] = first_with[known]
            beginning = known
        if blocks_shared:
            most = min(prompt_tokens[number], prompt_tokens[parent[number]])
            shared[number] = min(blocks_shared * block_tokens, most)
    return parent, shared


def by_sessions(
    sessions: Sequence[str],
    stated_tokens: NDArray[np.int64],
    prompt_tokens: NDArray[np.int64],
    output_tokens: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """
    Let each prompt begin with what its session has said so far.

    Parameters
    ----------
    sessions
        The session of each request; empty for none.
    stated_tokens
        Tokens with which a prompt begins as the session's last prompt and reply do, (n,); capped
        at what these have. Of requests without a session, and of the first of one: as all
        others of these do, a system prompt say. Negative where nothing is stated: then a prompt
        begins with the session's last prompt and reply if it is long enough.
    prompt_tokens, output_tokens
        Lengths, (n,).

    Returns
    -------
    tuple[NDArray[np.int64], NDArray[np.int64]]
        ``prefix_of`` and ``prefix_tokens``, (n,) each.
    """
    n = len(sessions)
    parent, shared = np.full(n, -1), np.zeros(n, dtype=np.int64)
    last: dict[str, int] = {}
    longest = -1  # of those that begin as all do: the one with most of it
    for number, session in enumerate(sessions):
        stated = int(stated_tokens[number])
        before = last.get(session, -1) if session else -1
        if session:
            last[session] = number
        if before >= 0:
            whole = int(prompt_tokens[before] + output_tokens[before])
            if stated < 0:
                stated = whole if whole <= prompt_tokens[number] else 0
            tokens = min(stated, whole)
        else:
            before, tokens = longest, min(max(stated, 0), _stated(stated_tokens, longest))
            if stated > _stated(stated_tokens, longest):
                longest = number
        if tokens > 0:
            parent[number], shared[number] = before, tokens
    return parent, shared


def _stated(stated_tokens: NDArray[np.int64], number: int) -> int:
    return int(stated_tokens[number]) if number >= 0 else 0
