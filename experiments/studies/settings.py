"""What regimes, arms and variants of a study change, and what its tiny form leaves."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, cast

from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf, open_dict

from experiments.configuration.compose import groups, load_choice
from experiments.configuration.errors import not_understood, unknown_key

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from omegaconf import DictConfig

#: Groups in which the name of an arm or a variant without settings of its own is looked up.
ARM_GROUPS = ("policy",)
VARIANT_GROUPS = ("engine", "workload", "readers", "lengths")

#: What ``study.tiny=true`` leaves of a study, and the KV tokens that press so few requests.
TINY = {"seeds": 2, "variants": 2, "arms": 2, "requests": 10, "capacity_tokens": 2000}

_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Regime:
    """
    One engine under one forecast horizon.

    Parameters
    ----------
    engine
        Name in ``conf/engine``.
    capacity_tokens
        KV tokens it has.
    dt_s
        Horizon of the forecast.
    """

    engine: str
    capacity_tokens: int
    dt_s: float

    @property
    def name(self) -> str:
        """Return how rows name it as a variant."""
        return f"{self.engine}, {self.capacity_tokens} KV tokens, dt {self.dt_s:g} s"

    @property
    def settings(self) -> dict[str, Any]:
        """Return what it changes of a configuration."""
        return {
            "engine": self.engine,
            "engine.capacity_tokens": self.capacity_tokens,
            "objective.dt_s": self.dt_s,
        }


def regimes(study: DictConfig) -> list[Regime]:
    """Return the regimes that ``study.regimes`` crosses; none if it has no such node."""
    axes = study.get("regimes")
    if axes is None:
        return []
    return [Regime(*point) for point in product(axes.engines, axes.capacity_tokens, axes.dt_s)]


def patched(
    config: DictConfig,
    settings: Mapping[str, Any],
    replaced: dict[str, Any],
    choose: Callable[[str, str], DictConfig] = load_choice,
) -> DictConfig:
    """
    Return a configuration with some settings changed.

    Parameters
    ----------
    config
        The configuration; left as it is.
    settings
        Group -> name of a file, or dotted option -> value. A workload that is replaced
        hands on its rate and its number of requests.
    replaced
        Group -> name of the file in use; brought up to date.
    choose
        Gives a group's file.

    Raises
    ------
    UsageError
        If a setting names neither a group nor an option.
    """
    config = config.copy()
    for key, value in settings.items():
        if replaced.get(key) == value and key in groups():
            continue  # loaded already, perhaps with options from the command line
        if key in groups():
            node = choose(key, value).copy()
            if key == "workload":
                kept = {name: config.workload[name] for name in ("rate", "requests")}
                with open_dict(node):
                    node.update({name: value for name, value in kept.items() if name in node})
            config[key] = node
            replaced[key] = value
        elif OmegaConf.select(config, key, default=_ABSENT) is _ABSENT:
            parent = OmegaConf.select(config, key.rpartition(".")[0]) if "." in key else config
            raise unknown_key(key, [str(name) for name in parent or ()])
        else:
            OmegaConf.update(config, key, value, merge=False)
    return config


def settings_of(
    name: str, settings: Mapping[str, Any], known_groups: Sequence[str]
) -> Mapping[str, Any]:
    """
    Return what an arm or a variant changes.

    Parameters
    ----------
    name
        Its name.
    settings
        Name -> settings, of the study.
    known_groups
        Groups in which a name that has no settings is looked up.

    Raises
    ------
    UsageError
        If it has no settings and is no choice of these groups.
    """
    if name in settings:
        return cast("Mapping[str, Any]", settings[name])
    for group in known_groups:
        if name in _names(group):
            return {group: name}
    kinds = [choice for group in known_groups for choice in _names(group)]
    raise not_understood("study", name, [*settings, *kinds])


def prepared(config: DictConfig) -> DictConfig:
    """Return the configuration, cut down by ``study.tiny``; regimes are its variants."""
    config = config.copy()
    if config.study.tiny:
        _shrink(config)
    config.study = named_regimes(config.study)
    return config


def named_regimes(study: DictConfig) -> DictConfig:
    """Return a study whose regimes, if it has any, are its variants."""
    named = {regime.name: regime.settings for regime in regimes(study)}
    if not named:
        return study
    study = study.copy()
    with open_dict(study):
        study.settings = {**study.settings, **named}
        study.variants = list(named)
    return study


def _shrink(config: DictConfig) -> None:
    """Cut the configuration down to what takes seconds."""
    study = config.study
    study.seeds = min(study.seeds, TINY["seeds"])
    study.variants = list(study.variants)[: TINY["variants"]]
    study.arms = list(study.arms)[: TINY["arms"]]
    for name in ("rates", "loads"):
        if study[name] is not None:
            study[name] = sorted({study[name][0], study[name][-1]})
    for name in study.get("regimes", ()):
        study.regimes[name] = list(study.regimes[name])[: TINY["variants"]]
    study.capacity.tolerance = 0.5
    study.capacity.highest = 8.0
    if "charged" in study:
        study.charged.solve_s = list(study.charged.solve_s)[: TINY["variants"]]
    config.workload.requests = min(config.workload.requests, TINY["requests"])


def shrink_point(config: DictConfig) -> None:
    """Cut a point of a tiny study down, whatever its variant and arm asked for."""
    config.workload.requests = min(config.workload.requests, TINY["requests"])
    config.engine.capacity_tokens = min(config.engine.capacity_tokens, TINY["capacity_tokens"])


def _names(group: str) -> Sequence[str]:
    if GlobalHydra.instance().is_initialized():  # respects --config-dir
        return cast(
            "Sequence[str]", GlobalHydra.instance().config_loader().get_group_options(group)
        )
    return groups()[group]
