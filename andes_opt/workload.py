"""
Requests, and the processes by which they arrive.

Every workload draws arrivals, lengths and readers from three separate streams of one
seed. Request k therefore keeps its lengths and its reader when the rate, the burstiness or the
number of requests changes, and a higher rate brings the same arrivals closer together. So two
runs differ by what was changed, not by chance (common random numbers).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from andes_opt import checks
from andes_opt.lengths import Lengths, TableLengths
from andes_opt.readers import Readers, reading

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: What every request has, in the order of :class:`Requests`; what prompts share comes after it.
REQUEST_FIELDS = ("arrival_s", "prompt_tokens", "output_tokens", "ttft_s", "tds")


@dataclass(frozen=True, slots=True, eq=False)
class Requests:
    """
    Requests with their arrivals, lengths and QoE targets. Arrays are (n,), in order of arrival.

    Parameters
    ----------
    arrival_s
        Seconds since the start of the run, >= 0, non-decreasing.
    prompt_tokens, output_tokens
        Tokens of the prompt and of the reply, integers >= 1.
    ttft_s
        Seconds since its arrival at which a request's first token is expected, >= 0.
    tds
        Tokens/s at which its reply is read, > 0.
    prefix_of
        The earlier request with which the prompt begins, a place in these arrays; -1 if there is
        none. None for prompts that share nothing. Engines without a prefix cache ignore it.
    prefix_tokens
        How many of the first tokens of that request's prompt and reply the prompt begins with.

    Raises
    ------
    ValueError
        If shapes differ or a number is out of range; the sentence names the first
        request that is wrong.
    """

    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    ttft_s: NDArray[np.float64]
    tds: NDArray[np.float64]
    prefix_of: NDArray[np.int64] = None  # type: ignore[assignment]  # an array from here on
    prefix_tokens: NDArray[np.int64] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        shape = np.shape(self.arrival_s)
        if len(shape) != 1:
            raise ValueError(f"arrival_s of shape {shape} not understood: need (n,).")
        for name, absent in (("prefix_of", -1), ("prefix_tokens", 0)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, np.full(shape, absent))
        for name in (*REQUEST_FIELDS, "prefix_of", "prefix_tokens"):
            raw = np.asarray(getattr(self, name))
            if raw.shape != shape:
                raise ValueError(f"{name} has shape {raw.shape}, arrival_s {shape}.")
            counts = name.endswith("_tokens") or name == "prefix_of"
            if counts and raw.size and not np.issubdtype(raw.dtype, np.integer):
                raise ValueError(f"{name} must be integers, not {raw.dtype}.")
            array = raw.astype(np.int64 if counts else np.float64)
            array.flags.writeable = False
            object.__setattr__(self, name, array)

        _check_each("arrival_s", self.arrival_s, self.arrival_s >= 0, "a number >= 0")
        _check_each("prompt_tokens", self.prompt_tokens, self.prompt_tokens >= 1, ">= 1")
        _check_each("output_tokens", self.output_tokens, self.output_tokens >= 1, ">= 1")
        _check_each("ttft_s", self.ttft_s, self.ttft_s >= 0, "a number >= 0")
        _check_each("tds", self.tds, self.tds > 0, "a number > 0")
        falls = np.flatnonzero(np.diff(self.arrival_s) < 0)
        if falls.size:
            raise ValueError(
                f"arrival_s must not fall; request {falls[0] + 1} arrives before its predecessor."
            )
        self._check_prefixes()

    def ending_at(self, output_tokens: NDArray[np.int64]) -> Requests:
        """Returns the requests with replies of other lengths, (n,), and what is left to share."""
        whole = (self.prompt_tokens + output_tokens)[self.prefix_of]
        shared = np.where(self.prefix_of < 0, 0, np.minimum(self.prefix_tokens, whole))
        return replace(self, output_tokens=output_tokens, prefix_tokens=shared)

    def _check_prefixes(self) -> None:
        parent, shared = self.prefix_of, self.prefix_tokens
        earlier = (parent >= -1) & (parent < np.arange(parent.size))
        _check_each("prefix_of", parent, earlier, "-1 or an earlier request")
        whole = (self.prompt_tokens + self.output_tokens)[parent]
        most = np.where(parent < 0, 0, np.minimum(self.prompt_tokens, whole))
        need = ">= 0 and no more than the prompt and what it begins with have"
        _check_each("prefix_tokens", shared, (shared >= 0) & (shared <= most), need)

    @property
    def num_requests(self) -> int:
        """Number of requests n."""
        return int(self.arrival_s.size)


@runtime_checkable
class Workload(Protocol):
    """Anything that makes requests from a seed."""

    def generate(self, seed: int) -> Requests:
        """
        Make the requests.

        Parameters
        ----------
        seed
            Integer >= 0. The same seed gives the same requests.
        """
        ...


@dataclass(frozen=True, slots=True)
class Poisson:
    """
    Poisson arrivals: independent of each other, at a mean rate.

    Parameters
    ----------
    rate
        Mean arrivals per second, > 0.
    requests
        Number of requests, >= 1. The first arrives at 0.
    lengths
        Distribution of prompt and reply lengths.
    readers
        Distribution of QoE targets.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    rate: float
    requests: int
    lengths: Lengths = field(default_factory=TableLengths)
    readers: Readers = field(default_factory=reading)

    def __post_init__(self) -> None:
        check_load(self.rate, self.requests)

    def generate(self, seed: int) -> Requests:
        """Make the requests; see :meth:`Workload.generate`."""
        arrival_rng, length_rng, reader_rng = streams(seed)
        gaps_s = arrival_rng.standard_exponential(self.requests - 1) / self.rate
        return _requests(_from_zero(gaps_s), self.lengths, self.readers, length_rng, reader_rng)


