"""What a run of the client was worth: the simulator's metrics, and those of live streams."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from andes_opt import qoe
from andes_opt.metrics import percentile, ratio, summarise
from andes_opt.qoe import QoETarget
from experiments.client.open_loop import Outcome
from experiments.client.stream_metrics import (
    ROUNDING_S,
    fluidity_index,
    idle_s,
    smooth_benefit_tokens,
    tpot_s,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from experiments.client.open_loop import ClientLog

_PERCENTILES = (50, 90, 99)
#: Etalon asks for a fluidity index of 0.9 or more.
_FLUID = 0.9


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """
    The requests of a client's log, scored: :class:`andes_opt.metrics.Outcomes` and more.

    Arrays are (n,), in order of arrival; times since arrival unless said otherwise. The QoE of a
    stream that broke off is that of the tokens that came, as a reply of that length, and 0 if
    none did; for fluidity and smooth goodput, whose sources know complete replies only, it is
    worth nothing.

    Parameters
    ----------
    arrival_s, prompt_tokens, ttft_s, tds
        As planned; prompts as the server counted them, where it said so.
    output_tokens, wanted_tokens
        Tokens that came, and that were asked for.
    outcome, error
        How each request ended, and why if not well.
    send_lag_s
        How long after its arrival the client began to send a request; NaN if never.
    connect_s
        From then until it was on the wire; NaN if never.
    first_token_s, completion_s
        NaN if there was none.
    qoe_area, qoe_delay, qoe_window, fluidity, smooth_benefit_tokens
        Scores.
    tpot_s, itl_max_s, idle_s
        Mean and longest gap between tokens (NaN for fewer than two), time spent waiting.
    events, malformed, estimated
        See :class:`experiments.client.open_loop.Reply`.
    token_times_s
        When tokens came, (tokens,) for each request.
    tokens_by_last_arrival
        Tokens of completed replies that had come by the last arrival.
    wall_s
        Duration of the run.
    """

    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    wanted_tokens: NDArray[np.int64]
    ttft_s: NDArray[np.float64]
    tds: NDArray[np.float64]
    outcome: tuple[Outcome, ...]
    error: tuple[str, ...]
    send_lag_s: NDArray[np.float64]
    connect_s: NDArray[np.float64]
    first_token_s: NDArray[np.float64]
    completion_s: NDArray[np.float64]
    qoe_area: NDArray[np.float64]
    qoe_delay: NDArray[np.float64]
    qoe_window: NDArray[np.float64]
    fluidity: NDArray[np.float64]
    smooth_benefit_tokens: NDArray[np.float64]
    tpot_s: NDArray[np.float64]
    itl_max_s: NDArray[np.float64]
    idle_s: NDArray[np.float64]
    events: NDArray[np.int64]
    malformed: NDArray[np.int64]
    estimated: NDArray[np.bool_]
    token_times_s: tuple[NDArray[np.float64], ...]
    tokens_by_last_arrival: float
    wall_s: float

    @property
    def rejected(self) -> NDArray[np.bool_]:
        """Requests that the server refused."""
        return self.ended(Outcome.REFUSED)

    @property
    def preemptions(self) -> NDArray[np.int64]:
        """Zeros: a client can't see preemptions."""
        return np.zeros(self.arrival_s.size, dtype=np.int64)

    def ended(self, outcome: Outcome) -> NDArray[np.bool_]:
        """Which requests ended so."""
        return np.array([o is outcome for o in self.outcome], dtype=np.bool_)


def measure(log: ClientLog, idle_cost: float) -> Measured:
    """
    Score every request of a log.

    Parameters
    ----------
    log
        Of a run with at least one request sent.
    idle_cost
        Tokens that a second of waiting costs, for smooth goodput.
    """
    n = len(log.replies)
    requests = log.requests
    arrival_s = requests.arrival_s[:n]
    complete = np.array([r.outcome is Outcome.COMPLETED for r in log.replies], dtype=np.bool_)
    # Timers may fire a little early, but nothing comes before it was asked for.
    times_s = tuple(
        np.maximum(reply.token_times_s - arrival, 0.0)
        for reply, arrival in zip(log.replies, arrival_s, strict=True)
    )
    targets = [
        QoETarget(float(t), float(s))
        for t, s in zip(requests.ttft_s[:n], requests.tds[:n], strict=True)
    ]
    streams = list(zip(times_s, targets, strict=True))

    def completed(values: list[float]) -> NDArray[np.float64]:
        return np.where(complete, np.array(values, dtype=np.float64), 0.0)

    return Measured(
        arrival_s=arrival_s,
        prompt_tokens=_prompt_tokens(log),
        output_tokens=np.array([t.size for t in times_s], dtype=np.int64),
        wanted_tokens=requests.output_tokens[:n],
        ttft_s=requests.ttft_s[:n],
        tds=requests.tds[:n],
        outcome=tuple(reply.outcome for reply in log.replies),
        error=tuple(reply.error for reply in log.replies),
        send_lag_s=np.array([r.sent_s for r in log.replies]) - arrival_s,
        connect_s=np.array([r.connect_s for r in log.replies]),
        first_token_s=np.array([t[0] if t.size else math.nan for t in times_s]),
        completion_s=np.array(
            [t[-1] if done else math.nan for t, done in zip(times_s, complete, strict=True)]
        ),
        qoe_area=np.array([qoe.area(t, target) for t, target in streams]),
        qoe_delay=np.array([qoe.delay(t, target) for t, target in streams]),
        qoe_window=np.array([qoe.window(t, target) for t, target in streams]),
        fluidity=completed([fluidity_index(t, target) for t, target in streams]),
        smooth_benefit_tokens=completed(
            [smooth_benefit_tokens(t, target, idle_cost) for t, target in streams]
        ),
        tpot_s=np.array([tpot_s(t) for t in times_s]),
        itl_max_s=np.array([np.diff(t).max() if t.size > 1 else math.nan for t in times_s]),
        idle_s=np.array([idle_s(t, target) for t, target in streams]),
        events=np.array([r.events for r in log.replies], dtype=np.int64),
        malformed=np.array([r.malformed for r in log.replies], dtype=np.int64),
        estimated=np.array([r.estimated for r in log.replies], dtype=np.bool_),
        token_times_s=times_s,
        tokens_by_last_arrival=_completed_tokens_by(log, float(arrival_s.max())),
        wall_s=log.wall_s,
    )


