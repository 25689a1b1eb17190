"""
How many tokens each event of a reply brought, by what the server counted.

Servers put counts into events in three ways: tokens of the reply so far, tokens so far of the
event's own choice (vLLM's ``continuous_usage_stats`` with ``n`` > 1), or tokens of the event alone.
None says which. The first reading counts that agrees with the total at the end, else the first
that is possible. Counts that begin after the first text are totals, which say nothing about single
events.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Piece:
    """
    An event that brought text, tokens or a count.

    Parameters
    ----------
    time_s
        When it came.
    tokens
        Tokens by the event itself: as listed, else one for each choice with text.
    characters
        Characters of text.
    reported
        The server's count of tokens in it; 0 if it gave none.
    choices
        Numbers of the choices that it is about; empty for an event about the whole reply.
    """

    time_s: float
    tokens: int
    characters: int
    reported: int
    choices: tuple[int, ...]


def tokens_of(pieces: Sequence[Piece]) -> tuple[NDArray[np.int64], int]:
    """
    Return how many tokens each event brought, (n,), and how many the reply has in all.

    The latter is 0 if the server did not say, and need not agree with the former.
    """
    own = [piece.tokens for piece in pieces]
    of_reply = [piece.reported for piece in pieces if not piece.choices and piece.reported]
    total = of_reply[-1] if of_reply else 0
    counted = [k for k, piece in enumerate(pieces) if piece.choices and piece.reported]
    with_text = [k for k, piece in enumerate(pieces) if piece.characters or piece.tokens]
    if not counted or (with_text and with_text[0] < counted[0]):
        return _array(own), total or _last_total([pieces[k] for k in counted], sum(own))

    so_far, of_choice, alone = _so_far(pieces, False), _so_far(pieces, True), _alone(pieces)
    readings = [each for each in (so_far, of_choice, alone) if each is not None]
    agreeing = [each for each in readings if sum(each) == total] if total else []
    chosen = (agreeing or readings)[0]
    if total:
        return _array(chosen), total
    # Where nothing came between, the last count so far is what there is in all.
    if chosen is so_far:
        total = pieces[counted[-1]].reported
    return _array(chosen), total or sum(chosen)


def _so_far(pieces: Sequence[Piece], by_choice: bool) -> list[int] | None:
    """Counts read as those so far, of the reply or of each choice; None if they can't be."""
    counted: dict[tuple[int, ...], int] = {}
    last: dict[tuple[int, ...], int] = {}
    found, rises, stays = [], 0, 0
    for piece in pieces:
        key = piece.choices if by_choice else ()
        tokens = piece.tokens
        if piece.reported and piece.choices:
            if piece.reported < last.get(key, 0):
                return None
            tokens = max(0, piece.reported - counted.get(key, 0))
            if key in last and piece.characters:
                rises += piece.reported > last[key]
                stays += piece.reported == last[key]
            last[key] = piece.reported
        counted[key] = counted.get(key, 0) + tokens
        found.append(tokens)
    # Text may come late, with no token of its own, but not as a rule.
    return found if rises >= stays else None


def _alone(pieces: Sequence[Piece]) -> list[int]:
    """Counts read as those of the events alone; one without text that has the sum is the sum."""
    found: list[int] = []
    total = 0
    for piece in pieces:
        is_sum = not piece.characters and piece.reported == total > 0
        tokens = (piece.reported if piece.choices else 0) or piece.tokens
        found.append(0 if is_sum else tokens)
        total += found[-1]
    return found


def _last_total(counted: Sequence[Piece], own: int) -> int:
    """The total by counts of which each is a total: of the reply, or of its own choice."""
    if not counted:
        return 0
    of_choices = sum({piece.choices: piece.reported for piece in counted}.values())
    return of_choices if of_choices == own else counted[-1].reported


def _array(tokens: list[int]) -> NDArray[np.int64]:
    return np.array(tokens, dtype=np.int64)
