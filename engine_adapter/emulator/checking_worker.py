"""
A worker that computes on the KV cache, so that wrong block tables show as wrong tokens.

It keeps what vLLM's model runners keep (token lists, block tables) and a paged memory. The "KV" of
a token mixes its predecessor's KV, read back through the block table, with the token; the next
token is a hash of all KV of the request, read back too. So a stream comes out right only if every
block was where it should be, and a reference needs the tokens alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_MASK = (1 << 61) - 1
VOCABULARY = 251


def mix(before: int, token: int, position: int) -> int:
    """KV of a token."""
    return (before * 1_000_003 + token * 8_191 + position * 127 + 12_345) & _MASK


def token_after(sum_of_kv: int) -> int:
    """The token that follows a context whose KV has this sum."""
    return (sum_of_kv // 7) % VOCABULARY


def reference(prompt: list[int], tokens: int) -> list[int]:
    """What any correct engine answers to a prompt."""
    last, total, length = 0, 0, 0
    reply: list[int] = []
    for token in prompt:
        last = mix(last, token, length)
        total, length = total + last, length + 1
    while len(reply) < tokens:
        reply.append(token_after(total))
        last = mix(last, reply[-1], length)
        total, length = total + last, length + 1
    return reply


@dataclass
class _Cached:
    tokens: list[int]
    prompt_tokens: int
    blocks: list[int]
    computed: int


@dataclass
class CheckingWorker:
    """
    What vLLM's model runners do with a scheduler's output, on numbers.

    Parameters
    ----------
    blocks, block_tokens
        Usable KV blocks, and the tokens of one.
    asynchronous
        Whether iterations are scheduled before the tokens of the one before are known.
    second
        The protocol of vLLM's second model runner, which GPUs have: it keeps each request's
        tokens itself, forgets preempted ones, and gets resumed ones as new ones that bring their
        replies.
    """

    blocks: int
    block_tokens: int
    asynchronous: bool
    second: bool = False
    cached: dict[str, _Cached] = field(default_factory=dict)
    batch: set[str] = field(default_factory=set)
    memory: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.memory = [-1] * ((self.blocks + 1) * self.block_tokens)

    @classmethod
    def of(cls, scheduler: Any) -> CheckingWorker:
        """A worker for a scheduler, with the protocol that the scheduler speaks."""
        return cls(
            scheduler.kv_cache_config.num_blocks - 1,
            scheduler.block_size,
            bool(scheduler.scheduler_config.async_scheduling),
            bool(getattr(scheduler, "use_v2_model_runner", False)),
        )

    def execute(self, output: Any) -> Any:
        """Run one iteration; AssertionError if a request has no room for what it computes."""
        from vllm.v1.outputs import ModelRunnerOutput

        self._update(output)
        scheduled = output.num_scheduled_tokens
        keys = list(scheduled)
        return ModelRunnerOutput(
            req_ids=keys,
            req_id_to_index={key: i for i, key in enumerate(keys)},
            sampled_token_ids=[self._compute(key, scheduled[key]) for key in keys],
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )

    def _update(self, output: Any) -> None:
        """Take over what the scheduler says of each request, as vLLM's runners do."""
        gone = set(output.finished_req_ids)
        if self.second:
            gone |= output.preempted_req_ids or set()
        for key in gone:
            self.cached.pop(key, None)
            self.batch.discard(key)
        scheduled = output.num_scheduled_tokens
        resumed = output.scheduled_cached_reqs.resumed_req_ids
        self.batch &= set(scheduled) - set(resumed)

        for new in output.scheduled_new_reqs:
            known = new.prefill_token_ids if self.second else new.prompt_token_ids
            self.cached[new.req_id] = _Cached(
                tokens=list(known),
                prompt_tokens=len(new.prompt_token_ids),
                blocks=list(new.block_ids[0]),
                computed=new.num_computed_tokens,
            )
        data = output.scheduled_cached_reqs
        for i, key in enumerate(data.req_ids):
            state = self.cached[key]
            state.computed = data.num_computed_tokens[i]
            if key in resumed:
                state.blocks = list(data.new_block_ids[i][0])
            elif data.new_block_ids[i] is not None:
                state.blocks.extend(data.new_block_ids[i][0])
            if self.second:
                continue
            outputs = data.num_output_tokens[i]
            del state.tokens[state.prompt_tokens + outputs :]
            if key not in self.batch and self.asynchronous and outputs > 0:
                # The runner trusts the scheduler's copy when a request comes back.
                reply = data.all_token_ids[key][-outputs:]
                state.tokens[state.prompt_tokens :] = reply
        self.batch |= set(scheduled)

    def _compute(self, key: str, tokens: int) -> list[int]:
        state = self.cached[key]
        end = state.computed + tokens
        assert end <= len(state.tokens), f"{key}: {end} tokens asked for, {len(state.tokens)} known"
        slots = [
            block * self.block_tokens + offset
            for block in state.blocks
            for offset in range(self.block_tokens)
        ][:end]
        assert len(slots) == end, f"{key}: {len(slots)} slots for {end} tokens"
        for position in range(state.computed, end):
            before = self.memory[slots[position - 1]] if position else 0
            self.memory[slots[position]] = mix(before, state.tokens[position], position)
        if end < len(state.tokens):
            return []
        sampled = token_after(sum(self.memory[slot] for slot in slots))
        state.tokens.append(sampled)
        return [sampled]
