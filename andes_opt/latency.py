"""How long one engine iteration takes."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class LatencyModel:
    """
    Iteration time as a linear function of what the iteration computes.

    ``base_s + per_request_s * batch + per_context_token_s * context
    + per_prefill_token_s * prefill``, the form that DistServe (arXiv 2401.09670) and
    Splitwise (arXiv 2311.18677) fit to measured engines.

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

    Raises
    ------
    ValueError
        If a coefficient is negative or not finite, or base_s is 0.
    """

    base_s: float
    per_request_s: float
    per_context_token_s: float
    per_prefill_token_s: float

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{item.name} = {value} not understood: need a number >= 0.")
        if self.base_s == 0:
            raise ValueError("base_s = 0 not understood: an iteration takes some time.")

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
        return (
            self.base_s
            + self.per_request_s * batch
            + self.per_context_token_s * context_tokens
            + self.per_prefill_token_s * prefill_tokens
        )
