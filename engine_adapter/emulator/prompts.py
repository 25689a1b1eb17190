"""
Token ids of prompts and replies, and the hashes by which vLLM's prefix cache knows them.

Only which tokens are the same matters to a scheduler. A prompt begins with what it shares with an
earlier request and goes on with a token that no other request has; so blocks are found in the
prefix cache if, and only if, a real engine would find them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from andes_opt.workload import Requests

#: All tokens of a reply of the emulated model, and those of a prompt but the first of its own.
REPLY_TOKEN, FILLER_TOKEN = 1, 2
_FIRST_OWN_TOKEN = 1000
_HASH_MASK = (1 << 64) - 1


def constant_reply(prompt: list[int], tokens: int) -> list[int]:
    """Returns the emulated model's reply to any prompt."""
    del prompt
    return [REPLY_TOKEN] * tokens


class Prompts:
    """
    The token ids of the prompts of a run, each made when its request arrives.

    Parameters
    ----------
    requests
        The requests; ``prefix_of`` and ``prefix_tokens`` say what they share.
    reply
        Prompt and length to the tokens of a reply: the model.
    """

    def __init__(
        self, requests: Requests, reply: Callable[[list[int], int], list[int]] = constant_reply
    ) -> None:
        self._lengths = requests.prompt_tokens.tolist()
        self._output_tokens = requests.output_tokens
        self._reply = reply
        self._prefix_of = requests.prefix_of
        self._prefix_tokens = requests.prefix_tokens
        # Prompts that later requests share are kept until the last of these has been made.
        self._kept: dict[int, list[int]] = {}
        later = requests.prefix_of[requests.prefix_of >= 0]
        self._still_shared = np.bincount(later, minlength=requests.num_requests)

    def make(self, number: int) -> list[int]:
        """Returns the prompt of a request; once for each, parents before their children."""
        prompt = self._shared(number)
        own = self._lengths[number] - len(prompt)
        if own > 0:
            prompt.append(_FIRST_OWN_TOKEN + number)
            prompt.extend([FILLER_TOKEN] * (own - 1))
        if self._still_shared[number]:
            self._kept[number] = prompt.copy()
        return prompt

    def _shared(self, number: int) -> list[int]:
        """The tokens that a prompt shares with an earlier request's prompt and reply."""
        parent = int(self._prefix_of[number])
        if parent < 0:
            return []
        tokens = int(self._prefix_tokens[number])
        shared = self._kept[parent][:tokens]
        if tokens > len(shared):
            output = int(self._output_tokens[parent])
            shared += self._reply(self._kept[parent], output)[: tokens - len(shared)]
        self._still_shared[parent] -= 1
        if not self._still_shared[parent]:
            del self._kept[parent]
        return shared


def block_hasher(block_tokens: int) -> Callable[[Any], list[bytes]]:
    """
    Returns what computes the hashes of a request's new full blocks, as vLLM asks for them.

    Each hash stands for a block's tokens and all that come before. vLLM's own hashes (SHA-256 of
    pickled tokens) tell the same blocks apart, and take a hundred times as long.

    Parameters
    ----------
    block_tokens
        Tokens of a block.
    """

    def new_hashes(request: Any) -> list[bytes]:
        known = request.block_hashes
        start = len(known) * block_tokens
        end = request.num_tokens
        if start + block_tokens > end:
            return []
        tokens = request.all_token_ids[start:end]
        before = int.from_bytes(known[-1], "little") if known else 0
        hashes = []
        for first in range(0, end - start - block_tokens + 1, block_tokens):
            before = hash((before, *tokens[first : first + block_tokens])) & _HASH_MASK
            hashes.append(before.to_bytes(8, "little"))
        return hashes

    return new_hashes