def _prompt_tokens(log: ClientLog) -> NDArray[np.int64]:
    """Prompt lengths as the server counted them, as planned where it did not."""
    planned = log.requests.prompt_tokens.tolist()
    counted = [reply.prompt_tokens for reply in log.replies]
    return np.array([planned[i] if c is None else c for i, c in enumerate(counted)], np.int64)


def _completed_tokens_by(log: ClientLog, time_s: float) -> float:
    """Tokens of completed replies that had come by a time on the run's clock."""
    completed = (reply for reply in log.replies if reply.outcome is Outcome.COMPLETED)
    return float(
        sum(np.searchsorted(reply.token_times_s, time_s, side="right") for reply in completed)
    )


def summary(measured: Measured, log: ClientLog) -> dict[str, float]:
    """
    Return all metrics of a run: those of the simulator, of live streams, and of the client.

    ``docs/metrics.md`` defines the first and ``docs/live.md`` the others. NaN where nothing is
    left to measure, and for what a client can't see.
    """
    complete = measured.ended(Outcome.COMPLETED)
    values = summarise(measured)
    values |= {"preemptions": math.nan, "preemptions_per_request": math.nan}
    for outcome in (Outcome.FAILED, Outcome.TIMED_OUT, Outcome.INTERRUPTED):
        values[outcome.name.lower()] = float(measured.ended(outcome).sum())

    gaps_s = [np.diff(t) for t, done in zip(measured.token_times_s, complete, strict=True) if done]
    itl_s = np.concatenate(gaps_s) if gaps_s else np.empty(0)
    for percent in _PERCENTILES:
        values[f"itl_p{percent}_s"] = percentile(itl_s, percent)
    values["itl_max_s"] = float(itl_s.max()) if itl_s.size else math.nan

    # What DistServe (arXiv 2401.09670) counts: requests that meet both of their targets, here
    # each reader's own. A single token has no TPOT, and none to miss.
    slow = measured.tpot_s > 1.0 / measured.tds + ROUNDING_S
    late = measured.first_token_s > measured.ttft_s + ROUNDING_S
    good = complete & ~late & ~slow
    span_s = values["makespan_s"]
    values["goodput_share"] = float(good.mean())
    values["goodput_requests_per_s"] = ratio(float(good.sum()), span_s)
    benefit = float(measured.smooth_benefit_tokens.sum())
    values["smooth_goodput_tokens_per_s"] = ratio(benefit, span_s)
    values["idle_mean_s"] = float(measured.idle_s[complete].mean()) if complete.any() else math.nan
    values["fluidity_mean"] = float(measured.fluidity.mean())
    for percent in (1, 10, 50):
        values[f"fluidity_p{percent}"] = percentile(measured.fluidity, percent)
    values["fluidity_share_ge_0p9"] = float((measured.fluidity >= _FLUID).mean())
    return values | _client_numbers(measured, log)


def _client_numbers(measured: Measured, log: ClientLog) -> dict[str, float]:
    """How late and how busy the client itself was, and how its tokens were counted."""
    values = {}
    for name, lag_s in (
        ("send_lag", measured.send_lag_s[np.isfinite(measured.send_lag_s)]),
        ("connect", measured.connect_s[np.isfinite(measured.connect_s)]),
        ("loop_lag", log.loop_lag_s),
    ):
        for percent in (50, 99):
            values[f"{name}_p{percent}_s"] = percentile(lag_s, percent)
        values[f"{name}_max_s"] = float(lag_s.max()) if lag_s.size else math.nan
    values["client_cpu_share"] = ratio(log.cpu_s, log.wall_s)
    values["in_flight_max"] = float(log.in_flight_max)
    tokens, events = measured.output_tokens.sum(), measured.events.sum()
    values["tokens_per_event"] = ratio(float(tokens), float(events))
    values["estimated_streams"] = float(measured.estimated.sum())
    values["malformed_events"] = float(measured.malformed.sum())
    return values


def row_columns(measured: Measured) -> dict[str, Any]:
    """Column name -> values (n,) of ``rows.parquet``, named as in ``experiments.runs.columns``."""
    n = measured.arrival_s.size
    names = (
        "arrival_s",
        "prompt_tokens",
        "output_tokens",
        "ttft_s",
        "tds",
        "rejected",
        "first_token_s",
        "completion_s",
        "qoe_area",
        "qoe_delay",
        "qoe_window",
        "wanted_tokens",
        "send_lag_s",
        "connect_s",
        "tpot_s",
        "itl_max_s",
        "idle_s",
        "fluidity",
        "smooth_benefit_tokens",
        "events",
        "estimated",
    )
    return {
        "request": np.arange(n),
        **{name: getattr(measured, name) for name in names},
        "preemptions": [None] * n,
        "outcome": [str(outcome) for outcome in measured.outcome],
        "error": [text or None for text in measured.error],
    }
