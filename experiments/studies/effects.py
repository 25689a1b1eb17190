"""Options of the command line that nothing in a study depends on, refused before it starts."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

from hydra import compose
from hydra.errors import HydraException
from omegaconf import OmegaConf

from experiments.configuration.errors import UsageError
from experiments.configuration.overrides import key_of
from experiments.studies.points import plain_run, point_config
from experiments.studies.settings import VARIANT_GROUPS, named_regimes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from hydra.conf import HydraConf
    from omegaconf import DictConfig

#: Nodes that a study reads itself, whatever its variants and arms set.
_ITS_OWN = ("study", "seed", "sweep", "hydra", "experiment", "bound")


def check_options(
    config: DictConfig, hydra_config: HydraConf, choose: Callable[[str, str], DictConfig]
) -> None:
    """
    Refuse an option that every variant or arm of the study replaces, or that nothing reads.

    Parameters
    ----------
    config
        The run's configuration.
    hydra_config
        Hydra's part of it, with the options of the command line.
    choose
        Gives a group's file.

    Raises
    ------
    UsageError
        With the option, and what to write in its place.
    """
    words, study = list(hydra_config.overrides.task), named_regimes(config.study)
    for word in words:
        key, _, value = word.lstrip("+~").partition("=")
        node = key_of(word)
        if node == "study":
            _check_read(study, key)
        if node in _ITS_OWN:
            continue
        try:
            others = [other for other in words if other != word]
            plain = compose(hydra_config.job.config_name, others, return_hydra_config=True)
        except HydraException:
            continue  # the others need this one
        if all(plain[name] == config[name] for name in config if name != "study" and name in plain):
            continue  # what it is anyway
        chosen = dict(plain.hydra.runtime.choices)
        runs = _runs(config, dict(hydra_config.runtime.choices), study, choose)
        without = _runs(plain, chosen, study, choose)
        if all(ours == theirs for ours, theirs in zip(runs, without, strict=True)):
            raise UsageError(f"{word} has no effect: {_instead(study, key, value)}.")


def _runs(
    config: DictConfig,
    chosen: Mapping[str, Any],
    study: DictConfig,
    choose: Callable[[str, str], DictConfig],
) -> Iterator[dict[str, Any]]:
    """Yield what the simulations of each variant and arm depend on, rate and seed aside."""
    kept = [str(name) for name in config if name not in _ITS_OWN]
    config = OmegaConf.masked_copy(config, kept)  # patching copies it, and a study is large
    arms = [*study.arms, *([] if study.loads is None else [study.loads_of])]
    for variant, arm in product(study.variants, arms):
        yield plain_run(point_config(config, study.settings, variant, arm, dict(chosen), choose))


def _check_read(study: DictConfig, key: str) -> None:
    """Refuse an option of the study itself that its kind does not read."""
    unread = {}
    if study.kind == "capacity":
        unread = dict.fromkeys(("rates", "loads", "loads_of"), "capacities are searched")
    elif study.loads is None:
        unread = dict.fromkeys(("loads_of", "capacity"), "rates are given in requests/s")
    if study.kind == "exact_vs_greedy":
        unread |= {
            "variants": "study.regimes names what is compared",
            "arms": "greedy and exact packing are compared",
        }
    if (why := unread.get(key.split(".")[1])) is not None:
        raise UsageError(f"{key} has no effect in this study: {why}.")


def _instead(study: DictConfig, key: str, value: str) -> str:
    """Return who sets the option, and what to write in its place."""
    if key == "engine" and "regimes" in study:
        return f"study.regimes names the engines; use 'study.regimes.engines=[{value}]'"
    if key in VARIANT_GROUPS:
        return f"every variant of the study sets its own; use 'study.variants=[{value}]'"
    if key == "policy":
        return f"every arm of the study sets its own; use 'study.arms=[{value}]'"
    if key in ("workload.rate", "rates"):
        values = value.strip("[]")
        return f"the study sets its own rates; use 'study.rates=[{values}]' study.loads=null"
    node = key.partition(".")[0]
    if node in ("timeline", "tokens"):
        return "a study keeps no such file; andes-opt simulate does"
    if node in VARIANT_GROUPS:
        settings, names = f"{node}: NAME, {key}: {value}", "study.variants=[mine]"
    else:
        settings, names = f"policy: andes, {key}: {value}", "study.arms=[fcfs,mine]"
    return (
        "every variant and arm of the study sets its own or uses none; "
        f"use '+study.settings.mine={{{settings}}}' '{names}'"
    )
