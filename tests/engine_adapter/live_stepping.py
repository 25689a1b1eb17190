"""
vLLM's scheduler without a model: a config, a KV cache of numbers, and a worker that computes
on it.

The worker keeps what vLLM's model runner keeps (token lists, block tables) and a paged memory.
The "KV" of a token mixes its predecessor's KV, read back through the block table, with the
token; the next token is a hash of all KV of the request, read back too. So a stream comes out
right only if every block was where it should be, and a reference needs the tokens alone.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_MASK = (1 << 61) - 1
VOCABULARY = 251


def mix(before: int, token: int, position: int) -> int:
    """KV of a token."""
    return (before * 1_000_003 + token * 8_191 + position * 127 + 12_345) & _MASK


def next_token(memory: list[int]) -> int:
    """The token that follows a context with this KV."""
    return (sum(memory) // 7) % VOCABULARY


def reference(prompt: list[int], tokens: int) -> list[int]:
    """What any correct engine answers to a prompt."""
    memory: list[int] = []
    for token in prompt:
        memory.append(mix(memory[-1] if memory else 0, token, len(memory)))
    reply = []
    while len(reply) < tokens:
        reply.append(next_token(memory))
        memory.append(mix(memory[-1], reply[-1], len(memory)))
    return reply


def write_tiny_config(folder: Path, *, positions: int = 2048) -> str:
    """A model folder with a config and nothing else."""
    config = {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "hidden_size": 64,
        "ffn_dim": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 256,
        "max_position_embeddings": positions,
        "word_embed_proj_dim": 64,
        "do_layer_norm_before": True,
        "activation_function": "relu",
        "bos_token_id": 2,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def make_scheduler(
    model: str,
    scheduler_class: Any,
    *,
    blocks: int = 40,
    block_tokens: int = 16,
    max_batch: int = 16,
    token_budget: int = 128,
    max_context: int = 512,
    asynchronous: bool = False,
    prefix_caching: bool = True,
    chunked_prefill: bool = True,
    reserve_full_context: bool = True,
    watermark: float = 0.0,
    additional_config: dict[str, Any] | None = None,
) -> Any:
    """A scheduler of vLLM's with ``blocks`` usable KV blocks."""
    import torch
    from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    config = VllmConfig(
        model_config=ModelConfig(
            model=model,
            tokenizer=model,
            skip_tokenizer_init=True,
            dtype="float32",
            max_model_len=max_context,
        ),
        scheduler_config=SchedulerConfig(
            max_num_seqs=max_batch,
            max_num_batched_tokens=token_budget if chunked_prefill else max_context,
            max_model_len=max_context,
            enable_chunked_prefill=chunked_prefill,
            is_encoder_decoder=False,
            async_scheduling=asynchronous,
            scheduler_reserve_full_isl=reserve_full_context,
            watermark=watermark,
        ),
        cache_config=CacheConfig(block_size=block_tokens, enable_prefix_caching=prefix_caching),
        device_config=DeviceConfig("cpu"),
        additional_config=additional_config or {},
    )
    # The CPU platform switches asynchronous scheduling off.
    config.scheduler_config.async_scheduling = asynchronous
    config.cache_config.num_gpu_blocks = blocks + 1
    spec = FullAttentionSpec(
        block_size=block_tokens, num_kv_heads=1, head_size=1, dtype=torch.float32
    )
    return scheduler_class(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=blocks + 1,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=block_tokens,
        log_stats=False,
    )


def make_request(
    scheduler: Any, key: str, prompt: list[int], max_tokens: int, **extra_args: Any
) -> Any:
    """A request as the engine core makes it."""
    from vllm.sampling_params import SamplingParams
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.request import Request

    hasher = None
    if scheduler.cache_config.enable_prefix_caching:
        init_none_hash(sha256)
        hasher = get_request_block_hasher(scheduler.block_size, sha256)
    return Request(
        request_id=key,
        prompt_token_ids=prompt,
        sampling_params=SamplingParams(
            max_tokens=max_tokens, ignore_eos=True, extra_args=extra_args or None
        ),
        pooling_params=None,
        block_hasher=hasher,
    )


@dataclass
class _Cached:
    tokens: list[int]
    prompt_tokens: int
    blocks: list[int]
    computed: int


