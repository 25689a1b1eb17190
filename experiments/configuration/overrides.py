"""Overrides of the command line, checked before Hydra sees them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf

from experiments.configuration.compose import CONF_DIR, groups, is_open, load
from experiments.configuration.errors import UsageError, not_understood, one_line, unknown_key
from experiments.configuration.experiment import experiments
from experiments.configuration.launchers import check_launcher
from experiments.configuration.output import visible
from experiments.configuration.own_files import check_file, check_files
from experiments.configuration.values import advice, all_taken, quoted

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence

    from hydra.core.override_parser.types import Override


def check_overrides(command: str, arguments: Sequence[str]) -> None:
    """
    Check a command's arguments before Hydra sees them.

    Hydra reports a wrong name in several lines and checks no types; here each override
    is compared with the groups and the defaults of the command.

    Parameters
    ----------
    command
        Name of the command and of its configuration file.
    arguments
        What follows the command on the command line.

    Raises
    ------
    UsageError
        On the first argument that names no option, no choice, or a value of the wrong type.
    """
    options = hydra_options(arguments)
    if options.help or options.hydra_help or options.config_name or options.config_path:
        return

    parsed = []
    grammar = OverridesParser.create()
    for text in all_taken(options.overrides):
        try:
            parsed.append(grammar.parse_override(text))
        except HydraException as error:
            raise UsageError(f"{visible(text)!r} not understood: {advice(text)}") from error

    sweeps = options.multirun or _mode_is_multirun(parsed)
    _check(command, parsed, sweeps, config_folders(options))


def hydra_options(arguments: Sequence[str]) -> Namespace:
    """
    Return Hydra's own options among some arguments, and the ``overrides`` between them.

    Raises
    ------
    UsageError
        If there is no such option.
    """
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[assignment, method-assign]  # one line rather than the usage text
    return parser.parse_intermixed_args(arguments)


def for_hydra(arguments: Sequence[str]) -> list[str]:
    """
    Return the same arguments as Hydra takes them.

    Its parser wants no options among overrides, and its grammar quotes around some values.

    Raises
    ------
    UsageError
        If there is no such option.
    """
    overrides = hydra_options(arguments).overrides
    options = list(arguments)
    for word in overrides:
        options.remove(word)
    return [*options, *all_taken(overrides)]


def config_folders(options: Namespace) -> list[Path]:
    """Return the user's own folder of configuration files, if Hydra's options name one."""
    return [Path(options.config_dir)] if options.config_dir else []


def _refuse(message: str) -> None:
    raise UsageError(f"{message}.")


def _mode_is_multirun(overrides: Sequence[Override]) -> bool:
    return any(
        o.key_or_group in ("hydra.mode", "hydra.sweeper.params") or _names_experiment(o)
        for o in overrides
    )


def _names_experiment(override: Override) -> bool:
    # An experiment file may set hydra.mode to MULTIRUN by itself.
    return override.key_or_group == "experiment"


def _check(
    command: str, overrides: Sequence[Override], sweeps: bool, extra_dirs: Sequence[Path]
) -> None:
    conf_dirs = [CONF_DIR, *extra_dirs]
    for folder in extra_dirs:
        if not folder.is_dir():
            raise UsageError(f"--config-dir {folder} is no folder.")
    own = [path.stem for d in extra_dirs for path in (d / "hydra" / "launcher").glob("*.yaml")]
    for override in overrides:
        if override.key_or_group == "hydra/launcher":
            check_launcher(command, str(override.value()), own)

    known_groups = groups(conf_dirs)
    for override in overrides:
        if override.is_sweep_override() and not sweeps:
            raise UsageError(
                f"{override.input_line} gives several values: add --multirun to run each, "
                f"or write '{override.key_or_group}=[...]' for a list."
            )
        if override.key_or_group in known_groups and not override.is_delete():
            _check_choices(command, override, known_groups[override.key_or_group], extra_dirs)

    chosen = [_single(o) for o in overrides if o.key_or_group in known_groups]
    if extra_dirs:
        places = ",".join(quoted(f"file://{folder.resolve()}") for folder in extra_dirs)
        chosen.append(f"hydra.searchpath=[{places}]")
    try:
        defaults = load(command, chosen)
    except Exception as error:
        check_files(extra_dirs)  # a file that others build on
        if not isinstance(error, HydraException):
            raise
        raise UsageError(one_line(error)) from error
    for override in overrides:
        key = override.key_or_group
        if key in known_groups or key.startswith(("hydra.", "hydra/")):
            continue
        if override.is_add() or override.is_force_add():
            continue
        _check_key(defaults, key, str(override.input_line))
        if not override.is_delete():
            for value in _values(override):
                _check_type(defaults, key, value)


def _check_choices(
    command: str, override: Override, choices: Sequence[str], extra_dirs: Sequence[Path]
) -> None:
    """Refuse a name that no file has, and a file of the user's that can't be read."""
    for value in _values(override):
        for name in value if isinstance(value, list) else [value]:
            if name is None:
                continue
            if str(name) not in choices:
                raise not_understood(override.key_or_group, name, choices)
            if _names_experiment(override):
                _check_experiment(command, str(name))
            for folder in extra_dirs:
                path = folder / override.key_or_group / f"{name}.yaml"
                if path.exists():
                    check_file(path)


def _check_experiment(command: str, name: str) -> None:
    """Refuse an experiment that is another command's, as its first line says."""
    known = experiments().get(name)
    if known is not None and known.command not in ("", command):
        owner = f"study {name}" if known.is_study else known.command
        raise UsageError(f"experiment={name} is for andes-opt {owner}, not {command}.")


