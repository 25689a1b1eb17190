"""
Prompt and reply lengths of synthetic requests.

Lengths of real workloads are neither normal nor lognormal (chat prompts have a median of
34 and a mean of 174 tokens), so the package ships quantile tables of three public data
sets in ``andes_opt/data`` and draws from them by inverting their cumulative distribution.
The tables describe marginals: prompt and reply are drawn independently. (In the ShareGPT
sample their rank correlation is 0.16, in the Azure trace 0.01, in arXiv -0.10.)
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from andes_opt import checks
from andes_opt.files import open_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

#: Quantile tables shipped with the package.
SHIPPED_TABLES = ("arxiv", "azure", "sharegpt")

_TABLE_KEYS = ("probabilities", "prompt_tokens", "output_tokens")


@runtime_checkable
class Lengths(Protocol):
    """A distribution of prompt and reply lengths."""

    def sample(
        self, rng: np.random.Generator, requests: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """
        Draw lengths.

        Parameters
        ----------
        rng
            Source of randomness. The lengths of request k depend on it alone, not on how
            many requests are drawn.
        requests
            Number of requests.

        Returns
        -------
        tuple[NDArray[np.int64], NDArray[np.int64]]
            Prompt and reply lengths, tokens, (requests,) each, >= 1.
        """
        ...


class QuantileTable:
    """
    A distribution of token counts, given by quantiles and linear in between.

    Parameters
    ----------
    probabilities
        Rising from 0 to 1, (k,), k >= 2.
    tokens
        The quantile at each probability, (k,), >= 1, non-decreasing.

    Raises
    ------
    ValueError
        If it is not a quantile table: wrong shapes, not rising, not from 0 to 1, tokens < 1.
    """

    __slots__ = ("probabilities", "tokens")

    def __init__(self, probabilities: ArrayLike, tokens: ArrayLike) -> None:
        p = np.array(probabilities, dtype=np.float64)
        q = np.array(tokens, dtype=np.float64)
        if p.ndim != 1 or p.size < 2 or p.shape != q.shape:
            raise ValueError(
                f"a quantile table of {p.shape} probabilities and {q.shape} tokens not "
                "understood: need (k,) and (k,) with k >= 2."
            )
        if p[0] != 0 or p[-1] != 1 or not (p[1:] > p[:-1]).all():
            raise ValueError("the probabilities of a quantile table must rise from 0 to 1.")
        if not (np.isfinite(q).all() and q[0] >= 1 and (q[1:] >= q[:-1]).all()):
            raise ValueError("the tokens of a quantile table must be >= 1 and never fall.")
        p.flags.writeable = q.flags.writeable = False
        self.probabilities: NDArray[np.float64] = p
        self.tokens: NDArray[np.float64] = q

    @property
    def mean(self) -> float:
        """Mean of the interpolated distribution, tokens."""
        return float(np.trapezoid(self.tokens, self.probabilities))

    def at(self, probability: NDArray[np.float64]) -> NDArray[np.float64]:
        """Quantiles, tokens, at probabilities in [0, 1]."""
        return np.interp(probability, self.probabilities, self.tokens)


@dataclass(frozen=True, slots=True)
class TableLengths:
    """
    Lengths drawn from a pair of quantile tables.

    Parameters
    ----------
    table
        A table of the package, ``"sharegpt"`` (chat: many short prompts, replies of 330
        tokens), ``"azure"`` (production chat: prompts of 1,250 tokens, replies of 200) or
        ``"arxiv"`` (summaries of 290 tokens of papers of 2,600), or the path of a JSON file
        with the same keys: ``probabilities``, ``prompt_tokens``, ``output_tokens``.
    max_prompt_tokens, max_output_tokens
        Longer draws are cut to this; None for no limit.

    Raises
    ------
    ValueError
        If the table is unknown or not a quantile table, or a limit is < 1.
    """

    table: str = "sharegpt"
    max_prompt_tokens: int | None = None
    max_output_tokens: int | None = None
    prompt: QuantileTable = field(init=False, repr=False, compare=False)
    output: QuantileTable = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        prompt, output = load_tables(self.table)
        _check_limits(self.max_prompt_tokens, self.max_output_tokens)
        object.__setattr__(self, "prompt", prompt)
        object.__setattr__(self, "output", output)

    def sample(
        self, rng: np.random.Generator, requests: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Prompt and reply lengths; see :meth:`Lengths.sample`."""
        prompt_rng, output_rng = rng.spawn(2)
        return (
            _whole(self.prompt.at(prompt_rng.random(requests)), self.max_prompt_tokens),
            _whole(self.output.at(output_rng.random(requests)), self.max_output_tokens),
        )