@dataclass
class Worker:
    """
    What vLLM's model runners do with a scheduler's output, on numbers.

    The second runner (``second``), which GPUs have, keeps each request's tokens itself, forgets
    preempted ones, and gets resumed ones as new ones that bring their replies.
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

    def execute(self, output: Any) -> Any:
        """Run one iteration."""
        from vllm.v1.outputs import ModelRunnerOutput

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

        keys = list(scheduled)
        return ModelRunnerOutput(
            req_ids=keys,
            req_id_to_index={key: i for i, key in enumerate(keys)},
            sampled_token_ids=[self._compute(key, scheduled[key]) for key in keys],
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )

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
        sampled = next_token([self.memory[slot] for slot in slots])
        state.tokens.append(sampled)
        return [sampled]


@dataclass
class Engine:
    """vLLM's engine-core loop around a scheduler and a :class:`Worker`."""

    scheduler: Any
    worker: Worker
    depth: int
    queue: deque[tuple[Any, Any]] = field(default_factory=deque)
    replies: dict[str, list[int]] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    steps: int = 0
    on_step: Callable[[Engine], None] | None = None
    on_output: Callable[[Any], None] | None = None

    @classmethod
    def around(cls, scheduler: Any) -> Engine:
        """An engine for a scheduler of :func:`make_scheduler`."""
        asynchronous = bool(scheduler.scheduler_config.async_scheduling)
        blocks = scheduler.kv_cache_config.num_blocks - 1
        second = bool(getattr(scheduler, "use_v2_model_runner", False))
        worker = Worker(blocks, scheduler.block_size, asynchronous, second)
        return cls(scheduler, worker, 2 if asynchronous else 1)

    def add(self, key: str, prompt: list[int], max_tokens: int, **extra_args: Any) -> None:
        """Let a request arrive."""
        self.replies[key] = []
        request = make_request(self.scheduler, key, prompt, max_tokens, **extra_args)
        self.scheduler.add_request(request)

    def abort(self, key: str | None) -> None:
        """Let a client hang up; None for all of them."""
        from vllm.v1.request import RequestStatus

        self.scheduler.finish_requests(key, RequestStatus.FINISHED_ABORTED)

    def step(self) -> None:
        """One turn of the loop: schedule, and process the oldest output if the queue is full."""
        scheduler = self.scheduler
        if scheduler.has_requests():
            output = scheduler.schedule()
            self.steps += 1
            self._check(output)
            if self.on_output is not None:
                self.on_output(output)
            self.queue.append((output, self.worker.execute(output)))
            if len(self.queue) < self.depth and (
                output.total_num_scheduled_tokens or scheduler.has_requests()
            ):
                return
        if not self.queue:
            return
        output, result = self.queue.popleft()
        for outputs in scheduler.update_from_output(output, result).values():
            for item in outputs.outputs:
                self.replies[item.request_id] += item.new_token_ids
                if item.finish_reason is not None:
                    self.finished.add(item.request_id)
        if self.on_step is not None:
            self.on_step(self)

    def drain(self, most_steps: int) -> None:
        """Step until nothing is left; AssertionError if that takes too long."""
        for _ in range(most_steps):
            if not self.scheduler.has_requests() and not self.queue:
                return
            self.step()
        raise AssertionError(f"{len(self.scheduler.requests)} requests stuck: {self.state()}")

    def state(self) -> str:
        """A line about the queues, for failures."""
        scheduler = self.scheduler
        return (
            f"running {[r.request_id for r in scheduler.running]}, "
            f"waiting {[r.request_id for r in scheduler.waiting]}, "
            f"free {scheduler.kv_cache_manager.block_pool.get_num_free_blocks()}"
        )

    def _check(self, output: Any) -> None:
        scheduler = self.scheduler
        assert output.total_num_scheduled_tokens <= scheduler.max_num_scheduled_tokens
        assert len(scheduler.running) <= scheduler.max_num_running_reqs
        queued = [r.request_id for r in (*scheduler.running, *scheduler.waiting)]
        assert len(queued) == len(set(queued)), "a request is queued twice"
        # By vLLM's version, those that wait for something else have a queue of their own.
        blocked = [
            getattr(scheduler, name, ()) for name in ("kv_holding_waiting", "skipped_waiting")
        ]
        everyone = set(queued) | {r.request_id for queue in blocked for r in queue}
        unfinished = {k for k, r in scheduler.requests.items() if not r.is_finished()}
        assert everyone == unfinished, f"lost: {unfinished - everyone}"


class Start(Protocol):
    """What the fixture ``start`` gives: makes an engine, which ends with the test."""

    def __call__(
        self,
        policy: dict[str, Any] | None = None,
        *,
        asynchronous: bool = False,
        scheduler_class: Any = None,
        adapter: dict[str, Any] | None = None,
        **options: Any,
    ) -> Engine:
        """With a policy an engine of ours, without one vLLM's own; options of make_scheduler."""
        ...
