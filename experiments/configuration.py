"""The configuration files of ``conf/``: where they are, what they offer, how to load one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.usage import UsageError, not_understood

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

#: Next to the installed package, so that a folder ``conf/`` of the user's can't hide it.
CONF_DIR = Path(__file__).resolve().parents[1] / "conf"

#: Groups that configure Hydra itself rather than a run.
_INTERNAL_GROUPS = ("hydra",)


def groups(conf_dirs: Sequence[Path] = (CONF_DIR,)) -> dict[str, list[str]]:
    """
    Configuration groups and their choices.

    Parameters
    ----------
    conf_dirs
        Folders to look into; later ones add to the earlier ones.

    Returns
    -------
    dict[str, list[str]]
        Group -> sorted names of its files without ``.yaml``; nested groups as ``a/b``.
    """
    found: dict[str, set[str]] = {}
    for conf_dir in conf_dirs:
        for path in conf_dir.rglob("*.yaml"):
            group = path.parent.relative_to(conf_dir).as_posix()
            if group != "." and group.split("/")[0] not in _INTERNAL_GROUPS:
                found.setdefault(group, set()).add(path.stem)
    return {group: sorted(names) for group, names in sorted(found.items())}


def first_comment(path: Path) -> str:
    """The first comment of a YAML file, Hydra's ``@package`` aside; empty if there is none."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            if not line.startswith("#"):
                break
            if not line.startswith("# @"):
                return line.lstrip("# ").strip()
    return ""


def load(command: str, overrides: Iterable[str] = ()) -> DictConfig:
    """
    The configuration of a command, for use from Python and notebooks.

    Parameters
    ----------
    command
        ``simulate``, ``quality`` ...
    overrides
        As on the command line, ``policy=fcfs`` say.
    """
    with initialize_config_dir(config_dir=str(CONF_DIR), version_base="1.3"):
        return compose(config_name=command, overrides=list(overrides))


def load_choice(group: str, name: str) -> DictConfig:
    """
    One file of a group, ``load_choice("solver", "greedy")``.

    A name with a dot is taken as the dotted path of a class of one's own.

    Raises
    ------
    UsageError
        If the group has no such file.
    """
    if "." in name:
        return OmegaConf.create({"_target_": name})
    config_name = f"{group}/{name}"
    if GlobalHydra.instance().is_initialized():
        # Inside a run: respects --config-dir.
        known = GlobalHydra.instance().config_loader().get_group_options(group)
        if name not in known:
            raise not_understood(group, name, known)
        config = compose(config_name=config_name)
    else:
        known = groups().get(group, [])
        if name not in known:
            raise not_understood(group, name, known)
        with initialize_config_dir(config_dir=str(CONF_DIR), version_base="1.3"):
            config = compose(config_name=config_name)
    return cast("DictConfig", config[group])


def build(config: DictConfig, key: str | None = None) -> Any:
    """
    Instantiate a node of a configuration.

    Parameters
    ----------
    config
        The configuration.
    key
        The node's name; None for ``config`` itself.

    Raises
    ------
    UsageError
        If the constructor refuses its options, with the constructor's own sentence.
    """
    where = f"{key}: " if key else ""
    try:
        node = config if key is None else config[key]
        return instantiate(node)
    except InstantiationException as error:
        raise UsageError(where + _reason(error)) from error
    except (OmegaConfBaseException, ValueError, FileNotFoundError) as error:
        raise UsageError(where + str(error).splitlines()[0]) from error


def _reason(error: InstantiationException) -> str:
    """The sentence of the innermost error that an instantiation failed with."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = str(cause).splitlines()
    sentence = lines[0] if lines else type(cause).__name__
    unknown = re.match(r"Error locating target '([^']+)'", str(error))
    return f"{unknown[1]} not understood: {sentence}." if unknown else sentence


def label(config: DictConfig, choices: Mapping[str, str], group: str) -> str:
    """
    How rows name the object in ``group``: the chosen file's name, or the class if the
    target was replaced by one of the user's own (``solver._target_=my.module.Class``).

    Parameters
    ----------
    config
        The run's configuration.
    choices
        Group -> name of the chosen file.
    group
        The group.
    """
    name = choices[group]
    target = config[group].get("_target_")
    # Read rather than composed, which takes Hydra a tenth of a second.
    path = CONF_DIR / group / f"{name}.yaml"
    chosen = OmegaConf.select(OmegaConf.load(path), "_target_") if path.exists() else target
    return name if target == chosen else str(target)