@dataclass(frozen=True, slots=True)
class FixedLengths:
    """
    The same lengths for every request.

    Parameters
    ----------
    prompt_tokens, output_tokens
        Tokens of every prompt and of every reply, >= 1.

    Raises
    ------
    ValueError
        If a length is < 1.
    """

    prompt_tokens: int
    output_tokens: int

    def __post_init__(self) -> None:
        checks.whole("prompt_tokens", self.prompt_tokens, 1)
        checks.whole("output_tokens", self.output_tokens, 1)

    def sample(
        self, rng: np.random.Generator, requests: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Prompt and reply lengths; see :meth:`Lengths.sample`."""
        return (
            np.full(requests, self.prompt_tokens, dtype=np.int64),
            np.full(requests, self.output_tokens, dtype=np.int64),
        )


@dataclass(frozen=True, slots=True)
class UniformLengths:
    """
    Lengths that are equally likely anywhere in a range.

    Parameters
    ----------
    prompt_tokens, output_tokens
        Least and most tokens, both included, 1 <= least <= most.

    Raises
    ------
    ValueError
        If a pair is not a range.
    """

    prompt_tokens: Sequence[int]
    output_tokens: Sequence[int]

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "output_tokens"):
            bounds = tuple(getattr(self, name))
            if len(bounds) != 2:
                raise ValueError(f"{name} = {list(bounds)} not understood: need [least, most].")
            checks.whole(f"least {name}", bounds[0], 1)
            checks.whole(f"most {name}", bounds[1], bounds[0])
            object.__setattr__(self, name, bounds)

    def sample(
        self, rng: np.random.Generator, requests: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Prompt and reply lengths; see :meth:`Lengths.sample`."""
        prompt_rng, output_rng = rng.spawn(2)
        return (
            _uniform(prompt_rng, requests, self.prompt_tokens),
            _uniform(output_rng, requests, self.output_tokens),
        )


@dataclass(frozen=True, slots=True)
class LognormalLengths:
    """
    Lognormal lengths, for what-if studies: real lengths are not lognormal.

    Parameters
    ----------
    prompt_mean_tokens, output_mean_tokens
        Means before rounding and limits, > 0.
    prompt_cv, output_cv
        Coefficients of variation (standard deviation over mean), > 0.
    max_prompt_tokens, max_output_tokens
        Longer draws are cut to this; None for no limit.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    prompt_mean_tokens: float
    output_mean_tokens: float
    prompt_cv: float = 1.0
    output_cv: float = 1.0
    max_prompt_tokens: int | None = None
    max_output_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("prompt_mean_tokens", "output_mean_tokens", "prompt_cv", "output_cv"):
            checks.positive(name, getattr(self, name))
        _check_limits(self.max_prompt_tokens, self.max_output_tokens)

    def sample(
        self, rng: np.random.Generator, requests: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Prompt and reply lengths; see :meth:`Lengths.sample`."""
        prompt_rng, output_rng = rng.spawn(2)
        prompt = _lognormal(prompt_rng, requests, self.prompt_mean_tokens, self.prompt_cv)
        output = _lognormal(output_rng, requests, self.output_mean_tokens, self.output_cv)
        return _whole(prompt, self.max_prompt_tokens), _whole(output, self.max_output_tokens)


def load_tables(table: str) -> tuple[QuantileTable, QuantileTable]:
    """
    Quantile tables of prompt and reply lengths.

    Parameters
    ----------
    table
        One of :data:`SHIPPED_TABLES`, or the path of a JSON file; see :class:`TableLengths`.

    Raises
    ------
    ValueError
        If there is no such table, or the file holds none.
    """
    if table in SHIPPED_TABLES:
        text = (resources.files("andes_opt") / "data" / f"{table}.json").read_text("utf-8")
    elif Path(table).expanduser().exists():
        with open_text(table, "table") as file:
            text = file.read()
    else:
        raise ValueError(
            f"table = {table!r} not understood: need one of {', '.join(SHIPPED_TABLES)}, "
            "or the path of a JSON file."
        )
    try:
        data: Any = json.loads(text)
        missing = [key for key in _TABLE_KEYS if key not in data]
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}.")
        return (
            QuantileTable(data["probabilities"], data["prompt_tokens"]),
            QuantileTable(data["probabilities"], data["output_tokens"]),
        )
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{table} holds no quantile table: {error}") from error


def _whole(tokens: NDArray[np.float64], limit: int | None) -> NDArray[np.int64]:
    whole = np.maximum(1, np.rint(tokens)).astype(np.int64)
    return whole if limit is None else np.minimum(whole, limit)


def _uniform(rng: np.random.Generator, requests: int, bounds: Sequence[int]) -> NDArray[np.int64]:
    least, most = bounds
    return rng.integers(least, most, size=requests, dtype=np.int64, endpoint=True)


def _lognormal(
    rng: np.random.Generator, requests: int, mean: float, cv: float
) -> NDArray[np.float64]:
    variance = math.log1p(cv * cv)
    return rng.lognormal(math.log(mean) - variance / 2, math.sqrt(variance), requests)


def _check_limits(max_prompt_tokens: int | None, max_output_tokens: int | None) -> None:
    for name, limit in (
        ("max_prompt_tokens", max_prompt_tokens),
        ("max_output_tokens", max_output_tokens),
    ):
        if limit is not None:
            checks.whole(name, limit, 1)