def _values(override: Override) -> list[Any]:
    if override.is_sweep_override():
        if not override.is_discrete_sweep():
            return []
        return list(override.sweep_iterator())
    return [override.value()]


def _single(override: Override) -> str:
    """Return the override with the first of its values, as text that Hydra understands."""
    if not override.is_sweep_override() or override.is_delete():
        return str(override.input_line)
    return f"{override.get_key_element()}={next(iter(override.sweep_string_iterator()))}"


def _check_key(defaults: DictConfig, key: str, line: str) -> None:
    node: Any = defaults
    path: list[str] = []
    for part in key.split("."):
        if not isinstance(node, DictConfig):
            return  # an element of a list, or below an interpolation: Hydra knows better
        names = [str(name) for name in node]
        if part not in names and is_open(defaults, path):
            raise UsageError(f"option {key} is not there yet: write +{line} to add it.")
        if part not in names:
            raise unknown_key(".".join([*path, part]), names, _options(defaults))
        path.append(part)
        if OmegaConf.is_interpolation(node, part):
            return
        node = node.get(part)


def _options(node: Any, prefix: str = "") -> list[str]:
    """Return the dotted keys of all options below a node, those nearest to it first."""
    if not isinstance(node, DictConfig):
        return []
    names = [str(name) for name in node]
    found = [prefix + name for name in names]
    for name in names:
        if not OmegaConf.is_interpolation(node, name) and not OmegaConf.is_missing(node, name):
            found += _options(node.get(name), f"{prefix}{name}.")
    return sorted(found, key=lambda key: key.count("."))


def _check_type(defaults: DictConfig, key: str, value: Any) -> None:
    """Check that numbers stay numbers, switches switches and lists lists."""
    if isinstance(value, str) and "${" in value:
        return
    default = OmegaConf.select(defaults, key, default=None)
    if isinstance(default, bool):
        valid, need = isinstance(value, bool), "true or false"
    elif isinstance(default, int):
        valid, need = isinstance(value, int) and not isinstance(value, bool), "an integer"
    elif isinstance(default, float):
        valid = isinstance(value, int | float) and not isinstance(value, bool)
        need = "a number"
    elif isinstance(default, ListConfig):
        valid, need = isinstance(value, list), f"a list, '{key}=[{value}]' say"
    else:
        return
    if not valid and value is not None:
        raise UsageError(f"{key}={value} not understood: need {need}.")
