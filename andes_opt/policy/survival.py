"""The distribution of reply lengths, learned while replies are served."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from andes_opt import checks

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Bins of reply length: the first is this wide, each next one by this factor wider.
FIRST_TOKENS = 16
_GROWTH = 1.2
_LONGEST_TOKENS = 16_384.0

#: Bins that fewer replies reach than this share are left out.
_NEGLIGIBLE = 1e-3


class ReplyLengths:
    """
    The distribution of reply lengths, from replies finished and unfinished.

    For each bin of lengths it counts the replies that ended there and the tokens that all
    replies generated there. Their quotient is the hazard of ending with the next token.
    Unfinished replies count with the tokens they have, so that long ones, which finish
    late, are not overlooked (the piecewise-exponential estimate of a survival function
    from censored data). The prior is that every reply ends after each token with the same
    probability; it is worth ``prior_replies`` replies in each bin.

    Parameters
    ----------
    prior_tokens
        Mean reply length of the prior, tokens, > 0.
    prior_replies
        What the prior is worth, replies, > 0.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    def __init__(self, prior_tokens: float = 300.0, prior_replies: float = 5.0) -> None:
        checks.positive("prior_tokens", prior_tokens)
        checks.positive("prior_replies", prior_replies)
        bins = math.ceil(
            math.log(_LONGEST_TOKENS / FIRST_TOKENS * (_GROWTH - 1) + 1) / math.log(_GROWTH)
        )
        widths = FIRST_TOKENS * _GROWTH ** np.arange(bins)
        self._edges = np.concatenate(([0.0], np.cumsum(widths)))
        self._widths = widths
        self._ended = prior_replies * widths / prior_tokens
        self._generated = prior_replies * widths

    def observe(self, tokens: int) -> None:
        """Count a reply that ended after ``tokens`` tokens, >= 0."""
        self._generated += self._spent(np.array([tokens]))
        last = int(np.searchsorted(self._edges, tokens, side="left")) - 1
        self._ended[min(max(last, 0), self._widths.size - 1)] += 1

    def support(self, unfinished: NDArray[np.int64]) -> tuple[NDArray[np.float64], ...]:
        """
        The distribution now.

        Parameters
        ----------
        unfinished
            Tokens that the unfinished replies have so far, (m,).

        Returns
        -------
        tuple[NDArray[np.float64], NDArray[np.float64]]
            Edges of the bins, tokens, (k + 1,), rising from 0, and the probability that a
            reply ends in each, (k,); longer replies are counted in the last.
        """
        hazard = self._ended / (self._generated + self._spent(unfinished))
        reached = np.exp(-np.concatenate(([0.0], np.cumsum(hazard * self._widths))))
        bins = max(1, int(np.searchsorted(-reached, -_NEGLIGIBLE)))
        bins = min(bins, self._widths.size)
        share = reached[:bins] - reached[1 : bins + 1]
        share[-1] += reached[bins]
        return self._edges[: bins + 1], share

    def _spent(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """Tokens generated in each bin by replies of these lengths, (k,)."""
        below = np.sort(tokens.astype(np.float64))
        total = np.concatenate(([0.0], np.cumsum(below)))
        # Tokens below an edge: all of the shorter replies, and the edge for each longer one.
        shorter = np.searchsorted(below, self._edges)
        beneath = total[shorter] + self._edges * (below.size - shorter)
        return np.diff(beneath)
