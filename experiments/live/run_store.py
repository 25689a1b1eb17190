"""
Live runs of the studies, each in a folder of its own, made once and found again.

A run is what ``andes-opt live`` with its overrides would be. Complete ones are skipped, so that
the same command goes on where a stopped one ended.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from experiments.configuration.errors import UsageError, one_line
from experiments.live.run import request_rate, run_columns, serve
from experiments.live.server import EngineFailed
from experiments.live.vllm_command import require_live
from experiments.runs.code_closure import state_of, targets
from experiments.runs.files import ERROR, printable, write_json
from experiments.runs.identity import configuration_hash, identified
from experiments.runs.records import recorded_run
from experiments.runs.resume import finished

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from omegaconf import DictConfig

#: Overrides with these beginnings are the study's own.
_NOT_SHARED = ("experiment", "live_study", "live_fidelity", "seed=", "load=")


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """
    A complete run.

    Parameters
    ----------
    folder
        With its files.
    summary
        Its metrics.
    """

    folder: Path
    summary: Mapping[str, float]


class RunStore:
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
        self.given = [
            override
            for override in HydraConfig.get().overrides.task
            if not override.lstrip("+~").startswith(_NOT_SHARED)
        ]
        self.made = self.reused = self.left = 0
        self.failed: list[Path] = []
        self._code = _harness()

    @property
    def why_lacking(self) -> str:
        """The reason why runs that were asked for are not there."""
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
    ) -> FinishedRun | None:
        """
        Make a run, or find it made; None if it failed, or there was no time for it.

        Parameters
        ----------
        overrides
            Of ``andes-opt live``.
        description
            What to call it meanwhile.
        given
            In place of :attr:`given`.
        """
        words = _last_of_each([*(self.given if given is None else given), *overrides])
        config, choices = composed(words)
        identification = identification_of(config)
        folder = self._folder / identification["configuration"]
        summary = finished(folder, identification)
        if summary is not None:
            self.reused += 1
            return FinishedRun(folder, summary)
        if self._out_of_time():
            self.left += 1
            return None
        if _harness() != self._code:
            raise UsageError(
                "the code has changed since the study began: start it again, it goes on from here."
            )
        require_live(vllm=not config.live_engine.get("server"))
        folder.mkdir(parents=True, exist_ok=True)
        print(description, file=sys.stderr, flush=True)
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
        return FinishedRun(folder, summary)


def composed(words: Sequence[str]) -> tuple[DictConfig, dict[str, str]]:
    """
    Return the configuration of a run, its rate settled, and the choice of each group.

    Parameters
    ----------
    words
        Overrides of ``andes-opt live``; of several for one key the last counts.
    """
    config = compose("live", overrides=_last_of_each(words), return_hydra_config=True)
    OmegaConf.set_struct(config, False)
    choices = dict(config.pop("hydra").runtime.choices)
    OmegaConf.set_struct(config, True)
    rate = request_rate(config)
    if rate is not None:
        config.workload.rate = rate
    return config, choices


def _last_of_each(words: Sequence[str]) -> list[str]:
    """Overrides without those that a later one replaces: Hydra takes each group once."""
    return list({word.split("=")[0]: word for word in words}.values())


def _harness() -> str:
    """A hash of the code that this process itself runs."""
    return state_of(["experiments.live.run"])


def identification_of(config: DictConfig) -> dict[str, str]:
    """
    Return what identifies a run: its configuration, and the code that it can run.

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
