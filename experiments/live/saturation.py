"""An engine's saturated token rate: what stock vLLM makes when requests never run out."""

from __future__ import annotations

from statistics import median_low
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from experiments.runs.files import ROWS, TOKENS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from experiments.live.run_store import RunStore

#: What is measured between these shares of all tokens is neither ramp-up nor ramp-down.
_STEADY = (0.1, 0.8)
#: Requests/s beyond what any engine here serves.
_ENDLESS_RATE = 1000.0


def saturated_tokens_per_s(
    store: RunStore, engine: str, runs: int, workload: Sequence[str] = ()
) -> list[float]:
    """
    Measure the tokens/s of stock vLLM when all requests come at once.

    Parameters
    ----------
    store
        Makes the saturation runs.
    engine
        Name in ``conf/live_engine``.
    runs
        How often to measure, with other requests each time.
    workload
        Overrides that make what is sent, before those of the command line.

    Returns
    -------
    list[float]
        Of each run, rising. Empty if one failed, or there was no time.
    """
    found = []
    for seed in range(runs):
        overrides = [
            f"live_engine={engine}",
            "stock=true",
            f"workload.rate={_ENDLESS_RATE}",
            "tokens=true",
            f"seed={seed}",
        ]
        name = f"{engine}: saturated token rate, seed {seed}"
        made = store.result(overrides, name, [*workload, *store.given])
        if made is None:
            return []
        rows = pl.read_parquet(made.folder / ROWS).select("request", "arrival_s")
        tokens = pl.read_parquet(made.folder / TOKENS).join(rows, on="request")
        found.append(steady_rate((tokens["time_s"] + tokens["arrival_s"]).to_numpy()))
    return sorted(found)


def load_unit(saturated: Sequence[float]) -> float:
    """Return the tokens/s at which the load is 1: the middle run's, of two the lower one's."""
    return median_low(saturated)


def steady_rate(times_s: Any) -> float:
    """
    Return the tokens/s in the steady part of a run.

    Parameters
    ----------
    times_s
        When each token of a run came, (n,), in any order.
    """
    ordered = np.sort(times_s)
    first, last = (int(share * (ordered.size - 1)) for share in _STEADY)
    return float((last - first) / (ordered[last] - ordered[first]))
