"""
The work of a study's cells: simulations, capacity searches, replays over a jittery network.

Each function takes plain configuration, so that it runs in any process, and returns
:class:`Measurement` objects, which lie on disk as JSON objects.

Results are kept as long as the code that cells can run stays as it is, so this module imports
nothing of the rest of ``experiments``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from andes_opt import qoe
from andes_opt.metrics import QOE_DEFINITIONS, summarise
from andes_opt.simulator import simulate
from andes_opt.workload import Poisson

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from andes_opt.simulator import SimulationResult
    from andes_opt.snapshot import Decision, Snapshot

#: What cells measure beside the metrics of ``docs/metrics.md``.
METRICS = {
    "capacity_area": "highest rate with a mean area QoE of at least study.capacity.threshold",
    "capacity_window": "highest rate with a mean window QoE of at least study.capacity.threshold",
    "probes": "simulations that a capacity search took",
    "quantile_qoe_area": "quantile of area QoE over requests; the part is the percentage",
    "quantile_qoe_window": "quantile of window QoE over requests; the part is the percentage",
    "quantile_first_token_s": "quantile of the time to first token; the part is the percentage",
    "quantile_tds": "quantile of the speed delivered; the part is the percentage",
    "part_qoe_area": "mean area QoE of the requests that the part names",
    "part_qoe_window": "mean window QoE of the requests that the part names",
    "solve_us": "wall-clock microseconds of the solver per solve, building included",
    "rushed_share": "share of the gaps between shown tokens below half of the reader's 1/tds",
    "stalled_share": "share of the gaps between shown tokens above twice the reader's 1/tds",
}

#: Percentages at which distributions are kept.
PERCENTAGES = tuple(range(101))

#: What quarters of the requests are called, by length and by the reader's speed.
_BY_LENGTH = ("shortest", "short", "long", "longest")
_BY_SPEED = ("slowest", "slow", "fast", "fastest")
#: More speeds than these are shown in quarters.
_MOST_SPEEDS = 12

#: Policies that this process has compiled.
_WARM: set[str] = set()


class Measurement(NamedTuple):
    """
    One number of one simulation.

    Parameters
    ----------
    metric
        One of ``docs/metrics.md`` or of :data:`METRICS`.
    part
        Which requests, or which point of a distribution; "" for the run as a whole.
    value
        The number; None where it is not finite.
    """

    metric: str
    part: str
    value: float | None


class Reception(NamedTuple):
    """What readers saw through a network of some mean jitter, with or without the token buffer."""

    jitter_s: float
    buffered: bool
    measurements: list[Measurement]


def read_back(stored: Iterable[Mapping[str, Any]]) -> list[Measurement]:
    """Return measurements as a cell's file has them."""
    return [Measurement(**one) for one in stored]


def served(run: Mapping[str, Any], seed: int) -> list[Measurement]:
    """
    Simulate once; return every metric of the run, of its parts and distributions.

    Parameters
    ----------
    run
        Plain nodes ``workload``, ``engine``, ``policy``, ``solver_time``, ``oracle``.
    seed
        Of the workload.
    """
    return numbers_of(simulated(run, seed))


def numbers_of(result: SimulationResult) -> list[Measurement]:
    """Return every metric of a simulation, of its parts and distributions."""
    return [*_metrics(result), *_parts(result), *_quantiles(result)]


def capacity(
    run: Mapping[str, Any],
    seed: int,
    threshold: float,
    start: float,
    tolerance: float,
    highest: float,
) -> list[Measurement]:
    """
    Return the highest request rates with mean QoE above a threshold, by area and by window.

    Each is a rate that was simulated and found good; one that is higher by ``tolerance`` (or
    by less) was found bad. The same seed scales the same arrivals, so that policies are
    compared on the same requests.

    Parameters
    ----------
    run, seed
        As for :func:`served`; the workload has a ``rate``.
    threshold
        Mean QoE that counts as good.
    start
        Rate to begin with.
    tolerance
        Relative width at which the search ends.
    highest
        Rate beyond which nobody looks.
    """
    probes: dict[float, SimulationResult] = {}

    def mean_qoe(rate: float, definition: str) -> float:
        if rate not in probes:
            probes[rate] = simulated(with_rate(run, rate), seed)
        return float(getattr(probes[rate], f"qoe_{definition}").mean())

    numbers: list[Measurement] = []
    for definition in ("area", "window"):
        rate = highest_rate(
            lambda rate, name=definition: mean_qoe(rate, name) >= threshold,  # type: ignore[misc]
            start,
            tolerance,
            highest,
        )
        numbers.append(Measurement(f"capacity_{definition}", "", rate))
    return [*numbers, Measurement("probes", "", len(probes))]


