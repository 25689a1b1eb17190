"""
Metrics of a run, as one flat dictionary of numbers, and intervals over runs.

``docs/metrics.md`` defines every metric. Simulated and live runs share this module: it reads the
per-request arrays of :class:`Outcomes` of either.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from scipy.special import stdtrit

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

QOE_DEFINITIONS = ("area", "delay", "window")
QOE_PERCENTILES = (1, 5, 10, 25, 50, 75, 90)
TTFT_PERCENTILES = (50, 90, 95, 99)
TPOT_PERCENTILES = (50, 90, 95, 99)
TDS_PERCENTILES = (1, 10, 50, 90)

#: Numbers about the run as a whole, copied from the outcomes that have them.
RUN_COUNTERS = (
    "iterations",
    "rescues",
    "cached_tokens",
    "busy_s",
    "decisions",
    "solves",
    "decide_s",
    "solver_s",
    "charged_s",
    "wall_s",
)

_PERFECT = 1 - 1e-9


class Outcomes(Protocol):
    """
    The results of n requests. Arrays are (n,), in any order; times in seconds.

    Attributes
    ----------
    arrival_s
        Arrivals, on one clock.
    output_tokens
        Tokens delivered.
    ttft_s, tds
        The readers' targets: seconds, tokens/s.
    rejected
        True for requests that were refused.
    first_token_s, completion_s
        First and last token, since the request's arrival; NaN if there was none.
    qoe_area, qoe_delay, qoe_window
        The three QoE definitions.
    preemptions
        How often each request was preempted.
    """

    @property
    def arrival_s(self) -> NDArray[np.float64]: ...
    @property
    def output_tokens(self) -> NDArray[np.int64]: ...
    @property
    def ttft_s(self) -> NDArray[np.float64]: ...
    @property
    def tds(self) -> NDArray[np.float64]: ...
    @property
    def rejected(self) -> NDArray[np.bool_]: ...
    @property
    def first_token_s(self) -> NDArray[np.float64]: ...
    @property
    def completion_s(self) -> NDArray[np.float64]: ...
    @property
    def qoe_area(self) -> NDArray[np.float64]: ...
    @property
    def qoe_delay(self) -> NDArray[np.float64]: ...
    @property
    def qoe_window(self) -> NDArray[np.float64]: ...
    @property
    def preemptions(self) -> NDArray[np.int64]: ...


class Interval(NamedTuple):
    """A mean and half the width of its confidence interval."""

    mean: float
    half_width: float


def summarise(outcomes: Outcomes, skip_s: float = 0.0) -> dict[str, float]:
    """
    All metrics of one run.

    Parameters
    ----------
    outcomes
        The run's requests. Counters named in :data:`RUN_COUNTERS` are copied if the outcomes
        have them. So is ``tokens_by_last_arrival``, the number of tokens delivered by the last
        arrival; without it the number is estimated from first and last tokens.
    skip_s
        Requests that arrive in the first so many seconds are left out, >= 0. Counters stay those of
        the whole run.

    Returns
    -------
    dict[str, float]
        Metric -> number, as defined in ``docs/metrics.md``; NaN where there is nothing
        to measure, such as the TTFT of a run that rejected all requests.

    Raises
    ------
    ValueError
        If there are no requests, or none is left, or arrays differ in length.
    """
    n = outcomes.arrival_s.size
    if n == 0:
        raise ValueError("a run without requests can't be summarised.")
    for name in _ARRAYS:
        shape = getattr(outcomes, name).shape
        if shape != (n,):
            raise ValueError(f"{name} has shape {shape}, arrival_s ({n},).")
    if skip_s != 0:
        outcomes = _without_first(outcomes, skip_s)
        n = outcomes.arrival_s.size

    started = ~outcomes.rejected & np.isfinite(outcomes.first_token_s)
    finished = ~outcomes.rejected & np.isfinite(outcomes.completion_s)
    summary = {
        "requests": float(n),
        "rejected": float(outcomes.rejected.sum()),
        "unfinished": float((~outcomes.rejected & ~finished).sum()),
    }
    for definition in QOE_DEFINITIONS:
        qoe = np.where(outcomes.rejected, 0.0, getattr(outcomes, f"qoe_{definition}"))
        summary |= _qoe_metrics(f"qoe_{definition}", qoe)
    for percent in TTFT_PERCENTILES:
        value = percentile(outcomes.first_token_s[started], percent)
        summary[f"ttft_p{percent}_s"] = value
    tpot_s = _tpot_s(outcomes, finished)
    for percent in TPOT_PERCENTILES:
        summary[f"tpot_p{percent}_s"] = percentile(tpot_s, percent)
    speed = _delivery_speed(outcomes, finished)
    for percent in TDS_PERCENTILES:
        summary[f"tds_p{percent}"] = percentile(speed, percent)

    late_s = completion_delay_s(outcomes)[finished]
    summary["completion_delay_max_s"] = float(late_s.max()) if late_s.size else math.nan
    summary["completion_delay_p99_s"] = percentile(late_s, 99)
    summary["completion_delay_mean_s"] = float(late_s.mean()) if late_s.size else math.nan

    summary |= _throughput(outcomes, finished)
    preemptions = float(outcomes.preemptions.sum())
    summary["preemptions"] = preemptions
    summary["preemptions_per_request"] = preemptions / n
    for name in RUN_COUNTERS:
        if hasattr(outcomes, name):
            summary[name] = float(getattr(outcomes, name))
    return summary


def counted(arrival_s: NDArray[np.float64], skip_s: float) -> NDArray[np.bool_]:
    """
    Which requests a summary counts that leaves out the first seconds of a run, (n,).

    Parameters
    ----------
    arrival_s
        Arrivals, (n,).
    skip_s
        Seconds after the first arrival, >= 0.

    Raises
    ------
    ValueError
        If ``skip_s`` is out of range, or leaves out every request.
    """
    if not (math.isfinite(skip_s) and skip_s >= 0):
        raise ValueError(f"skip_s = {skip_s} not understood: need seconds >= 0.")
    age_s = arrival_s - arrival_s.min(initial=math.inf)
    kept = age_s >= skip_s
    if not kept.any():
        raise ValueError(
            f"skip_s = {skip_s} leaves out all {arrival_s.size} requests: the last one arrives "
            f"{age_s.max(initial=0.0):.1f} s after the first."
        )
    return kept


def _without_first(outcomes: Outcomes, skip_s: float) -> Outcomes:
    kept = counted(outcomes.arrival_s, skip_s)
    arrays: dict[str, Any] = {name: getattr(outcomes, name)[kept] for name in _ARRAYS}
    counters = {name: getattr(outcomes, name) for name in RUN_COUNTERS if hasattr(outcomes, name)}
    return SimpleNamespace(**arrays, **counters)


def completion_delay_s(outcomes: Outcomes) -> NDArray[np.float64]:
    """
    Seconds by which each request's last token came too late, (n,), >= 0.

    The last of n tokens is due ``ttft_s + (n - 1) / tds`` after the arrival. NaN where no
    reply was completed.
    """
    due_s = outcomes.ttft_s + (outcomes.output_tokens - 1) / outcomes.tds
    return np.maximum(outcomes.completion_s - due_s, 0.0)


def jain(values: ArrayLike) -> float:
    """
    Jain's fairness index, (sum x)^2 / (n sum x^2), of values >= 0.

    From 1/n (one value is positive) to 1 (all values are equal, also all 0).

    Raises
    ------
    ValueError
        If there are no values or one is negative.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0 or not (x >= 0).all():
        raise ValueError("Jain's index needs values >= 0, at least one.")
    largest = x.max()
    if largest == 0:
        return 1.0
    x = x / largest
    return float(x.sum() ** 2 / (x.size * (x**2).sum()))


