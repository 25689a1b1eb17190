"""The columns of ``rows.parquet``: their types, their units, what they say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Version of the columns below: raised when one changes its name, its unit or its meaning.
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Column:
    """A column of ``rows.parquet``: its type, its unit, what it says."""

    dtype: Any
    unit: str
    meaning: str


#: What made a row; first in every file.
RUN_COLUMNS = {
    "command": Column(pl.String, "", "command that made the row"),
    "policy": Column(pl.String, "", "name in conf/policy, or the class"),
    "solver": Column(pl.String, "", "name in conf/solver, or the class; null if none is used"),
    "objective": Column(pl.String, "", "name in conf/objective; null if none is used"),
    "engine": Column(pl.String, "", "name in conf/engine"),
    "engine_kind": Column(pl.String, "", "simulator, emulator, vllm, or server (of any kind)"),
    "workload": Column(pl.String, "", "name in conf/workload"),
    "lengths": Column(pl.String, "", "name in conf/lengths; null if the workload has its own"),
    "readers": Column(pl.String, "", "name in conf/readers"),
    "rate": Column(pl.Float64, "requests/s", "mean arrival rate; null if the workload sets it"),
    "seed": Column(pl.Int64, "", "seed of the workload"),
    "overrides": Column(pl.String, "", "overrides of the run, separated by spaces"),
}

#: One row per request.
REQUEST_COLUMNS = {
    "request": Column(pl.Int64, "", "number of the request, by arrival"),
    "arrival_s": Column(pl.Float64, "s", "arrival on the engine's clock"),
    "prompt_tokens": Column(pl.Int64, "tokens", "prompt length"),
    "output_tokens": Column(pl.Int64, "tokens", "reply length"),
    "ttft_s": Column(pl.Float64, "s", "the reader's expected time to first token"),
    "tds": Column(pl.Float64, "tokens/s", "the reader's token delivery speed"),
    "rejected": Column(pl.Boolean, "", "it can never fit, or the server refused it; scores 0"),
    "first_token_s": Column(pl.Float64, "s", "first token, since arrival; null if rejected"),
    "completion_s": Column(pl.Float64, "s", "last token, since arrival; null if rejected"),
    "qoe_area": Column(pl.Float64, "", "QoE by the `area` definition"),
    "qoe_delay": Column(pl.Float64, "", "QoE by the `delay` definition"),
    "qoe_window": Column(pl.Float64, "", "QoE by the `window` definition"),
    "preemptions": Column(pl.Int64, "", "times the request was preempted"),
}

#: What only a live client can tell of a request; beside :data:`REQUEST_COLUMNS`.
CLIENT_COLUMNS = {
    "outcome": Column(pl.String, "", "completed, refused, failed, timed out or interrupted"),
    "error": Column(pl.String, "", "why the request did not complete; null if it did"),
    "wanted_tokens": Column(pl.Int64, "tokens", "reply length that was asked for"),
    "send_lag_s": Column(pl.Float64, "s", "from arrival until the client began to send"),
    "connect_s": Column(pl.Float64, "s", "from then until the request was on the wire"),
    "tpot_s": Column(pl.Float64, "s", "mean gap between tokens; null for fewer than two"),
    "itl_max_s": Column(pl.Float64, "s", "longest gap between tokens; null for fewer than two"),
    "idle_s": Column(pl.Float64, "s", "how long the reader waited in all"),
    "fluidity": Column(pl.Float64, "", "Etalon's fluidity index"),
    "smooth_benefit_tokens": Column(pl.Float64, "tokens", "share in smooth goodput"),
    "events": Column(pl.Int64, "", "events of the stream with tokens or text"),
    "estimated": Column(pl.Boolean, "", "token times are estimates"),
}

#: One row per instance and solver. ``solver`` of the run columns is the one that answered.
QUALITY_COLUMNS = {
    "source": Column(pl.String, "", "captured, corpus, or the family's name"),
    "instance": Column(pl.String, "", "name of the instance within its source"),
    "requests": Column(pl.Int64, "", "requests n in the instance"),
    "capacity": Column(pl.Int64, "tokens", "KV capacity"),
    "min_batch": Column(pl.Int64, "", "smallest batch size"),
    "max_batch": Column(pl.Int64, "", "largest batch size"),
    "exactly": Column(pl.Boolean, "", "the plan must fill the batch exactly"),
    "status": Column(pl.String, "", "optimal, feasible, no solution, refused or failed"),
    "certified": Column(pl.Boolean, "", "the solver proved its plan optimal"),
    "value": Column(pl.Float64, "", "value of the plan, recomputed; null if there is none"),
    "bound": Column(pl.Float64, "", "the solver's proven upper bound; null if none"),
    "batch_size": Column(pl.Int64, "", "batch size of the plan"),
    "served": Column(pl.Int64, "", "requests served"),
    "reference": Column(pl.Float64, "", "certified optimum, else the best proven bound"),
    "reference_certified": Column(pl.Boolean, "", "the reference is the optimum"),
    "gap_percent": Column(pl.Float64, "%", "(reference - value) / |reference|; 100 without a plan"),
    "proven_gap_percent": Column(
        pl.Float64, "%", "(bound - value) / max(1, |value|); null if no bound"
    ),
    "wall_s": Column(pl.Float64, "s", "wall-clock time of the call, median over repeats"),
    "cpu_s": Column(pl.Float64, "s", "processor time of the call, child processes included"),
    "build_s": Column(pl.Float64, "s", "building models, as the solver states it"),
    "solve_s": Column(pl.Float64, "s", "solving, as the solver states it"),
    "time_limit_s": Column(pl.Float64, "s", "limit given to the solver; null if none"),
    "note": Column(pl.String, "", "why a solver refused the instance, or failed on it"),
}

#: What the portfolio's rows have beside those of ``QUALITY_COLUMNS``.
PORTFOLIO_COLUMNS = {
    "kind": Column(pl.String, "", "family, load (steps of a simulation) or one batch size"),
    "core": Column(pl.Boolean, "", "one of the instances that every solver is asked"),
    "backend_s": Column(pl.Float64, "s", "solve_s without our own bounds on batch sizes"),
    "load": Column(pl.Float64, "", "the machine's load over the last minute, before the call"),
}

#: One row per number of a study: what was measured of one simulation.
STUDY_COLUMNS = {
    "variant": Column(pl.String, "", "variant of engine and workload, by the study's name"),
    "arm": Column(pl.String, "", "policy with its options, by the study's name"),
    "relative_load": Column(pl.Float64, "", "rate over the baseline's capacity; null if not set"),
    "jitter_s": Column(pl.Float64, "s", "mean network delay of a token; null without a network"),
    "capacity_tokens": Column(pl.Int64, "tokens", "KV capacity, where variants differ in it"),
    "dt_s": Column(pl.Float64, "s", "horizon of the forecast, where variants differ in it"),
    "charged_solve_s": Column(pl.Float64, "s", "simulated time of a solve, where a study sets it"),
    "metric": Column(pl.String, "", "as in docs/metrics.md or experiments/studies/measurements.py"),
    "part": Column(pl.String, "", "the requests or the percentage it is about; empty for all"),
    "number": Column(pl.Float64, "", "the metric's value, in the unit of its name"),
}

COLUMNS = {
    **RUN_COLUMNS,
    **REQUEST_COLUMNS,
    **CLIENT_COLUMNS,
    **QUALITY_COLUMNS,
    **PORTFOLIO_COLUMNS,
    **STUDY_COLUMNS,
}


def frame(columns: Mapping[str, Any], **constants: Any) -> pl.DataFrame:
    """
    Return rows under the documented schema.

    Parameters
    ----------
    columns
        Column name -> values (n,).
    **constants
        Column name -> one value for all rows.

    Returns
    -------
    polars.DataFrame
        NaN and infinities replaced by null, columns in the schema's order.

    Raises
    ------
    ValueError
        If a column is not documented in :data:`COLUMNS`.
    """
    unknown = [name for name in (*columns, *constants) if name not in COLUMNS]
    if unknown:
        raise ValueError(f"column {unknown[0]} is not in experiments.runs.columns.COLUMNS.")
    names = [name for name in COLUMNS if name in columns or name in constants]
    series = {name: pl.Series(name, columns[name], COLUMNS[name].dtype) for name in columns}
    rows = pl.DataFrame(series).with_columns(
        pl.lit(value, dtype=COLUMNS[name].dtype).alias(name) for name, value in constants.items()
    )
    floats = [name for name in names if COLUMNS[name].dtype == pl.Float64]
    finite = [pl.when(pl.col(name).is_finite()).then(pl.col(name)).alias(name) for name in floats]
    return rows.with_columns(finite).select(names)