def highest_rate(
    good: Callable[[float], bool], start: float, tolerance: float, highest: float
) -> float:
    """
    Return the highest rate that is good, by bisection on a logarithmic scale.

    Parameters
    ----------
    good
        Whether a rate is good; taken to turn from True to False once.
    start
        Rate to begin with, > 0.
    tolerance
        The answer is good, and a rate at most (1 + tolerance) times as high is not.
    highest
        Answer if even this rate is good.

    Returns
    -------
    float
        0 if no rate down to a thousandth of ``start`` is good.
    """
    step = 1.5
    if good(start):
        low, high = start, min(start * step, highest)
        while good(high):
            if high >= highest:
                return highest
            low, high = high, min(high * step, highest)
    else:
        high, low = start, start / step
        while not good(low):
            if low < start / 1000:
                return 0.0
            low, high = low / step, low
    while high > low * (1 + tolerance):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if good(middle) else (low, middle)
    return low


def jittered(run: Mapping[str, Any], seed: int, jitters_s: Sequence[float]) -> list[Reception]:
    """
    Show one simulation through networks of some jitters, with the token buffer and without.

    Each token is delayed on its way by an exponential time of the given mean, and none
    overtakes another, as on one connection. The buffer (Andes, arXiv 2404.16283v1, section 5)
    shows a token when it is there and the reader has had time for the one before; without
    it each token is shown as it comes.

    Parameters
    ----------
    run, seed
        As for :func:`served`.
    jitters_s
        Mean delays in seconds.

    Returns
    -------
    list[Reception]
        For each jitter, without and with buffer.
    """
    result = simulated(run, seed, record_tokens=True)
    assert result.token_times_s is not None
    found: list[Reception] = []
    for jitter_s in jitters_s:
        arrived = [
            through_network(times, jitter_s, np.random.default_rng([seed, k]))
            for k, times in enumerate(result.token_times_s)
        ]
        shown = [paced(times, tds) for times, tds in zip(arrived, result.tds.tolist(), strict=True)]
        found.append(Reception(jitter_s, False, _shown_numbers(arrived, result)))
        found.append(Reception(jitter_s, True, _shown_numbers(shown, result)))
    return found


