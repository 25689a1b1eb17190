"""Token ids that share what requests share, and hashes that know it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from andes_opt.conversations import Conversations
from andes_opt.lengths import UniformLengths
from andes_opt.workload import Requests
from engine_adapter.emulator.checking_worker import reference
from engine_adapter.emulator.prompts import Prompts, block_hasher, constant_reply

BLOCK = 4


def hashes_of(tokens: list[int], steps: int = 1) -> list[bytes]:
    """Hashes of full blocks, asked for as tokens come, in so many steps."""
    hasher = block_hasher(BLOCK)
    request = SimpleNamespace(block_hashes=[], num_tokens=0, all_token_ids=tokens)
    for step in range(1, steps + 1):
        request.num_tokens = len(tokens) * step // steps
        request.block_hashes.extend(hasher(request))
    hashes: list[bytes] = request.block_hashes
    return hashes


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 500), st.booleans())
def test_prompts_have_their_lengths_and_share_what_they_should(seed: int, checked: bool) -> None:
    """Each begins with its parent's prompt and reply, and with nothing longer of anybody's."""
    reply = reference if checked else constant_reply
    lengths = UniformLengths(prompt_tokens=[1, 20], output_tokens=[1, 20])
    chats = Conversations(5.0, 30, turns=3.0, system_prompt_tokens=7, lengths=lengths)
    requests = chats.generate(seed)
    prompts = Prompts(requests, reply)
    made = [prompts.make(i) for i in range(30)]
    assert [len(prompt) for prompt in made] == requests.prompt_tokens.tolist()
    assert not prompts._kept  # noqa: SLF001  # nothing is kept for longer than it is needed
    for i, (parent, shared) in enumerate(
        zip(requests.prefix_of.tolist(), requests.prefix_tokens.tolist(), strict=True)
    ):
        before: list[int] = []
        if parent >= 0:
            whole = made[parent] + reply(made[parent], int(requests.output_tokens[parent]))
            before = whole[:shared]
        assert made[i][:shared] == before
        own = made[i][shared]
        assert all(own not in other for other in made[:i])


@given(
    st.lists(st.integers(0, 3), max_size=30),
    st.lists(st.integers(0, 3), max_size=30),
    st.integers(1, 5),
)
def test_hashes_tell_beginnings_apart(a: list[int], b: list[int], steps: int) -> None:
    """Equal for equal beginnings of whole blocks, else different; however the tokens came."""
    first, second = hashes_of(a), hashes_of(b)
    assert first == hashes_of(a, steps)
    assert len(first) == len(a) // BLOCK
    for k, (x, y) in enumerate(zip(first, second, strict=False), 1):
        assert (x == y) == (a[: k * BLOCK] == b[: k * BLOCK])


def test_a_whole_prompt_may_be_shared() -> None:
    """A prompt that is sent twice has no token of its own."""
    n = np.ones(2)
    requests = Requests(
        0 * n, 9 * n.astype(int), n.astype(int), n, n, np.array([-1, 0]), np.array([0, 9])
    )
    prompts = Prompts(requests)
    assert prompts.make(0) == prompts.make(1)