@dataclass(frozen=True, slots=True)
class Gamma:
    """
    Arrivals in clusters: gamma-distributed gaps.

    Parameters
    ----------
    rate
        Mean arrivals per second, > 0.
    requests
        Number of requests, >= 1. The first arrives at 0.
    cv
        Coefficient of variation of the gaps, > 0: 1 is Poisson, more is burstier. The
        Andes paper uses 3 (arXiv 2404.16283v1, section 6).
    lengths
        Distribution of prompt and reply lengths.
    readers
        Distribution of QoE targets.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    rate: float
    requests: int
    cv: float = 3.0
    lengths: Lengths = field(default_factory=TableLengths)
    readers: Readers = field(default_factory=reading)

    def __post_init__(self) -> None:
        check_load(self.rate, self.requests)
        checks.positive("cv", self.cv)

    def generate(self, seed: int) -> Requests:
        """Make the requests; see :meth:`Workload.generate`."""
        arrival_rng, length_rng, reader_rng = streams(seed)
        variance = self.cv**2
        unit_gaps = arrival_rng.standard_gamma(1 / variance, self.requests - 1) * variance
        gaps_s = unit_gaps / self.rate
        return _requests(_from_zero(gaps_s), self.lengths, self.readers, length_rng, reader_rng)


@dataclass(frozen=True, slots=True)
class Surge:
    """
    Poisson arrivals whose rate switches between calm and surge.

    A period is a calm phase of ``(1 - duty) * period_s`` seconds followed by a surge of
    ``duty * period_s`` seconds at ``intensity * rate``. The calm rate is what keeps the
    mean over a period at ``rate``: ``rate * (1 - duty * intensity) / (1 - duty)``.

    Andes v2 (arXiv 2404.16283v2, section 6) surges for 35 % of the time at 1.5 to 2.5
    times the mean rate; its released client defines intensity and duty as here and runs
    one 20-minute period. The default period is shorter, so that a run of some hundred
    requests sees several surges; phases are in seconds at every rate.

    Parameters
    ----------
    rate
        Arrivals per second, mean over whole periods, > 0.
    requests
        Number of requests, >= 1. The first arrives at 0, when a calm phase begins.
    intensity
        Rate of a surge over the mean rate, 1 <= intensity <= 1 / duty.
    duty
        Share of the time that surges take, 0 < duty < 1.
    period_s
        Seconds from one surge to the next, > 0.
    lengths
        Distribution of prompt and reply lengths.
    readers
        Distribution of QoE targets.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    rate: float
    requests: int
    intensity: float = 2.0
    duty: float = 0.35
    period_s: float = 120.0
    lengths: Lengths = field(default_factory=TableLengths)
    readers: Readers = field(default_factory=reading)

    def __post_init__(self) -> None:
        check_load(self.rate, self.requests)
        checks.positive("duty", self.duty)
        if self.duty >= 1:
            raise ValueError(f"duty = {self.duty} not understood: need 0 < duty < 1.")
        checks.positive("intensity", self.intensity)
        if not 1 <= self.intensity <= 1 / self.duty:
            raise ValueError(
                f"intensity = {self.intensity} not understood: "
                f"need 1 <= intensity <= 1 / duty = {1 / self.duty:.4g}."
            )
        checks.positive("period_s", self.period_s)

    def generate(self, seed: int) -> Requests:
        """Make the requests; see :meth:`Workload.generate`."""
        arrival_rng, length_rng, reader_rng = streams(seed)
        # A Poisson process of unit rate, run through the inverse of the expected count.
        count = _from_zero(arrival_rng.standard_exponential(self.requests - 1))
        arrival_s = self._time_of(count)
        return _requests(
            arrival_s - arrival_s[0], self.lengths, self.readers, length_rng, reader_rng
        )

    def _time_of(self, count: NDArray[np.float64]) -> NDArray[np.float64]:
        """The moment by which ``count`` arrivals are expected."""
        surge_rate = self.intensity * self.rate
        calm_s = (1 - self.duty) * self.period_s
        in_calm = self.rate * self.period_s - surge_rate * self.duty * self.period_s
        periods, left = np.divmod(count, self.rate * self.period_s)
        # Rounding may leave a sliver of a calm phase that should be empty.
        if in_calm <= 1e-12 * surge_rate * self.period_s:
            within = calm_s + left / surge_rate
        else:
            within = np.where(
                left < in_calm,
                left * (calm_s / in_calm),
                calm_s + (left - in_calm) / surge_rate,
            )
        return np.maximum.accumulate(periods * self.period_s + within)