def mean_ci(values: ArrayLike, level: float = 0.95) -> Interval:
    """
    Mean and half-width of its confidence interval (Student's t).

    Parameters
    ----------
    values
        Independent values, (k,), one per seed, say.
    level
        Probability that the interval covers the true mean, 0 < level < 1.

    Returns
    -------
    Interval
        The half-width is infinite for a single value.

    Raises
    ------
    ValueError
        If there are no values, they are not (k,), or the level is out of range.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0:
        raise ValueError(f"values of shape {x.shape} not understood: need (k,) with k >= 1.")
    if not 0 < level < 1:
        raise ValueError(f"level = {level} not understood: need 0 < level < 1.")
    mean = float(x.mean())
    if x.size == 1:
        return Interval(mean, math.inf)
    error = float(x.std(ddof=1)) / math.sqrt(x.size)
    return Interval(mean, float(stdtrit(x.size - 1, (1 + level) / 2)) * error)


def paired_difference(a: ArrayLike, b: ArrayLike, level: float = 0.95) -> Interval:
    """
    Mean of a - b and half-width of its confidence interval, pair by pair.

    Parameters
    ----------
    a, b
        Values of two policies on the same seeds, (k,), in the same order.
    level
        As for :func:`mean_ci`.

    Raises
    ------
    ValueError
        As for :func:`mean_ci`, or if the lengths differ.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape:
        raise ValueError(f"values of shapes {x.shape} and {y.shape} don't pair up.")
    return mean_ci(x - y, level)


