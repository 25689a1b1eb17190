"""How long one engine iteration takes."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class LatencyModel:
    """
    Iteration time by what the iteration computes.

    ``base_s + per_request_s * batch + per_context_token_s * context
    + per_prefill_token_s * prefill``, the form that DistServe (arXiv 2401.09670) and
    Splitwise (arXiv 2311.18677) fit to measured engines, and in iterations with prefill
    ``mixed_base_s + mixed_per_request_s * batch`` on top: requests that decode beside a prompt take
    another time than among themselves. For Qwen3-8B on one RTX 4090 this is
    -4.50 + 0.0932 batch ms (fitted to figures of github.com/kuotunyu/vllm-single-gpu-slo-lab);
    near saturation a model without it misses the time to first token by far.

    Parameters
    ----------
    base_s
        Seconds of every iteration, before anything it computes, > 0.
    per_request_s
        Seconds per request that decodes, >= 0.
    per_context_token_s
        Seconds per KV token that decoding requests attend to, >= 0.
    per_prefill_token_s
        Seconds per prompt token that is computed, >= 0.
    mixed_base_s, mixed_per_request_s
        Seconds, and seconds per request that decodes, more in an iteration with prefill. They may
        be negative as long as ``base_s + mixed_base_s > 0`` and
        ``per_request_s + mixed_per_request_s >= 0``: then every iteration takes some time, whatever
        the batch.

    Raises
    ------
    ValueError
        If a coefficient is not finite or below its limit, or base_s is 0.
    """

    base_s: float
    per_request_s: float
    per_context_token_s: float
    per_prefill_token_s: float
    mixed_base_s: float = 0.0
    mixed_per_request_s: float = 0.0

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            signed = item.name.startswith("mixed_")
            if not (math.isfinite(value) and (signed or value >= 0)):
                need = "a number" if signed else "a number >= 0"
                raise ValueError(f"{item.name} = {value} not understood: need {need}.")
        if self.base_s == 0:
            raise ValueError("base_s = 0 not understood: an iteration takes some time.")
        if not self.base_s + self.mixed_base_s > 0:
            raise ValueError(
                f"mixed_base_s = {self.mixed_base_s} not understood: need more than -base_s, "
                f"{-self.base_s}, as an iteration takes some time."
            )
        if self.per_request_s + self.mixed_per_request_s < 0:
            raise ValueError(
                f"mixed_per_request_s = {self.mixed_per_request_s} not understood: need at least "
                f"-per_request_s, {-self.per_request_s}."
            )

    @property
    def least_base_s(self) -> float:
        """Seconds of every iteration, with or without prefill, at the least."""
        return self.base_s + min(0.0, self.mixed_base_s)

    @property
    def least_per_request_s(self) -> float:
        """Seconds per request that decodes, with or without prefill beside it, at the least."""
        return self.per_request_s + min(0.0, self.mixed_per_request_s)

    def iteration_s(self, batch: float, context_tokens: float, prefill_tokens: float = 0) -> float:
        """
        Seconds of one iteration.

        Parameters
        ----------
        batch
            Requests that decode one token each.
        context_tokens
            KV tokens these requests attend to, in total.
        prefill_tokens
            Prompt tokens computed beside them.
        """
        mixed_s = self.mixed_base_s + self.mixed_per_request_s * batch if prefill_tokens > 0 else 0
        return (
            self.base_s
            + self.per_request_s * batch
            + self.per_context_token_s * context_tokens
            + self.per_prefill_token_s * prefill_tokens
            + mixed_s
        )