def streams(seed: int) -> list[np.random.Generator]:
    """
    Independent sources of randomness for arrivals, lengths and readers.

    Raises
    ------
    ValueError
        If the seed is no integer >= 0.
    """
    checks.seed("seed", seed)
    return np.random.default_rng(seed).spawn(3)


def _requests(
    arrival_s: NDArray[np.float64],
    lengths: Lengths,
    readers: Readers,
    length_rng: np.random.Generator,
    reader_rng: np.random.Generator,
) -> Requests:
    prompt_tokens, output_tokens = lengths.sample(length_rng, arrival_s.size)
    ttft_s, tds = readers.sample(reader_rng, prompt_tokens)
    return Requests(arrival_s, prompt_tokens, output_tokens, ttft_s, tds)


def _from_zero(gaps: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate(([0.0], np.cumsum(gaps)))


def check_load(rate: float, requests: int) -> None:
    """Raise ValueError unless there is a rate > 0, and at least one request."""
    checks.positive("rate", rate)
    checks.whole("requests", requests, 1)


def _check_each(name: str, values: NDArray[np.generic], good: NDArray[np.bool_], need: str) -> None:
    bad = np.flatnonzero(~(good & np.isfinite(values)))
    if bad.size:
        raise ValueError(f"{name} must be {need}; request {bad[0]} has {values[bad[0]]}.")
