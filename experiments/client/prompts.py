"""Prompts of a wanted length that mean nothing: random token ids, or common English words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

# Each is one token of SmolLM2's vocabulary, with the space before it; other byte-pair
# vocabularies of English text come close.
_TEXT = """
about after again also always and answer are ask back because been before being between both
but call can change city come could country day different does down each early end even every
example far few find first follow food for form found from give good great group had hand
has have head help here high home house how idea important into just keep kind know large last
later learn left letter life light like line list little live long look made main make man many
may mean might more most move much must name near need never new next night not now number off
often old once only open order other our out over own page part people place plan play point
question read real right room run same saw school second see sentence set should show side
small some sound still stop story study such take tell than that their them then there these
they thing think this those three through time together too turn two under until use very want
was water way well went were what when where which while who why will with word work world
would write year you your
"""
_WORDS = tuple(_TEXT.split())


def token_ids(rng: np.random.Generator, tokens: int, first: int, end: int) -> list[int]:
    """
    A prompt of exactly ``tokens`` tokens.

    Random ids share no prefixes. The same randomness gives the same prompt, though, which a
    server's prefix cache may have kept.

    Parameters
    ----------
    rng
        Source of randomness.
    tokens
        Length, >= 1.
    first, end
        Ids are drawn from [first, end).
    """
    ids: list[int] = rng.integers(first, end, size=tokens).tolist()
    return ids


def words(rng: np.random.Generator, tokens: int) -> str:
    """
    A prompt of about ``tokens`` tokens: that many common words.

    A chat template adds its own tokens. Servers report what they counted, and rows hold that.

    Parameters
    ----------
    rng
        Source of randomness.
    tokens
        Number of words, >= 1.
    """
    return " ".join(_WORDS[i] for i in rng.integers(len(_WORDS), size=tokens))
