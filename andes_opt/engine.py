"""Engine profiles: the numbers that make a serving engine, for the simulator and policies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from andes_opt.latency import LatencyModel
    from andes_opt.workload import Requests

_PREEMPTION = ("swap", "recompute")


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """
    One model on one set of GPUs, as a scheduler sees it.

    Parameters
    ----------
    name
        Name of the profile, as in ``conf/engine/``.
    latency
        Iteration latency.
    capacity_tokens
        KV tokens that fit into GPU memory; rounded down to whole blocks.
    block_tokens
        KV tokens per block.
    max_batch
        Most requests that run at once (vLLM's ``max_num_seqs``).
    token_budget
        Most tokens, decode and prefill together, that one iteration computes (vLLM's
        ``max_num_batched_tokens``).
    max_context_tokens
        The model's limit on prompt and reply together (vLLM's ``max_model_len``); see
        :func:`as_served`.
    preemption
        ``"swap"`` moves the KV of an evicted request to host memory and back, as the engine of
        the Andes paper does (vLLM before V1); ``"recompute"`` drops it and computes it again, as
        vLLM V1 always does. So profiles that swap are the paper's engine, not today's vLLM.
    swap_s_per_token
        Seconds to move the KV of one token across the bus, one way; not read with
        ``"recompute"``.
    recompute_hit_share
        Share of an evicted request's KV that a prefix cache still has when the request comes
        back, in [0, 1]; whole blocks of it are not computed again. In vLLM's own cache it
        depends on the policy: from almost nothing where requests wait long to more than half
        where they come back soon (docs/live.md, What the prefix cache still has).
    reserve_full_context
        Whether a waiting or preempted request is let in only if its whole context fits, prompt and
        reply so far, as in vLLM (its ``scheduler_reserve_full_isl``, also True by default). If
        False, the part of it that the iteration computes has to fit, as in vLLM before that
        option. Tokens to come are not counted.
    watermark
        Share of the blocks that letting a request in leaves free, in [0, 1), unless nothing else
        runs; vLLM's option of that name. Running requests may grow into them.
    source
        Where the numbers come from.

    Raises
    ------
    ValueError
        If a number is out of range or the preemption mode is unknown.
    """

    name: str
    latency: LatencyModel
    capacity_tokens: int
    block_tokens: int = 16
    max_batch: int = 256
    token_budget: int = 2048
    max_context_tokens: int = 1_000_000
    preemption: str = "swap"
    swap_s_per_token: float = 0.0
    recompute_hit_share: float = 0.0
    reserve_full_context: bool = True
    watermark: float = 0.0
    source: str = ""

    def __post_init__(self) -> None:
        for name in (
            "capacity_tokens",
            "block_tokens",
            "max_batch",
            "token_budget",
            "max_context_tokens",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} < 1 not understood.")
        if self.preemption not in _PREEMPTION:
            raise ValueError(
                f"preemption = {self.preemption!r} not understood: need one of "
                f"{', '.join(_PREEMPTION)}."
            )
        if not (math.isfinite(self.swap_s_per_token) and self.swap_s_per_token >= 0):
            raise ValueError(f"swap_s_per_token = {self.swap_s_per_token} not understood.")
        if not 0 <= self.recompute_hit_share <= 1:
            raise ValueError(
                f"recompute_hit_share = {self.recompute_hit_share} not understood: need [0, 1]."
            )

        if not isinstance(self.reserve_full_context, bool):
            raise ValueError(
                f"reserve_full_context = {self.reserve_full_context!r} not understood: need true "
                "or false."
            )
        if not 0 <= self.watermark < 1:
            raise ValueError(f"watermark = {self.watermark} not understood: need [0, 1).")

    @property
    def num_blocks(self) -> int:
        """Whole KV blocks that fit."""
        return self.capacity_tokens // self.block_tokens

    @property
    def watermark_blocks(self) -> int:
        """Blocks that letting a request in leaves free."""
        # vLLM takes the share of all its blocks, one of which (the null block) nobody gets.
        return int(self.watermark * (self.num_blocks + 1))


def as_served(requests: Requests, engine: EngineProfile) -> tuple[Requests, NDArray[np.bool_]]:
    """
    The requests as an engine serves them, by vLLM's rules for what is too long.

    A prompt that leaves no room for a token below ``max_context_tokens`` is refused; a reply ends
    where prompt and reply reach that limit. Refused is also what never fits into the KV cache: vLLM
    does not start an engine whose KV cache is too small for one request of the longest length.

    Parameters
    ----------
    requests
        The requests.
    engine
        The engine's profile.

    Returns
    -------
    tuple[Requests, NDArray[np.bool_]]
        All requests, with the lengths that replies end at, and which of them are refused, (n,).
    """
    room = engine.max_context_tokens - requests.prompt_tokens
    output_tokens = np.where(
        room > 0, np.minimum(requests.output_tokens, room), requests.output_tokens
    )
    blocks = -(-(requests.prompt_tokens + output_tokens) // engine.block_tokens)
    refused = (room <= 0) | (blocks > engine.num_blocks)
    return requests.ending_at(output_tokens), refused
