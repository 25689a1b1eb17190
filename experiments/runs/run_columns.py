"""What made the rows of a run: values of :data:`~experiments.runs.columns.RUN_COLUMNS`."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from experiments.configuration.compose import label

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hydra.conf import HydraConf
    from omegaconf import DictConfig

#: What serves the requests of a command's runs, where it is not the simulator.
_ENGINE_KINDS = {"emulate": "emulator", "live": "vllm", "live-demo": "vllm", "bench": "server"}


def run_columns(
    config: DictConfig, hydra_config: HydraConf, **replaced: str | None
) -> dict[str, Any]:
    """
    Return the columns of a simulated run.

    Parameters
    ----------
    config
        The run's configuration.
    hydra_config
        Hydra's part of it.
    **replaced
        Group -> name of the file in use, where it is not the one that Hydra chose.
    """
    choices = {**hydra_config.runtime.choices, **replaced}
    served_by = {**policy_columns(config, choices), "engine": label(config, choices, "engine")}
    overrides = hydra_config.overrides.task
    return columns_of(config, choices, hydra_config.job.name, served_by, overrides)


def policy_columns(config: DictConfig, choices: Mapping[str, Any]) -> dict[str, Any]:
    """Return policy, solver and objective; the last two are None if the policy uses none."""
    solves = "solver" in config.policy
    return {
        "policy": label(config, choices, "policy"),
        "solver": label(config, choices, "solver") if solves else None,
        "objective": label(config, choices, "objective") if solves else None,
    }


def columns_of(
    config: DictConfig,
    choices: Mapping[str, Any],
    command: str,
    served_by: Mapping[str, Any],
    overrides: Sequence[str],
) -> dict[str, Any]:
    """
    Return the columns of a run, whatever served it.

    Parameters
    ----------
    config
        The run's configuration.
    choices
        Group -> name of the file in use.
    command
        The command that made the run.
    served_by
        Values of ``policy``, ``solver``, ``objective`` and ``engine``.
    overrides
        Of the command line.
    """
    rate = config.workload.get("rate")
    return {
        "command": command,
        **served_by,
        "engine_kind": _ENGINE_KINDS.get(command, "simulator"),
        "workload": label(config, choices, "workload"),
        "lengths": label(config, choices, "lengths") if "lengths" in config else None,
        "readers": label(config, choices, "readers") if "readers" in config else None,
        "rate": None if rate is None else float(rate),
        "seed": config.seed,
        "overrides": shlex.join(overrides),
    }