_ARRAYS = tuple(name for name in vars(Outcomes) if isinstance(vars(Outcomes)[name], property))


def _qoe_metrics(name: str, qoe: NDArray[np.float64]) -> dict[str, float]:
    return {
        f"{name}_mean": float(qoe.mean()),
        **{f"{name}_p{percent}": percentile(qoe, percent) for percent in QOE_PERCENTILES},
        f"{name}_share_ge_0p9": float((qoe >= 0.9).mean()),
        f"{name}_share_0": float((qoe == 0).mean()),
        f"{name}_share_1": float((qoe >= _PERFECT).mean()),
        f"{name}_jain": jain(qoe),
    }


def percentile(values: NDArray[np.float64], percent: float) -> float:
    """Return a percentile; NaN if there are no values."""
    return float(np.percentile(values, percent)) if values.size else math.nan


def _tpot_s(outcomes: Outcomes, finished: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Seconds per token after the first, of replies that have one."""
    measured = finished & (outcomes.output_tokens > 1)
    stream_s = (outcomes.completion_s - outcomes.first_token_s)[measured]
    return stream_s / (outcomes.output_tokens[measured] - 1)


def _delivery_speed(outcomes: Outcomes, finished: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Tokens/s from first to last token, of replies where that takes some time."""
    stream_s = outcomes.completion_s - outcomes.first_token_s
    measured = finished & (stream_s > 0)
    return (outcomes.output_tokens[measured] - 1) / stream_s[measured]


def _throughput(outcomes: Outcomes, finished: NDArray[np.bool_]) -> dict[str, float]:
    start_s = float(outcomes.arrival_s.min())
    last_arrival_s = float(outcomes.arrival_s.max())
    end_s = float(np.max((outcomes.arrival_s + outcomes.completion_s)[finished], initial=start_s))
    tokens = float(outcomes.output_tokens[finished].sum())
    until_last = getattr(outcomes, "tokens_by_last_arrival", None)
    if until_last is None:
        until_last = _tokens_by(outcomes, finished, last_arrival_s)
    return {
        "makespan_s": end_s - start_s,
        "requests_per_s": ratio(float(finished.sum()), end_s - start_s),
        "tokens_per_s": ratio(tokens, end_s - start_s),
        "tokens_per_s_arriving": ratio(until_last, last_arrival_s - start_s),
    }


def _tokens_by(outcomes: Outcomes, finished: NDArray[np.bool_], time_s: float) -> float:
    """Tokens of completed replies delivered by a moment, if evenly spaced in each reply."""
    first, last = outcomes.first_token_s[finished], outcomes.completion_s[finished]
    tokens, elapsed = outcomes.output_tokens[finished], (time_s - outcomes.arrival_s)[finished]
    stream_s = np.where(last > first, last - first, 1.0)
    share = np.clip((elapsed - first) / stream_s, 0.0, 1.0)
    between = 1 + (tokens - 1) * share
    return float(np.where(elapsed >= last, tokens, np.where(elapsed >= first, between, 0.0)).sum())


def ratio(part: float, whole: float) -> float:
    """Return part / whole; NaN if the whole is 0."""
    return part / whole if whole > 0 else math.nan
