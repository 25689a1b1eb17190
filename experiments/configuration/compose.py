"""The configuration files of ``conf/``: where they are, what they offer, how to load one."""

from __future__ import annotations

import re
from contextlib import suppress
from inspect import Parameter, signature
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from experiments import ROOT
from experiments.configuration.errors import UsageError, not_understood, one_line
from experiments.configuration.values import all_taken

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from hydra.core.override_parser.types import Override

#: Next to the installed package, so that a folder ``conf/`` of the user's can't hide it.
CONF_DIR = ROOT / "conf"

#: Groups that configure Hydra itself rather than a run.
_INTERNAL_GROUPS = ("hydra",)


def groups(conf_dirs: Sequence[Path] = (CONF_DIR,)) -> dict[str, list[str]]:
    """
    Return the configuration groups and their choices.

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
    """Return a YAML file's first comment, Hydra's ``@package`` aside; empty if it has none."""
    # A file of the user's that is no UTF-8 is refused where it is used, not where it is listed.
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            if not line.startswith("#"):
                break
            if not line.startswith("# @"):
                return line.lstrip("# ").strip()
    return ""


def load(command: str, overrides: Iterable[str] = ()) -> DictConfig:
    """
    Compose the configuration of a command, for use from Python and notebooks.

    Parameters
    ----------
    command
        ``simulate``, ``quality`` ...
    overrides
        As on the command line, ``policy=fcfs`` say.
    """
    return _composed(command, understood(command, all_taken(overrides)))


def _composed(command: str, overrides: list[str]) -> DictConfig:
    if GlobalHydra.instance().is_initialized():
        # Inside a run: respects --config-dir.
        return compose(config_name=command, overrides=overrides)
    with initialize_config_dir(config_dir=str(CONF_DIR), version_base="1.3"):
        return compose(config_name=command, overrides=overrides)


def understood(command: str, overrides: Sequence[str]) -> list[str]:
    """
    Return overrides as Hydra takes them: see :func:`own_classes` and :func:`open_nodes`.

    Parameters
    ----------
    command
        The command.
    overrides
        As on the command line; what is no override is passed on.
    """
    return _added_to(open_nodes(command), own_classes(command, overrides))


def open_nodes(command: str) -> list[str]:
    """
    Return the nodes of a command's configuration that take options of any name.

    Its file has them empty: what they are about has options of its own, as vLLM has.
    """
    path = CONF_DIR / f"{command}.yaml"
    if not path.is_file():
        return []
    config: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    return [name for name, node in config.items() if node == {}]


def _added_to(nodes: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Return overrides with Hydra's ``++`` before the options of open nodes."""
    places = tuple(f"{name}." for name in nodes)
    return [f"++{text}" if places and text.startswith(places) else text for text in overrides]


def own_classes(command: str, overrides: Sequence[str]) -> list[str]:
    """
    Return overrides under which a class of the user's own gets the options that it takes.

    ``solver._target_=my.module.Class`` replaces the class of the chosen file, but leaves the
    file's options, which the constructor of the new class need not know. Those that it does
    not know are removed, and options that only it knows may be set without Hydra's ``+``.

    Parameters
    ----------
    command
        The command.
    overrides
        As on the command line; what is no override is passed on.

    Returns
    -------
    list[str]
        The same overrides, if none of them replaces a class.
    """
    if not any("._target_=" in text for text in overrides):
        return list(overrides)
    parsed = _parsed(overrides)
    targets = {
        key.removesuffix("._target_"): str(override.value())
        for key, override in parsed.items()
        if key.endswith("._target_") and not override.is_sweep_override()
    }
    choices = [
        str(override.input_line)
        for key, override in parsed.items()
        if "." not in key and not override.is_sweep_override()
    ]
    try:
        config = _composed(command, choices)
    except HydraException:
        return list(overrides)  # composing them all will say what is wrong

    fitted = list(overrides)
    for group, target in targets.items():
        taken = _parameters(target)
        options = config.get(group)
        if taken is None or not isinstance(options, DictConfig):
            continue
        for key, override in parsed.items():
            name = key.removeprefix(f"{group}.")
            unknown = name != key and name in taken and name not in options
            if unknown and override.type is OverrideType.CHANGE:
                line = str(override.input_line)
                fitted[fitted.index(line)] = f"+{line}"
        for name in map(str, options):
            key = f"{group}.{name}"
            if name.startswith("_") or name in taken or key in parsed:
                continue
            if OmegaConf.select(config, key) is None:
                fitted.append(f"{key}=0")  # Hydra takes null for absent, and deletes no such key
            fitted.append(f"~{key}")
    return fitted


