"""Engine profiles: the numbers that make a serving engine, for the simulator and policies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from andes_opt.checks import non_negative, whole

if TYPE_CHECKING:
    from andes_opt.latency import LatencyModel

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
        The model's limit on prompt and reply together.
    preemption
        ``"swap"`` moves the KV of an evicted request to host memory and back;
        ``"recompute"`` drops it and computes it again.
    swap_s_per_token
        Seconds to move the KV of one token across the bus, one way.
    recompute_hit_share
        Share of an evicted request's KV that a prefix cache still has when the request comes
        back, in [0, 1]; whole blocks of it are not computed again.
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
    source: str = ""

    def __post_init__(self) -> None:
        for name in (
            "capacity_tokens",
            "block_tokens",
            "max_batch",
            "token_budget",
            "max_context_tokens",
        ):
            whole(name, getattr(self, name), 1)
        if self.preemption not in _PREEMPTION:
            raise ValueError(
                f"preemption = {self.preemption!r} not understood: need one of "
                f"{', '.join(_PREEMPTION)}."
            )
        non_negative("swap_s_per_token", self.swap_s_per_token)
        if not 0 <= self.recompute_hit_share <= 1:
            raise ValueError(
                f"recompute_hit_share = {self.recompute_hit_share} not understood: need [0, 1]."
            )

    @property
    def num_blocks(self) -> int:
        """Whole KV blocks that fit."""
        return self.capacity_tokens // self.block_tokens
