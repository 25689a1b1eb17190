"""What happens over time in a run: one reader's tokens, and the engine's batch and KV cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from omegaconf import OmegaConf

from andes_opt.qoe import digestion_start
from experiments.runs.files import TIMELINE, TOKENS, read_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from experiments.report.reading import ServedRun

#: Points of an occupancy curve; iterations in between are averaged.
_POINTS = 500


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """A line: x in seconds, y in tokens or requests, (k,) each."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """
    One request under several arms, seconds since its arrival.

    Parameters
    ----------
    request, ttft_s, tds
        Its number and its reader's target.
    ideal
        What an ideal reader has digested.
    delivered, digested
        Arm -> curve.
    window
        Arm -> its QoE by the `window` definition.
    """

    request: int
    ttft_s: float
    tds: float
    ideal: Curve
    delivered: Mapping[str, Curve]
    digested: Mapping[str, Curve]
    window: Mapping[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class Occupancy:
    """
    An engine under several arms, seconds since the run's start.

    Parameters
    ----------
    batch, waiting
        Arm -> requests that decode, and that wait.
    kv
        Arm -> KV tokens in use.
    capacity_tokens
        KV tokens there are; None if unknown.
    """

    batch: Mapping[str, Curve]
    waiting: Mapping[str, Curve]
    kv: Mapping[str, Curve]
    capacity_tokens: int | None


def together(runs: Sequence[ServedRun], name: str) -> list[list[ServedRun]]:
    """
    Group the runs that recorded a file by what they can be compared in.

    Parameters
    ----------
    runs
        All runs.
    name
        :data:`TOKENS` or :data:`TIMELINE`.

    Returns
    -------
    list[list[ServedRun]]
        A list for each setting and rate, with every arm's run under the seed that most arms
        recorded.
    """
    having = [run for run in runs if run.alone and (run.folder / name).exists()]
    places = dict.fromkeys((run.setting, run.rate) for run in having)
    groups = []
    for place in places:
        here = [run for run in having if (run.setting, run.rate) == place]
        seeds = [run.seed for run in here]
        seed = max(dict.fromkeys(seeds), key=seeds.count)
        groups.append([run for run in here if run.seed == seed])
    return groups


def telling_request(runs: Sequence[ServedRun]) -> int | None:
    """
    Return the request that arms treat most differently by `window` QoE; of one arm the worst.

    Of several, the one with the longest reply, of which there is most to see. Requests that got
    no token, since they were rejected say, have no timeline and are left out.

    Parameters
    ----------
    runs
        Of one setting, rate and seed.

    Returns
    -------
    int or None
        None if no request got a token.
    """
    columns = ("request", "qoe_window", "output_tokens", "first_token_s")
    scores = pl.concat([run.rows.select(columns) for run in runs])
    scores = scores.filter(pl.col("first_token_s").is_not_null())
    if scores.is_empty():
        return None
    value = pl.col("qoe_window")
    spread = value.max() - value.min() if len(runs) > 1 else -value.min()
    found = scores.group_by("request").agg(
        spread.round(3).alias("spread"), pl.col("output_tokens").max(), pl.len()
    )
    common = found.filter(pl.col("len") == len(runs))
    ranked = (common if common.height else found).sort(
        ["spread", "output_tokens", "request"], descending=[True, True, False], nulls_last=True
    )
    return int(ranked["request"][0])


def reading(runs: Sequence[ServedRun], request: int | None = None) -> Reading | None:
    """
    Return one request's tokens under each arm.

    Parameters
    ----------
    runs
        A group of :func:`together`.
    request
        Its number; None for :func:`telling_request`.

    Returns
    -------
    Reading or None
        None if no arm delivered anything to the request.
    """
    number = telling_request(runs) if request is None else request
    if number is None:
        return None
    targets = None
    delivered, digested, window = {}, {}, {}
    longest, last_s = 0, 0.0
    for run in runs:
        of_request = run.rows.filter(pl.col("request") == number)
        tokens = pl.scan_parquet(run.folder / TOKENS).filter(pl.col("request") == number)
        times = tokens.select("time_s").collect()["time_s"].to_numpy()
        if not of_request.height or not times.size:
            continue
        row = of_request.row(0, named=True)
        targets = (row["ttft_s"], row["tds"])
        delivered[run.arm] = _staircase(times)
        digested[run.arm] = digested_curve(times, *targets)
        window[run.arm] = row["qoe_window"]
        longest = max(longest, times.size)
        last_s = max(last_s, float(digested[run.arm].x[-1]))
    if targets is None:
        return None
    ttft_s, tds = targets
    end_s = ttft_s + longest / tds
    ideal = Curve(
        np.array([0.0, ttft_s, end_s, max(last_s, end_s)]), np.array([0.0, 0, longest, longest])
    )
    return Reading(number, ttft_s, tds, ideal, delivered, digested, window)


def digested_curve(times: NDArray[np.float64], ttft_s: float, tds: float) -> Curve:
    """
    Return A(t): what a reader has digested (``docs/metrics.md``).

    Parameters
    ----------
    times
        Delivery of each token, seconds since arrival, (n,), n >= 1.
    ttft_s, tds
        The reader's target.

    Returns
    -------
    Curve
        Points between which A is linear.
    """
    x, y = [0.0], [0.0]
    start_s = -np.inf
    for count, time_s in enumerate(times):
        start_s = digestion_start(time_s, start_s, ttft_s, tds)
        if start_s > x[-1]:  # the reader waited
            x.append(start_s)
            y.append(count)
        x.append(start_s + 1 / tds)
        y.append(count + 1)
    return Curve(np.array(x), np.array(y))


def _staircase(times: NDArray[np.float64]) -> Curve:
    """D(t): a step up at each token."""
    x = np.concatenate([[0.0], np.repeat(times, 2)])
    y = np.concatenate([np.repeat(np.arange(times.size), 2), [times.size]])
    return Curve(x, y.astype(np.float64))


def occupancy(runs: Sequence[ServedRun]) -> Occupancy:
    """
    Return the engine's occupancy over time under each arm.

    Parameters
    ----------
    runs
        A group of :func:`together`.
    """
    batch, waiting, kv = {}, {}, {}
    for run in runs:
        timeline = thinned(read_table(run.folder / TIMELINE), _POINTS)
        x = timeline["time_s"].to_numpy()
        batch[run.arm] = Curve(x, timeline["decoding"].to_numpy())
        waiting[run.arm] = Curve(x, timeline["waiting"].to_numpy())
        kv[run.arm] = Curve(x, timeline["kv_tokens"].to_numpy())
    capacities = {_capacity_tokens(run.folder) for run in runs}
    return Occupancy(batch, waiting, kv, capacities.pop() if len(capacities) == 1 else None)


def thinned(timeline: pl.DataFrame, points: int) -> pl.DataFrame:
    """
    Return a timeline of no more than some points: means over spans of equal duration.

    Parameters
    ----------
    timeline
        A row per iteration, ascending ``time_s``.
    points
        How many rows to keep at most.
    """
    if timeline.height <= points:
        return timeline
    time_s = timeline["time_s"].to_numpy()
    edges = np.linspace(time_s[0], time_s[-1], points + 1)[1:-1]
    span = pl.Series("span", np.searchsorted(edges, time_s))
    return timeline.group_by(span, maintain_order=True).mean().drop("span")


def _capacity_tokens(folder: Path) -> int | None:
    path = folder / ".hydra" / "config.yaml"
    if not path.exists():
        return None
    try:
        tokens = OmegaConf.select(OmegaConf.load(path), "engine.capacity_tokens", default=None)
        return None if tokens is None else int(tokens)
    except Exception:  # a file that is cut off draws no line, and costs no report
        return None