def _parsed(overrides: Iterable[str]) -> dict[str, Override]:
    """Return the overrides among some arguments, by key."""
    grammar = OverridesParser.create()
    parsed = {}
    for text in overrides:
        with suppress(HydraException):
            override = grammar.parse_override(text)
            parsed[override.key_or_group] = override
    return parsed


def is_open(config: DictConfig, path: Sequence[str]) -> bool:
    """
    Return whether a node takes any field: its constructor wants a mapping there.

    Parameters
    ----------
    config
        A configuration.
    path
        Where the node is.
    """
    if not path:
        return False
    parent = OmegaConf.select(config, ".".join(path[:-1])) if path[:-1] else config
    target = parent.get("_target_") if isinstance(parent, DictConfig) else None
    try:
        parameter = signature(resolve_name(str(target))).parameters[path[-1]]
    except Exception:  # as above: no such class or parameter
        return False
    return str(parameter.annotation).startswith(("Mapping[", "dict["))


def _parameters(target: str) -> set[str] | None:
    """Return the names that a constructor takes; None if there is no such class, or any will do."""
    try:
        parameters = signature(resolve_name(target)).parameters.values()
    except Exception:  # whatever importing it raises, building it will raise again and tell
        return None
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name for parameter in parameters}


def load_choice(group: str, name: str) -> DictConfig:
    """
    Load one file of a group, ``load_choice("solver", "greedy")``.

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
        if isinstance(node, DictConfig) and "_target_" not in node:
            raise UsageError(f"{where}its file has no _target_, the class that it configures.")
        return instantiate(node)
    except InstantiationException as error:
        raise UsageError(where + _reason(error)) from error
    except MissingMandatoryValue as error:
        raise UsageError(one_line(error)) from error
    except (OmegaConfBaseException, ValueError, FileNotFoundError) as error:
        raise UsageError(where + str(error).splitlines()[0]) from error


#: What Python says of a constructor's arguments, and what their configuration's author reads.
_CALLS = {
    r"^(\w+)\.__init__\(\) missing \d+ required [\w-]+ arguments?: (.+)$": r"\1 lacks \2.",
    r"^(\w+)\.__init__\(\) got an unexpected keyword argument ('\w+').*$": r"\1 has no \2.",
}


def _reason(error: InstantiationException) -> str:
    """Return the sentence of the error that an instantiation failed with, Hydra's own aside."""
    unknown = re.match(r"Error locating target '([^']+)'", str(error))
    cause: BaseException = error
    # Without such a class the innermost error says why; else what the constructor raised.
    while cause.__cause__ is not None and (unknown or isinstance(cause, InstantiationException)):
        cause = cause.__cause__
    lines = str(cause).splitlines()
    sentence = lines[0] if lines else type(cause).__name__
    for python, ours in _CALLS.items():
        sentence = re.sub(python, ours, sentence)
    return f"{unknown[1]} not understood: {sentence}." if unknown else sentence


def label(config: DictConfig, choices: Mapping[str, str], group: str) -> str:
    """
    Return how rows name the object in ``group``: the chosen file's name, or the class if
    the target was replaced by one of the user's own (``solver._target_=my.module.Class``).

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
