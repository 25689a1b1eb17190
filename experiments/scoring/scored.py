"""The requests of a log, scored as those of the client's own runs, with bounds where need be."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from andes_opt.metrics import QOE_DEFINITIONS
from andes_opt.workload import Requests
from experiments.client.log import ClientLog, Outcome, Reply
from experiments.client.measured import measure, row_columns, summary
from experiments.scoring.bounds import Bounds, bounds, possible_times

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from andes_opt.qoe import QoETarget
    from experiments.client.measured import Measured
    from experiments.scoring.bounds import Possible
    from experiments.scoring.logged import LoggedReply, LoggedRun

#: What a reply of which only bounds are known counts as.
SIDES = ("low", "high")

#: Fields of :class:`Measured` that bounds on token times say nothing certain of.
_UNCERTAIN = ("fluidity", "smooth_benefit_tokens", "itl_max_s", "idle_s")
#: Metrics that need the time of every token, or the clock of every arrival.
_OF_TOKENS = ("fluidity", "itl_", "idle_", "smooth_")
_OF_ARRIVALS = ("makespan_s", "_per_s", "in_flight")


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """
    A run of a log, scored. Arrays are (n,), in order of arrival.

    Parameters
    ----------
    replies
        The run's requests.
    measured
        As of a client's run; of a reply with bounds only the side that was asked for.
    low, high
        Bounds of each definition of QoE; equal where all is known.
    bounds_only
        Of which replies token times are missing.
    values
        The summary.
    """

    replies: Sequence[LoggedReply]
    measured: Measured
    low: dict[str, NDArray[np.float64]]
    high: dict[str, NDArray[np.float64]]
    bounds_only: NDArray[np.bool_]
    values: dict[str, float]

    def columns(self) -> dict[str, Any]:
        """Column name -> values (n,) of ``rows.parquet``."""
        lengths = {
            name: [getattr(reply, name) for reply in self.replies]
            for name in ("prompt_tokens", "wanted_tokens")
        }
        qoe = {
            f"qoe_{name}_{side}": getattr(self, side)[name]
            for name in QOE_DEFINITIONS
            for side in SIDES
        }
        return {
            **row_columns(self.measured),
            **lengths,
            "record": [reply.record for reply in self.replies],
            "bounds_only": self.bounds_only,
            **qoe,
        }


def by_arrival(replies: Sequence[LoggedReply]) -> list[LoggedReply]:
    """Return replies in order of arrival; in the log's order if it does not say when all came."""
    if any(reply.start_s is None for reply in replies):
        return sorted(replies, key=lambda reply: reply.index)
    return sorted(replies, key=lambda reply: (reply.start_s, reply.index))


def score(
    run: LoggedRun,
    replies: Sequence[LoggedReply],
    targets: Sequence[QoETarget],
    idle_cost: float,
    side: str,
) -> Scored:
    """
    Score every request of a run.

    Parameters
    ----------
    run
        The run.
    replies
        Its requests, from :func:`by_arrival`.
    targets
        What the reader of each expects.
    idle_cost
        Tokens that a second of waiting costs, for smooth goodput.
    side
        What a reply with bounds only counts as: ``"low"`` or ``"high"``.
    """
    possible = [possible_times(reply) for reply in replies]
    exact = [len(each) == 1 and each[0].is_exact for each in possible]
    bounds_only = ~np.array(exact, dtype=np.bool_)
    log = _client_log(replies, targets, possible, side, bounds_only)
    measured = measure(log, idle_cost)

    low = {name: getattr(measured, f"qoe_{name}").copy() for name in QOE_DEFINITIONS}
    high = {name: each.copy() for name, each in low.items()}
    for k in np.flatnonzero(bounds_only).tolist():
        for name, (least, most) in bounds(possible[k], targets[k]).items():
            low[name][k], high[name][k] = least, most
    chosen = low if side == "low" else high
    changed: dict[str, Any] = {
        **{f"qoe_{name}": chosen[name] for name in QOE_DEFINITIONS},
        **{name: _unless(bounds_only, getattr(measured, name)) for name in _UNCERTAIN},
        "send_lag_s": np.array([reply.send_lag_s for reply in replies]),
        **_ends(replies, possible),
    }
    measured = replace(measured, **changed)
    if any(reply.start_s is None for reply in replies):
        measured = replace(measured, arrival_s=np.full(len(replies), math.nan))
    values = _values(run, measured, log, bounds_only)
    values |= _of_bounds(low, high, bounds_only)
    return Scored(replies, measured, low, high, bounds_only, values)


