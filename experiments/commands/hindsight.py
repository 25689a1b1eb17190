"""``andes-opt hindsight``: how far policies stay below what no scheduler can beat."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from hydra.core.hydra_config import HydraConfig

from andes_opt.hindsight import HindsightBound, window_bound
from experiments.analysis.markdown import markdown
from experiments.configuration.compose import build, load_choice
from experiments.configuration.errors import UsageError
from experiments.configuration.overrides import refuse_unread
from experiments.runs.files import write_atomically
from experiments.runs.progress import bar, jit_seconds
from experiments.runs.records import recorded_run
from experiments.runs.resume import resumable, said
from experiments.runs.run_columns import run_columns
from experiments.runs.simulation import request_rows, run_simulation

if TYPE_CHECKING:
    from omegaconf import DictConfig

_DECIMALS = {"window": 4, "bound": 4, "gap points": 2, "bound s": 1}


def bound(config: DictConfig) -> HindsightBound:
    """
    Compute the hindsight bound of a configuration's workload on its engine.

    Parameters
    ----------
    config
        With the nodes of ``conf/hindsight.yaml``.

    Raises
    ------
    UsageError
        If a constructor or the bound refuses its options.
    """
    requests = build(config, "workload").generate(config.seed)
    engine = build(config, "engine")
    try:
        return window_bound(
            requests,
            engine,
            slot_s=config.bound.slot_s,
            cells=config.bound.cells,
            time_limit_s=config.bound.time_limit_s,
        )
    except ValueError as error:
        raise UsageError(f"bound: {error}") from error


def loads(config: DictConfig) -> list[DictConfig]:
    """
    Return the configuration at each of its ``rates``; itself if there are none.

    Raises
    ------
    UsageError
        If rates are given but the workload has none to set, or the list is empty.
    """
    if config.rates is None:
        return [config]
    if not config.rates:
        raise UsageError("rates=[] not understood: name at least one, or null.")
    if "rate" not in config.workload:
        raise UsageError("rates not understood: this workload has no rate.")
    arms = []
    for rate in config.rates:
        arm = config.copy()
        arm.workload.rate = rate
        arms.append(arm)
    return arms


@resumable
def run(config: DictConfig) -> dict[str, float]:
    """Bound, simulate, write the run's files, print the table, and return the summary."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    with recorded_run(folder) as record:
        refuse_unread(HydraConfig.get().overrides.task, _unread(config))
        arms = loads(config)
        chosen = HydraConfig.get().runtime.choices["policy"]
        policies = {
            name: config.policy if name == chosen else load_choice("policy", name)
            for name in config.policies
        }
        rows: list[pl.DataFrame] = []
        lines: list[dict[str, Any]] = []
        summary: dict[str, float] = {}
        so_far = record.keeping(lambda: pl.concat(rows) if rows else None)
        with jit_seconds() as jit, so_far, bar(len(arms), "bounding") as progress:
            for arm in arms:
                rate = arm.workload.get("rate")
                found = bound(arm)
                _write_certificate(found, folder / f"certificate_{rate}.npz")
                summary |= _metrics(found, f"bound_at_{rate}")
                lines += [_line(rate, "(any)", None, found)] if not policies else []
                for name, policy in policies.items():
                    arm.policy = policy
                    result = run_simulation(arm, description=f"{name} at {rate}/s")
                    columns = run_columns(arm, HydraConfig.get(), policy=name)
                    rows.append(request_rows(result, columns))
                    window = float(result.qoe_window.mean())
                    lines.append(_line(rate, name, window, found))
                    summary[f"{name}_at_{rate}_qoe_window_mean"] = window
                    summary[f"{name}_at_{rate}_gap_points"] = lines[-1]["gap points"]
                progress.update()
        table = pl.DataFrame(lines)
        with said(markdown(table, _DECIMALS), folder):
            if rows:
                record.keep(pl.concat(rows))
            write_atomically(folder / "table.csv", table.write_csv)
            record.finish(None, {"jit_s": jit.value, **summary})
    return summary


def _unread(config: DictConfig) -> dict[str, str]:
    """Return options that have no effect beside the others, and why."""
    unread = {}
    if config.rates is not None:
        unread["workload.rate"] = "rates=[...] names the rates"
    if HydraConfig.get().runtime.choices["policy"] not in config.policies:
        unread["policy"] = "only policies=[...] are compared with the bound"
    return unread


def _line(
    rate: float | None, policy: str, window: float | None, found: HindsightBound
) -> dict[str, Any]:
    return {
        "rate": rate,
        "policy": policy,
        "window": window,
        "bound": found.mean_window,
        "gap points": None if window is None else 100 * (found.mean_window - window),
        "bound s": found.build_s + found.solve_s,
    }


def _metrics(found: HindsightBound, prefix: str) -> dict[str, float]:
    return {
        f"{prefix}_qoe_window_mean": found.mean_window,
        f"{prefix}_lp_value": found.lp_value,
        f"{prefix}_build_s": found.build_s,
        f"{prefix}_solve_s": found.solve_s,
    }


def _write_certificate(found: HindsightBound, path: Path) -> None:
    """Write the arguments with which ``hindsight.bound_at_prices`` proves the bound again."""
    write_atomically(
        path,
        lambda partial: np.savez(
            partial,
            prices=found.prices,
            slot_s=found.slot_s,
            shares=found.shares,
            cells=found.cells,
        ),
    )
