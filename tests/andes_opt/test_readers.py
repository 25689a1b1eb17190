"""Readers: who they are and what they expect."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andes_opt.readers import (
    READING_S_PER_TOKEN,
    READING_SHARES,
    SPEAKING_S_PER_TOKEN,
    SPEAKING_SHARES,
    Mixture,
    Population,
    Readers,
    fixed,
    reading,
    speaking,
)

PROMPTS = np.full(20_000, 100, dtype=np.int64)


@pytest.mark.parametrize(
    ("population", "shares", "s_per_token"),
    [
        (reading(), READING_SHARES, READING_S_PER_TOKEN),
        (speaking(), SPEAKING_SHARES, SPEAKING_S_PER_TOKEN),
    ],
)
def test_populations_have_the_shares_of_the_paper(
    population: Population, shares: tuple[float, ...], s_per_token: tuple[float, ...]
) -> None:
    """Each speed is drawn as often as its share says, and no other."""
    ttft_s, tds = population.sample(np.random.default_rng(0), PROMPTS)
    expected: dict[float, float] = {}
    for share, seconds in zip(shares, s_per_token, strict=True):
        expected[1 / seconds] = expected.get(1 / seconds, 0) + share / sum(shares)
    assert set(tds) == set(expected)
    for speed, share in expected.items():
        assert (tds == speed).mean() == pytest.approx(share, abs=0.01)
    assert (ttft_s == 1).all()


def test_reading_speeds_are_the_words_per_minute_of_the_paper() -> None:
    """0.196 to 0.264 s per token are 236 to 175 words/min at 1.30 tokens a word."""
    words_per_min = [60 / 1.30 / seconds for seconds in READING_S_PER_TOKEN]
    assert words_per_min == pytest.approx([236, 200, 192, 185, 175], rel=0.005)
    assert sum(READING_SHARES) == pytest.approx(100, abs=0.02)
    assert sum(SPEAKING_SHARES) == pytest.approx(100, abs=0.02)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32), n=st.integers(0, 200), more=st.integers(0, 200))
def test_request_k_keeps_its_reader(seed: int, n: int, more: int) -> None:
    """Targets don't depend on how many requests there are, also in a mixture."""
    prompts = np.arange(1, n + more + 1)
    for population in (reading(), Mixture([reading(), fixed(9.0), speaking(2.0)], [1, 2, 3])):
        assert isinstance(population, Readers)
        few = population.sample(np.random.default_rng(seed), prompts[:n])
        many = population.sample(np.random.default_rng(seed), prompts)
        for short, long in zip(few, many, strict=True):
            assert short.dtype == np.float64
            np.testing.assert_array_equal(short, long[:n])


def test_long_prompts_excuse_a_later_first_token() -> None:
    """The rule of Andes v2: max(1, prompt_tokens / 5000)."""
    prompts = np.array([1, 5000, 7500, 20_000])
    ttft_s, _ = reading(prompt_tokens_per_s=5000).sample(np.random.default_rng(0), prompts)
    np.testing.assert_array_equal(ttft_s, [1, 1, 1.5, 4])


def test_fixed_readers_are_all_alike() -> None:
    """Every request gets exactly the target that was given."""
    ttft_s, tds = fixed(tds=4.8, ttft_s=0.0).sample(np.random.default_rng(0), PROMPTS)
    assert (tds == 4.8).all()
    assert (ttft_s == 0).all()


def test_mixture_keeps_targets_together_and_weights() -> None:
    """A request takes both targets from one population, chosen by weight."""
    mixture = Mixture([fixed(2.0, ttft_s=2.0), fixed(9.0, ttft_s=9.0)], weights=[3, 1])
    ttft_s, tds = mixture.sample(np.random.default_rng(0), PROMPTS)
    np.testing.assert_array_equal(ttft_s, tds)
    assert (tds == 2).mean() == pytest.approx(0.75, abs=0.01)


def test_weights_change_only_who_switches() -> None:
    """With more readers of one kind, those who stay keep their target (common draws)."""
    few = Mixture([reading(), speaking()], [9, 1]).sample(np.random.default_rng(3), PROMPTS)
    more = Mixture([reading(), speaking()], [8, 2]).sample(np.random.default_rng(3), PROMPTS)
    assert 0.05 < (few[1] != more[1]).mean() < 0.15


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Population([1, 2], [3]), "2 shares for 1 reading speeds"),
        (lambda: Population([], []), "0 shares for 0 reading speeds"),
        (lambda: Population([1, -1], [3, 3]), "share = -1 not understood"),
        (lambda: Population([1], [0]), "tds = 0 not understood"),
        (lambda: reading(ttft_s=-1), "ttft_s = -1 not understood"),
        (lambda: reading(prompt_tokens_per_s=0), "prompt_tokens_per_s = 0 not understood"),
        (lambda: fixed(tds=float("inf")), "tds = inf not understood"),
        (lambda: Mixture([reading()], [1, 2]), "2 weights for 1 populations"),
        (lambda: Mixture([reading()], [0]), "weight = 0 not understood"),
    ],
)
def test_refuses_numbers_out_of_range(make: Any, words: str) -> None:
    """A bad option is refused by name and value."""
    with pytest.raises(ValueError, match=words):
        make()