def through_network(
    times_s: NDArray[np.float64], jitter_s: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """
    Return when tokens reach the client of a network with jitter.

    Parameters
    ----------
    times_s
        When they leave the server, (n,), non-decreasing.
    jitter_s
        Mean of each token's exponential delay.
    rng
        Source of randomness; the same draws whatever the jitter.
    """
    delay_s = jitter_s * rng.standard_exponential(times_s.size)
    return np.asarray(np.maximum.accumulate(times_s + delay_s))


def paced(times_s: NDArray[np.float64], tds: float) -> NDArray[np.float64]:
    """
    Return when a token buffer shows tokens: when there, and 1/tds after the one before.

    Parameters
    ----------
    times_s
        When they reach the client, (n,), non-decreasing.
    tds
        The reader's tokens/s.
    """
    # shown_j = max over i <= j of times_i + (j - i)/tds.
    ahead_s = np.arange(times_s.size) / tds
    shown = np.maximum.accumulate(times_s - ahead_s) + ahead_s
    return np.maximum(shown, times_s)


def simulated(
    run: Mapping[str, Any],
    seed: int,
    *,
    capture: Callable[[Snapshot, Decision], None] | None = None,
    record_tokens: bool = False,
) -> SimulationResult:
    """Run the simulation that plain nodes describe; see :func:`served`."""
    config = OmegaConf.create(dict(run))
    _warm_up(config)
    return simulate(
        instantiate(config.workload).generate(seed),
        instantiate(config.engine),
        instantiate(config.policy),
        solver_time=config.solver_time,
        oracle=config.oracle,
        capture=capture,
        record_tokens=record_tokens,
    )


def _warm_up(config: DictConfig) -> None:
    """
    Let a process compile what the policy runs, by a short overload, before anything is timed.

    Compiling, or loading what was compiled before, takes up to seconds. In a measured run the
    simulated engine would stand still for so long, and it is no part of ``solve_us``.
    """
    key = str(sorted(_targets(config.policy)))
    if key not in _WARM:
        _WARM.add(key)
        simulate(
            Poisson(rate=20.0, requests=60).generate(0),
            instantiate(config.engine, capacity_tokens=4000),
            instantiate(config.policy),
            oracle=config.oracle,
        )


def _targets(node: Any) -> set[str]:
    if not isinstance(node, DictConfig):
        return set()
    own = {str(node["_target_"])} if "_target_" in node else set()
    return own.union(*(_targets(node[name]) for name in node))


def with_rate(run: Mapping[str, Any], rate: float) -> dict[str, Any]:
    """Return the same nodes at another request rate."""
    return {**run, "workload": {**run["workload"], "rate": rate}}


def _metrics(result: SimulationResult) -> list[Measurement]:
    numbers = [Measurement(name, "", _short(value)) for name, value in summarise(result).items()]
    if result.solves:
        solve_us = 1e6 * result.solver_s / result.solves
        numbers.append(Measurement("solve_us", "", _short(solve_us)))
    return numbers


def _parts(result: SimulationResult) -> list[Measurement]:
    """Mean QoE by quarters of prompt and reply length, and by reading speed."""
    parts = {
        **_quarters("prompt", result.prompt_tokens, _BY_LENGTH),
        **_quarters("reply", result.output_tokens, _BY_LENGTH),
        **_by_speed(result.tds),
    }
    scores = {"area": result.qoe_area, "window": result.qoe_window}
    return [
        Measurement(f"part_qoe_{definition}", part, _short(score[chosen].mean()))
        for definition, score in scores.items()
        for part, chosen in parts.items()
        if chosen.any()
    ]


def _quarters(
    name: str, values: NDArray[Any], words: Sequence[str]
) -> dict[str, NDArray[np.bool_]]:
    """Which requests are in each quarter of some values, lowest first."""
    rank = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    quarter = 4 * rank // values.size
    return {f"{name} {word}": quarter == k for k, word in enumerate(words)}


def _by_speed(tds: NDArray[np.float64]) -> dict[str, NDArray[np.bool_]]:
    """Which requests have readers of each speed, as names show it; of many speeds, quarters."""
    rounded = np.round(tds, 2)
    speeds = np.unique(rounded)
    if speeds.size > _MOST_SPEEDS:
        return _quarters("reader", tds, _BY_SPEED)
    return {f"reader {speed:.2f} tokens/s": rounded == speed for speed in speeds}


def _quantiles(result: SimulationResult) -> list[Measurement]:
    stream_s = result.completion_s - result.first_token_s
    measured = ~result.rejected & (stream_s > 0)
    series = {
        "qoe_area": result.qoe_area,
        "qoe_window": result.qoe_window,
        "first_token_s": result.first_token_s[~result.rejected],
        "tds": (result.output_tokens[measured] - 1) / stream_s[measured],
    }
    return [
        Measurement(f"quantile_{name}", str(percentage), _short(value))
        for name, values in series.items()
        if values.size
        for percentage, value in zip(PERCENTAGES, np.percentile(values, PERCENTAGES), strict=True)
    ]


def _shown_numbers(
    times: Sequence[NDArray[np.float64]], result: SimulationResult
) -> list[Measurement]:
    """QoE and evenness of streams as their readers see them."""
    targets = [
        qoe.QoETarget(ttft_s, tds)
        for ttft_s, tds in zip(result.ttft_s.tolist(), result.tds.tolist(), strict=True)
    ]
    numbers: list[Measurement] = []
    for definition in QOE_DEFINITIONS:
        score = getattr(qoe, definition)
        scores = [score(shown, target) for shown, target in zip(times, targets, strict=True)]
        mean = _short(float(np.mean(scores)))
        numbers.append(Measurement(f"qoe_{definition}_mean", "", mean))
    # Gaps in units of what the reader needs for a token.
    gaps = np.concatenate(
        [np.diff(shown) * target.tds for shown, target in zip(times, targets, strict=True)]
    )
    if gaps.size:
        shares = {"rushed_share": gaps < 0.5, "stalled_share": gaps > 2.0}
        numbers += [Measurement(name, "", _short(share.mean())) for name, share in shares.items()]
    return numbers


def _short(value: float) -> float:
    """Seven digits: more than any table shows, and files stay small."""
    return float(f"{value:.7g}")
