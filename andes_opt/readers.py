"""
Readers of the replies, and what they expect: the QoE target of each request.

A reader expects the first token ``ttft_s`` after asking and then ``tds`` tokens/s. The
populations are those of the Andes paper (arXiv 2404.16283v1, section 2 and its released
trace generator): people who read, by age, and people who listen, by language.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from andes_opt import checks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

#: Share of each age group in % (18-24, 25-44, 45-54, 55-64, 65+) and its seconds per token:
#: 236, 200, 192, 185 and 175 words/min at 1.30 tokens a word.
READING_SHARES = (28.04, 51.87, 11.19, 5.56, 3.33)
READING_S_PER_TOKEN = (0.196, 0.230, 0.240, 0.249, 0.264)

#: Share of each language in % (English, Chinese, Korean, French, Spanish) and the seconds
#: that speaking a token takes.
SPEAKING_SHARES = (79.29, 7.03, 6.92, 3.58, 3.17)
SPEAKING_S_PER_TOKEN = (0.31, 0.15, 0.19, 0.15, 0.13)


@runtime_checkable
class Readers(Protocol):
    """A distribution of QoE targets."""

    def sample(
        self, rng: np.random.Generator, prompt_tokens: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """
        Draw the target of each request.

        Parameters
        ----------
        rng
            Source of randomness. The reader of request k depends on it alone, not on how
            many there are.
        prompt_tokens
            Prompt lengths, (n,); an expected first token may depend on them.

        Returns
        -------
        tuple[NDArray[np.float64], NDArray[np.float64]]
            ``ttft_s`` and ``tds`` (tokens/s), (n,) each.
        """
        ...


@dataclass(frozen=True, slots=True)
class Population:
    """
    Several kinds of readers, each with its speed.

    Parameters
    ----------
    shares
        Share of each kind, > 0, on any scale.
    tds
        Tokens/s that each kind digests, > 0.
    ttft_s
        Seconds after which the first token is expected, >= 0.
    prompt_tokens_per_s
        If given, readers expect a later first token after a long prompt:
        ``max(ttft_s, prompt_tokens / prompt_tokens_per_s)``. Andes v2 uses 5000.

    Raises
    ------
    ValueError
        If shares and speeds do not pair up or a number is out of range.
    """

    shares: Sequence[float]
    tds: Sequence[float]
    ttft_s: float = 1.0
    prompt_tokens_per_s: float | None = None

    def __post_init__(self) -> None:
        shares, tds = tuple(self.shares), tuple(self.tds)
        if len(shares) != len(tds) or not shares:
            raise ValueError(f"{len(shares)} shares for {len(tds)} reading speeds not understood.")
        for share, speed in zip(shares, tds, strict=True):
            checks.positive("share", share)
            checks.positive("tds", speed)
        checks.non_negative("ttft_s", self.ttft_s)
        if self.prompt_tokens_per_s is not None:
            checks.positive("prompt_tokens_per_s", self.prompt_tokens_per_s)
        object.__setattr__(self, "shares", shares)
        object.__setattr__(self, "tds", tds)

    def sample(
        self, rng: np.random.Generator, prompt_tokens: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Targets of the requests; see :meth:`Readers.sample`."""
        kind = _choose(rng, self.shares, prompt_tokens.size)
        tds = np.asarray(self.tds, dtype=np.float64)[kind]
        ttft_s = np.full(prompt_tokens.size, float(self.ttft_s))
        if self.prompt_tokens_per_s is not None:
            ttft_s = np.maximum(ttft_s, prompt_tokens / self.prompt_tokens_per_s)
        return ttft_s, tds


@dataclass(frozen=True, slots=True)
class Mixture:
    """
    Several populations in one workload.

    Parameters
    ----------
    populations
        The populations.
    weights
        Share of each, > 0, on any scale.

    Raises
    ------
    ValueError
        If populations and weights do not pair up or a weight is not > 0.
    """

    populations: Sequence[Readers]
    weights: Sequence[float]

    def __post_init__(self) -> None:
        weights = tuple(self.weights)
        if len(weights) != len(self.populations) or not weights:
            raise ValueError(
                f"{len(weights)} weights for {len(self.populations)} populations not understood."
            )
        for weight in weights:
            checks.positive("weight", weight)
        object.__setattr__(self, "populations", tuple(self.populations))
        object.__setattr__(self, "weights", weights)

    def sample(
        self, rng: np.random.Generator, prompt_tokens: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Targets of the requests; see :meth:`Readers.sample`."""
        choice_rng, *rngs = rng.spawn(1 + len(self.populations))
        chosen = _choose(choice_rng, self.weights, prompt_tokens.size)
        # Every population draws for every request, so that its draws don't depend on the weights.
        drawn = [
            population.sample(own, prompt_tokens)
            for population, own in zip(self.populations, rngs, strict=True)
        ]
        at = np.arange(prompt_tokens.size)
        ttft_s = np.stack([ttft for ttft, _ in drawn])[chosen, at]
        tds = np.stack([speed for _, speed in drawn])[chosen, at]
        return ttft_s, tds


def reading(ttft_s: float = 1.0, prompt_tokens_per_s: float | None = None) -> Population:
    """People who read the reply, by age; parameters as for :class:`Population`."""
    tds = [1 / seconds for seconds in READING_S_PER_TOKEN]
    return Population(READING_SHARES, tds, ttft_s, prompt_tokens_per_s)


def speaking(ttft_s: float = 1.0, prompt_tokens_per_s: float | None = None) -> Population:
    """People who listen to the reply, by language; parameters as for :class:`Population`."""
    tds = [1 / seconds for seconds in SPEAKING_S_PER_TOKEN]
    return Population(SPEAKING_SHARES, tds, ttft_s, prompt_tokens_per_s)


def fixed(
    tds: float = 4.8, ttft_s: float = 1.0, prompt_tokens_per_s: float | None = None
) -> Population:
    """Readers with one and the same target; parameters as for :class:`Population`."""
    return Population((1,), (tds,), ttft_s, prompt_tokens_per_s)


def _choose(rng: np.random.Generator, weights: Sequence[float], requests: int) -> NDArray[np.int64]:
    """Indices drawn with the given weights; request k's depends on the k-th draw alone."""
    edges = np.cumsum(weights)
    return np.searchsorted(edges[:-1], rng.random(requests) * edges[-1], side="right")