def _client_log(
    replies: Sequence[LoggedReply],
    targets: Sequence[QoETarget],
    possible: Sequence[Sequence[Possible]],
    side: str,
    bounds_only: NDArray[np.bool_],
) -> ClientLog:
    """The requests as the client's own log has them; unknown lengths are 1."""
    starts_s = [reply.start_s for reply in replies]
    known = [start_s for start_s in starts_s if start_s is not None]
    zero_s = known[0] if known and len(known) == len(starts_s) else None
    arrival_s = np.array([0.0 if zero_s is None else (s or 0.0) - zero_s for s in starts_s])
    times_s = [each[-1].latest_s if side == "low" else each[0].earliest_s for each in possible]
    requests = Requests(
        arrival_s=arrival_s,
        prompt_tokens=np.array([max(1, reply.prompt_tokens or 1) for reply in replies]),
        output_tokens=np.array([max(1, times.size) for times in times_s]),
        ttft_s=np.array([target.ttft_s for target in targets]),
        tds=np.array([target.tds for target in targets]),
    )
    logged = [
        Reply(
            outcome=reply.outcome,
            error=reply.error,
            sent_s=arrival + reply.send_lag_s,
            connect_s=math.nan,
            token_times_s=times + arrival,
            # Of a log without counts each piece is taken for a token.
            estimated=bool(uncertain) or (reply.tokens is None and times.size > 0),
            events=len(reply.pieces_s),
            malformed=0,
            prompt_tokens=None,
        )
        for reply, times, arrival, uncertain in zip(
            replies, times_s, arrival_s, bounds_only, strict=True
        )
    ]
    ends_s = [arrival + t[-1] for arrival, t in zip(arrival_s, times_s, strict=True) if t.size]
    return ClientLog(
        requests=requests,
        replies=tuple(logged),
        loop_lag_s=np.empty(0),
        in_flight_max=0,
        wall_s=float(max(ends_s, default=0.0)),
        cpu_s=math.nan,
        interrupted=False,
        server_gone=False,
    )


def _unless(hidden: NDArray[np.bool_], values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(hidden, np.nan, values)


def _ends(
    replies: Sequence[LoggedReply], possible: Sequence[Sequence[Possible]]
) -> dict[str, NDArray[np.float64]]:
    """
    First and last token of each reply at the latest, and the most its time per token may be.

    NaN where nothing is known of the first token, or there is no reply.
    """
    n = len(replies)
    first_s, last_s, tpot_s = (np.full(n, math.nan) for _ in range(3))
    for k, (reply, streams) in enumerate(zip(replies, possible, strict=True)):
        latest_s = streams[-1].latest_s
        if reply.outcome is not Outcome.COMPLETED:
            continue
        last_s[k] = latest_s[-1]
        if reply.pieces_s:
            first_s[k] = latest_s[0]
            if latest_s.size > 1:
                begin_s = float(streams[0].earliest_s[0])
                tpot_s[k] = (last_s[k] - begin_s) / (latest_s.size - 1)
    return {"first_token_s": first_s, "completion_s": last_s, "tpot_s": tpot_s}


def _values(
    run: LoggedRun, measured: Measured, log: ClientLog, bounds_only: NDArray[np.bool_]
) -> dict[str, float]:
    """The summary of a client's run, NaN for what the log does not tell."""
    values = summary(measured, log)
    unknown = ["loop_lag", "connect", "client_cpu_share", "malformed_events", "in_flight"]
    if bounds_only.any():
        unknown += [*_OF_TOKENS, "tokens_per_s_arriving"]
    if np.isnan(measured.first_token_s[measured.ended(Outcome.COMPLETED)]).any():
        unknown.append("goodput")
    if not np.isfinite(measured.arrival_s).all():
        unknown += [*_OF_ARRIVALS, "tokens_per_s"]
    for name in values:
        if any(part in name for part in unknown):
            values[name] = math.nan
    return values | {"left_out": float(run.left_out), "unread": float(len(run.unread))}


def _of_bounds(
    low: dict[str, NDArray[np.float64]],
    high: dict[str, NDArray[np.float64]],
    bounds_only: NDArray[np.bool_],
) -> dict[str, float]:
    found = {"bounds_only": float(bounds_only.sum())}
    for name in QOE_DEFINITIONS:
        sides = Bounds(float(low[name].mean()), float(high[name].mean()))
        found |= {f"qoe_{name}_mean_low": sides.low, f"qoe_{name}_mean_high": sides.high}
    return found
