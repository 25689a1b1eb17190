"""Prompt and reply lengths."""

from __future__ import annotations

import json
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from andes_opt.lengths import (
    SHIPPED_TABLES,
    FixedLengths,
    Lengths,
    LognormalLengths,
    QuantileTable,
    TableLengths,
    UniformLengths,
)

if TYPE_CHECKING:
    from pathlib import Path

ALL = (
    TableLengths("sharegpt"),
    TableLengths("azure", max_prompt_tokens=4096),
    TableLengths("arxiv", max_output_tokens=512),
    FixedLengths(100, 200),
    UniformLengths((1, 340), (5, 300)),
    LognormalLengths(174, 333, prompt_cv=2.0, max_prompt_tokens=4096),
)


@pytest.mark.parametrize("lengths", ALL, ids=repr)
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32), requests=st.integers(0, 300), more=st.integers(0, 300))
def test_request_k_keeps_its_lengths(lengths: Lengths, seed: int, requests: int, more: int) -> None:
    """Lengths are integers >= 1 that don't depend on how many are drawn."""
    assert isinstance(lengths, Lengths)
    few = lengths.sample(np.random.default_rng(seed), requests)
    many = lengths.sample(np.random.default_rng(seed), requests + more)
    for short, long in zip(few, many, strict=True):
        assert short.dtype == np.int64
        assert short.shape == (requests,)
        assert (short >= 1).all()
        np.testing.assert_array_equal(short, long[:requests])


@pytest.mark.parametrize("name", SHIPPED_TABLES)
def test_shipped_tables_match_their_sample(name: str) -> None:
    """The interpolated mean is within 2 % of the sample's, and a source is named."""
    text = (resources.files("andes_opt") / "data" / f"{name}.json").read_text("utf-8")
    data: dict[str, Any] = json.loads(text)
    assert data["source"]
    assert data["license"]
    lengths = TableLengths(name)
    for column, table in (("prompt_tokens", lengths.prompt), ("output_tokens", lengths.output)):
        assert len(data[column]) == 26
        assert table.mean == pytest.approx(data["sample_mean"][column], rel=0.02)


@pytest.mark.parametrize("name", SHIPPED_TABLES)
def test_draws_have_the_quantiles_of_the_table(name: str) -> None:
    """20,000 draws fall below each tabulated quantile as often as it says, within 1 %."""
    lengths = TableLengths(name)
    draws = lengths.sample(np.random.default_rng(2), 20_000)
    for drawn, table in zip(draws, (lengths.prompt, lengths.output), strict=True):
        # A quantile shared by several probabilities is an atom: only its ends are known.
        below = np.array([(drawn < q - 0.5).mean() for q in table.tokens])
        at_most = np.array([(drawn <= q + 0.5).mean() for q in table.tokens])
        assert (below <= table.probabilities + 0.01).all()
        assert (at_most >= table.probabilities - 0.01).all()
        assert drawn.mean() == pytest.approx(table.mean, rel=0.03)


def test_prompt_and_reply_are_independent() -> None:
    """The tables are marginals: drawn ranks are uncorrelated."""
    prompt, output = TableLengths("sharegpt").sample(np.random.default_rng(0), 5000)
    assert abs(stats.spearmanr(prompt, output).statistic) < 0.05


def test_limits_cut_and_change_nothing_else() -> None:
    """A limit replaces longer draws by itself and leaves the others as they were."""
    free = TableLengths("azure").sample(np.random.default_rng(7), 1000)
    cut = TableLengths("azure", max_prompt_tokens=1000, max_output_tokens=100).sample(
        np.random.default_rng(7), 1000
    )
    np.testing.assert_array_equal(cut[0], np.minimum(free[0], 1000))
    np.testing.assert_array_equal(cut[1], np.minimum(free[1], 100))


def test_uniform_reaches_both_ends() -> None:
    """Least and most are both drawn, and nothing outside."""
    prompt, output = UniformLengths([1, 3], [5, 5]).sample(np.random.default_rng(0), 200)
    assert set(prompt) == {1, 2, 3}
    assert set(output) == {5}


