"""
Live runs of the studies, each in a folder of its own, made once and found again.

A run is what ``andes-opt live`` with its overrides would be. Complete ones are skipped, so that
the same command goes on where a stopped one ended.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from experiments.configuration.errors import UsageError, one_line
from experiments.live.run import request_rate, run_columns, serve
from experiments.live.server import EngineFailed
from experiments.runs.code_closure import state_of, targets
from experiments.runs.files import ERROR, ROWS, TOKENS, printable, write_json
from experiments.runs.identity import configuration_hash, identified
from experiments.runs.records import recorded_run
from experiments.runs.resume import finished

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from omegaconf import DictConfig

#: What is measured between these shares of all tokens is neither ramp-up nor ramp-down.
_STEADY = (0.1, 0.8)
#: Arrivals beyond what any engine here serves.
_FLOOD_RATE = 1000.0
#: Overrides with these beginnings are the study's own.
_NOT_SHARED = ("experiment", "live_study", "live_fidelity", "seed=", "load=")


class Lab:
    """
    Makes runs, or finds them made.

    Parameters
    ----------
    folder
        Where its runs lie, each in a folder of its own; studies may share it.
    minutes
        No run starts after so many; None for as long as it takes. What is finished still counts.

    Attributes
    ----------
    given
        Overrides of the command line that all runs share.
    made, reused, left
        Runs so far, runs that were there, and runs for which there was no time.
    failed
        Folders of the runs that failed.
    """

    def __init__(self, folder: Path, minutes: float | None = None) -> None:
        self._folder = folder
        self._minutes = minutes
        self._began_s = time.monotonic()
        hydra = HydraConfig.get()
        self._choices = dict(hydra.runtime.choices)
        self.given = [
            override
            for override in hydra.overrides.task
            if not override.lstrip("+~").startswith(_NOT_SHARED)
        ]
        self.made = self.reused = self.left = 0
        self.failed: list[Path] = []
        self._code = _harness()

    @property
    def why_lacking(self) -> str:
        """Why runs that were asked for are not there."""
        if self.failed:
            named = ", ".join(str(printable(path)) for path in self.failed[:3])
            return f"{ERROR} says why: {named}"
        return f"minutes = {self._minutes} left no time for them"

    def _out_of_time(self) -> bool:
        if self._minutes is None:
            return False
        return time.monotonic() - self._began_s > 60 * self._minutes

    def result(
        self, overrides: Sequence[str], description: str, given: Sequence[str] | None = None
    ) -> tuple[Path, Any] | None:
        """
        Folder and summary of a run; None if it failed, or there was no time for it.

        Parameters
        ----------
        overrides
            Of ``andes-opt live``.
        description
            What to call it meanwhile.
        given
            In place of :attr:`given`.
        """
        words = [*(self.given if given is None else given), *overrides]
        # The last one counts, and Hydra takes each group once.
        words = list({word.split("=")[0]: word for word in words}.values())
        config = compose("live", overrides=words)
        rate = request_rate(config)
        if rate is not None:
            config.workload.rate = rate
        identification = identification_of(config)
        folder = self._folder / identification["configuration"]
        summary = finished(folder, identification)
        if summary is not None:
            self.reused += 1
            return folder, summary
        if self._out_of_time():
            self.left += 1
            return None
        if _harness() != self._code:
            raise UsageError(
                "the code has changed since the study began: start it again, it goes on from here."
            )
        folder.mkdir(parents=True, exist_ok=True)
        print(description, file=sys.stderr, flush=True)
        choices = {**self._choices, **dict(word.split("=", 1) for word in words if "." not in word)}
        columns = run_columns(config, words, choices)
        try:
            with identified(identification), recorded_run(folder) as record:
                rows, summary = serve(config, folder, columns, description)
                record.finish(rows, summary)
        except EngineFailed as error:
            account = {"error": type(error).__name__, "message": one_line(error)}
            write_json(folder / ERROR, {**account, "run": identification})
            self.failed.append(folder)
            return None
        self.made += 1
        return folder, summary

    def saturated_tokens_per_s(
        self, engine: str, floods: int, workload: Sequence[str] = ()
    ) -> list[float]:
        """
        Tokens/s of stock vLLM when all requests come at once.

        Parameters
        ----------
        engine
            Name in ``conf/live_engine``.
        floods
            How often to measure, with other requests each time.
        workload
            Overrides that make what is sent, before those of the command line.

        Returns
        -------
        list[float]
            Of each flood, rising; the one in the middle makes the load. Empty if one failed, or
            there was no time.
        """
        found = []
        for seed in range(floods):
            overrides = [
                f"live_engine={engine}",
                "stock=true",
                f"workload.rate={_FLOOD_RATE}",
                "tokens=true",
                f"seed={seed}",
            ]
            result = self.result(
                overrides, f"{engine}: saturated token rate, seed {seed}", [*workload, *self.given]
            )
            if result is None:
                return []
            folder, _ = result
            rows = pl.read_parquet(folder / ROWS).select("request", "arrival_s")
            tokens = pl.read_parquet(folder / TOKENS).join(rows, on="request")
            found.append(steady_rate((tokens["time_s"] + tokens["arrival_s"]).to_numpy()))
        return sorted(found)


def _harness() -> str:
    """A hash of the code that this process itself runs."""
    return state_of(["experiments.live.run"])


def identification_of(config: DictConfig) -> dict[str, str]:
    """
    What identifies a run: its configuration, and the code that it can run.

    Narrower than :func:`experiments.runs.identity.identity`, since a run takes minutes: code that
    it never touches does not count. For stock vLLM that is the adapter and the policies, for the
    others the policies and solvers that they don't name.

    Parameters
    ----------
    config
        Of ``andes-opt live``, complete.
    """
    parts = ["workload", "live_engine", "endpoint"]
    if not config.stock:
        parts.append("live")
    options = {part: OmegaConf.to_container(config[part], resolve=True) for part in parts}
    modules = {"experiments.live.run", *targets(options)}
    if not config.stock:
        modules |= {"engine_adapter.scheduler"}
    return {"configuration": configuration_hash("live", config), "code": state_of(modules)[:16]}


def steady_rate(times_s: Any) -> float:
    """
    Tokens/s in the steady part of a run.

    Parameters
    ----------
    times_s
        When each token of a run came, (n,), in any order.
    """
    ordered = np.sort(times_s)
    first, last = (int(share * (ordered.size - 1)) for share in _STEADY)
    return float((last - first) / (ordered[last] - ordered[first]))
