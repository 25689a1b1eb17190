"""The adapter's options, as they come in vLLM's ``--additional-config``."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from andes_opt import checks
from andes_opt.latency import LatencyModel
from andes_opt.qoe import QoETarget
from engine_adapter.guard import LOGGER

#: The adapter's entry in ``additional_config``, which vLLM shares with other plug-ins.
KEY = "andes_opt"

_ON_MISMATCH = ("refuse", "fall_back")
#: The old name of an option that has a new one: the next release drops it.
_RENAMED = {"planner_share": "planning_share_limit"}


def _default_policy() -> dict[str, Any]:
    # The paper's policy with its greedy packing. Names only: nothing here imports a solver.
    return {
        "_target_": "andes_opt.policy.andes.Andes",
        "solver": {"_target_": "solvers.greedy.Greedy"},
        "objective": {"_target_": "andes_opt.objective.AverageQoE"},
    }


@dataclass(frozen=True, slots=True)
class Background:
    """
    A second, slow policy that plans in a process of its own.

    Parameters
    ----------
    policy
        What to instantiate there, as for :func:`instantiate`.
    deadline_s
        A decision that takes longer is given up and its process replaced, > 0.
    duty_cycle
        Share of one core it may use, in (0, 1].
    max_age_s
        A plan older than this is not used any more, counted from its snapshot, > 0.
    """

    policy: Mapping[str, Any]
    deadline_s: float = 1.0
    duty_cycle: float = 0.05
    max_age_s: float = 2.0

    def __post_init__(self) -> None:
        _check_policy("background.policy", self.policy)
        checks.positive("background.deadline_s", self.deadline_s)
        checks.positive("background.max_age_s", self.max_age_s)
        checks.share("background.duty_cycle", self.duty_cycle)


@dataclass(frozen=True, slots=True)
class Settings:
    """
    The adapter's options.

    Parameters
    ----------
    policy
        The policy that decides on the engine's thread: a mapping with ``_target_``.
    background
        A slow policy beside it, or None.
    target
        The target of requests that bring none.
    latency
        The latency model to start from: its four coefficients.
    learn_latency
        Whether to learn the latency from the engine's iterations.
    headroom_blocks
        KV blocks that plans leave free; None for 1 % of them, at least one.
    max_candidates
        Most requests shown to the policy, >= 1.
    planning_share_limit
        Share of the engine thread's time that planning may take, in (0, 1]: all that can be put
        off, with plans of the background. Planning pauses to keep it, but for a plan that is made
        since the one in force has nobody left to serve.
    on_mismatch
        With a vLLM that lacks what the adapter touches: ``"refuse"`` to start, or
        ``"fall_back"`` to vLLM's own scheduling.
    report_path
        File to write counters to, once a second and when the last request leaves (JSON); None
        for none. Data-parallel engines but the first add their number to its name.
    iterations_path
        File to write every timed iteration to (CSV, for ``andes-opt calibrate``); None for none.
        Data-parallel engines as above.
    """

    policy: Mapping[str, Any] = field(default_factory=_default_policy)
    background: Background | None = None
    target: QoETarget = field(default_factory=lambda: QoETarget(ttft_s=1.0, tds=4.8))
    latency: LatencyModel = field(
        default_factory=lambda: LatencyModel(
            base_s=0.03, per_request_s=1e-4, per_context_token_s=4e-7, per_prefill_token_s=1e-4
        )
    )
    learn_latency: bool = True
    headroom_blocks: int | None = None
    max_candidates: int = 2000
    planning_share_limit: float = 0.01
    on_mismatch: str = "refuse"
    report_path: str | None = None
    iterations_path: str | None = None

    def __post_init__(self) -> None:
        _check_policy("policy", self.policy)
        for name, kind in _MAPPINGS.items():
            value = getattr(self, name)
            if not isinstance(value, kind) and (name, value) != ("background", None):
                raise ValueError(f"{name} = {value!r} not understood: need a mapping.")
        if self.headroom_blocks is not None:
            checks.whole("headroom_blocks", self.headroom_blocks, 0)
        checks.whole("max_candidates", self.max_candidates, 1)
        checks.share("planning_share_limit", self.planning_share_limit)
        if self.on_mismatch not in _ON_MISMATCH:
            raise ValueError(
                f"on_mismatch = {self.on_mismatch!r} not understood: need one of "
                f"{', '.join(_ON_MISMATCH)}."
            )


#: Options that are mappings, and what they become.
_MAPPINGS = {"background": Background, "target": QoETarget, "latency": LatencyModel}


def _check_policy(name: str, spec: Any) -> None:
    if not isinstance(spec, Mapping) or not isinstance(spec.get("_target_"), str):
        raise ValueError(f"{name} = {spec!r} not understood: need a mapping with _target_.")


def read_settings(additional_config: Any) -> Settings:
    """
    Returns the settings in vLLM's ``additional_config``.

    Parameters
    ----------
    additional_config
        A mapping that may hold an entry :data:`KEY`.

    Returns
    -------
    Settings
        With the defaults for options that are not given.

    Raises
    ------
    ValueError
        If an entry is unknown or wrong.
    """
    config = additional_config.get(KEY, {}) if isinstance(additional_config, Mapping) else {}
    if not isinstance(config, Mapping):
        raise ValueError(f"additional_config[{KEY!r}] = {config!r} not understood: need a mapping.")
    values = dict(config)
    known = [item.name for item in fields(Settings)]
    for old, new in _RENAMED.items():
        value = values.pop(old, None)
        if value is not None:
            LOGGER.warning("%s.%s is now %s; the next release drops the old name.", KEY, old, new)
            values[new] = value
    unknown = [name for name in values if name not in known]
    if unknown:
        raise ValueError(f"{KEY}.{unknown[0]} not understood: need one of {', '.join(known)}.")
    for name, make in _MAPPINGS.items():
        given = values.get(name)
        if isinstance(given, Mapping):
            values[name] = (
                instantiate(given) if "_target_" in given else _build(f"{KEY}.{name}", make, given)
            )
    for name in ("policy", "target", "latency"):
        if name in values and values[name] is None:
            del values[name]
    settings: Settings = _build(KEY, Settings, values)
    return settings


def describe(spec: Any) -> str:
    """Returns a mapping with ``_target_`` in words: its name, and the names of its parts."""
    if not isinstance(spec, Mapping) or "_target_" not in spec:
        return ""
    parts = {name: describe(value) for name, value in spec.items()}
    named = ", ".join(f"{name} {part}" for name, part in parts.items() if part)
    return f"{spec['_target_']} ({named})" if named else str(spec["_target_"])


def instantiate(spec: Any) -> Any:
    """
    Returns what a mapping with ``_target_`` describes, built from the inside out.

    This is how Hydra reads a resolved configuration, so the files in ``conf/`` serve the live
    engine too.

    Parameters
    ----------
    spec
        A mapping with ``_target_`` (dotted name of a callable) and its keyword arguments;
        lists and other mappings are searched for such; anything else comes back as it is.

    Raises
    ------
    ValueError
        If a target can't be found, or refuses its arguments.
    """
    if isinstance(spec, Mapping):
        values = {key: instantiate(value) for key, value in spec.items()}
        if "_target_" not in values:
            return values
        target = str(values.pop("_target_"))
        return _build(target, _find(target), values)
    if isinstance(spec, (list, tuple)):
        return [instantiate(value) for value in spec]
    return spec


def _find(target: str) -> Any:
    module_name, _, name = target.rpartition(".")
    if not module_name:
        raise ValueError(f"_target_ = {target!r} not understood: need package.module.name.")
    try:
        return getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"_target_ = {target!r} not understood: {error}.") from error


def _build(what: str, make: Any, values: Mapping[str, Any]) -> Any:
    try:
        return make(**values)
    except TypeError as error:
        raise ValueError(f"{what}: {error}.") from error