def test_lognormal_has_the_moments_asked_for() -> None:
    """Mean and coefficient of variation come out, within sampling error."""
    lengths = LognormalLengths(200, 300, prompt_cv=0.5, output_cv=1.5)
    prompt, output = lengths.sample(np.random.default_rng(0), 50_000)
    assert prompt.mean() == pytest.approx(200, rel=0.02)
    assert prompt.std() / prompt.mean() == pytest.approx(0.5, rel=0.05)
    assert output.mean() == pytest.approx(300, rel=0.05)
    assert output.std() / output.mean() == pytest.approx(1.5, rel=0.15)


def test_table_of_ones_own(tmp_path: Path) -> None:
    """A JSON file with the same keys works as a table."""
    path = tmp_path / "mine.json"
    path.write_text(
        '{"probabilities": [0, 1], "prompt_tokens": [10, 20], "output_tokens": [7, 7]}', "utf-8"
    )
    lengths = TableLengths(str(path))
    prompt, output = lengths.sample(np.random.default_rng(0), 500)
    assert lengths.prompt.mean == 15
    assert prompt.min() == 10
    assert prompt.max() == 20
    assert (output == 7).all()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "mine.json holds no quantile table: "),
        ("[]", "it lacks probabilities, prompt_tokens, output_tokens"),
        ('{"probabilities": [0, 1], "prompt_tokens": [1, 2]}', "it lacks output_tokens"),
        (
            '{"probabilities": [0, 1], "prompt_tokens": ["a", 2], "output_tokens": [1, 2]}',
            "mine.json holds no quantile table: ",
        ),
    ],
)
def test_broken_table_files_are_refused(tmp_path: Path, text: str, words: str) -> None:
    """A file that holds no table is refused in one sentence that names it."""
    path = tmp_path / "mine.json"
    path.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=words):
        TableLengths(str(path))


def test_unknown_tables_are_refused() -> None:
    """A wrong name is answered with the valid ones."""
    with pytest.raises(ValueError, match="'sharegtp' not understood: need one of arxiv, azure, sh"):
        TableLengths("sharegtp")


@pytest.mark.parametrize(
    ("probabilities", "tokens", "words"),
    [
        ([0], [1], "need \\(k,\\) and \\(k,\\) with k >= 2"),
        ([0, 1], [1, 2, 3], "need \\(k,\\) and \\(k,\\)"),
        ([0.1, 1], [1, 2], "rise from 0 to 1"),
        ([0, 0.5, 0.5, 1], [1, 2, 3, 4], "rise from 0 to 1"),
        ([0, float("nan"), 1], [1, 2, 3], "rise from 0 to 1"),
        ([0, 1], [0, 2], ">= 1 and never fall"),
        ([0, 1], [3, 2], ">= 1 and never fall"),
        ([0, 1], [1, float("inf")], ">= 1 and never fall"),
    ],
)
def test_quantile_table_refuses(probabilities: Any, tokens: Any, words: str) -> None:
    """What is no quantile function is refused."""
    with pytest.raises(ValueError, match=words):
        QuantileTable(probabilities, tokens)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FixedLengths(0, 5), "prompt_tokens = 0 not understood"),
        (lambda: FixedLengths(5, 1.5), "output_tokens = 1.5 not understood"),  # type: ignore[arg-type]
        (lambda: UniformLengths([0, 5], [1, 2]), "least prompt_tokens = 0 not understood"),
        (lambda: UniformLengths([1, 5], [4, 2]), "most output_tokens = 2 not understood"),
        (lambda: UniformLengths([1, 2, 3], [1, 2]), "need \\[least, most\\]"),
        (lambda: LognormalLengths(0, 5), "prompt_mean_tokens = 0 not understood"),
        (lambda: LognormalLengths(5, 5, output_cv=-1), "output_cv = -1 not understood"),
        (lambda: TableLengths(max_prompt_tokens=0), "max_prompt_tokens = 0 not understood"),
    ],
)
def test_refuses_numbers_out_of_range(make: Any, words: str) -> None:
    """A bad option is refused by name and value."""
    with pytest.raises(ValueError, match=words):
        make()
