"""Overrides of the command line, checked before Hydra sees them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf

from experiments.configuration.compose import CONF_DIR, command_groups, groups, is_open, load
from experiments.configuration.errors import UsageError, not_understood, one_line, unknown_key
from experiments.configuration.experiment import experiments
from experiments.configuration.launchers import check_launcher
from experiments.configuration.output import visible
from experiments.configuration.own_files import check_file, check_files
from experiments.configuration.values import advice, all_taken, quoted

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterable, Mapping, Sequence

    from hydra.core.override_parser.types import Override


#: Groups that no command's configuration begins with, and that ``+`` adds where solvers are.
OPTIONAL_GROUPS = ("isolation",)


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


def with_words(option: str, arguments: Sequence[str]) -> list[str]:
    """
    Return the same arguments, the words that are no ``KEY=VALUE`` as the value of an option.

    So is a word that is the name of a file, whatever is in it.

    Parameters
    ----------
    option
        Takes a list.
    arguments
        What follows the command on the command line.

    Raises
    ------
    UsageError
        If there is no such option among Hydra's own.
    """
    overrides = hydra_options(arguments).overrides
    words = [word for word in overrides if "=" not in word or Path(word).expanduser().is_file()]
    rest = list(arguments)
    for word in words:
        rest.remove(word)
    return [*rest, f"{option}=[{','.join(quoted(word) for word in words)}]"] if words else rest


def config_folders(options: Namespace) -> list[Path]:
    """Return the user's own folder of configuration files, if Hydra's options name one."""
    return [Path(options.config_dir)] if options.config_dir else []


def _refuse(message: str) -> None:
    found = re.search(r"unrecognized arguments: .*?--?([\w./@]+)(=\S*)?", message)
    hint = f"; write {found[1]}{found[2]}" if found and found[2] else ""
    raise UsageError(f"{message}{hint}.")


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
    search = [f"hydra.searchpath=[{','.join(_place(d) for d in extra_dirs)}]"] if extra_dirs else []
    for override in overrides:
        _check_group(command, override, overrides, search)
        if override.is_sweep_override() and not sweeps:
            raise UsageError(
                f"{override.input_line} gives several values: add --multirun to run each, "
                f"or write '{override.key_or_group}=[...]' for a list."
            )
        if override.key_or_group in known_groups and not override.is_delete():
            _check_choices(command, override, known_groups[override.key_or_group], extra_dirs)

    chosen = [_single(o) for o in overrides if o.key_or_group in known_groups]
    try:
        defaults = load(command, [*chosen, *search])
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


def _place(folder: Path) -> str:
    return quoted(f"file://{folder.resolve()}")


def _check_group(
    command: str, override: Override, overrides: Sequence[Override], search: Sequence[str]
) -> None:
    """Refuse a group of ours that the command's configuration has no place for."""
    group = override.key_or_group
    if group not in groups() or group == "experiment" or override.is_delete():
        return
    experiment = [_single(other) for other in overrides if _names_experiment(other)]
    taken = command_groups(command, [*experiment, *search])
    optional = OPTIONAL_GROUPS if "solver" in taken else ()
    if group in optional and not override.is_add():
        raise UsageError(f"{override.input_line} not understood: write +{override.input_line}.")
    if group not in (*taken, *optional):
        valid = ", ".join([*taken, *(f"+{name}" for name in optional)])
        raise UsageError(f"{command} has no group {group}: need one of {valid}.")


def help_template(command: str, *, study: bool) -> str:
    """Return what Hydra fills in for ``--help``, with the groups that the command takes."""
    known, taken = groups(), command_groups(command)
    ours = [
        name
        for name, entry in experiments().items()
        if entry.command == command and not entry.is_study and not study
    ]
    choices = {group: ours if group == "experiment" else known[group] for group in taken}
    if "solver" in taken:
        choices |= {f"+{group}": known[group] for group in OPTIONAL_GROUPS}
    lines = [f"{group}: {', '.join(names)}" for group, names in choices.items() if names]
    raw: Any = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "hydra" / "default.yaml"))
    template = str(raw["help"]["template"])
    return template.replace("$APP_CONFIG_GROUPS", "\n".join([*lines, ""]))


def beside_overrides(arguments: Sequence[str], more: Sequence[str]) -> list[str]:
    """Return the arguments with more overrides where Hydra takes them: not around an option."""
    given = hydra_options(arguments).overrides
    first = list(arguments).index(given[0]) if given else len(arguments)
    return [*arguments[:first], *more, *arguments[first:]]


def key_of(word: str) -> str:
    """Return the group or the first part of the option that an override is about."""
    return word.lstrip("+~").partition("=")[0].partition(".")[0].partition("/")[0]


def refuse_unread(words: Iterable[str], unread: Mapping[str, str]) -> None:
    """
    Refuse options that a command would not read, given what else it was told.

    Parameters
    ----------
    words
        Overrides of the command line.
    unread
        Option or group -> why it has no effect, and what to write in its place.

    Raises
    ------
    UsageError
        On the first of them.
    """
    for word in words:
        key = word.lstrip("+~").partition("=")[0]
        for prefix, why in unread.items():
            if key == prefix or key.startswith(f"{prefix}."):
                raise UsageError(f"{word} has no effect: {why}.")


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
        raise UsageError(f"{key}={value} not understood: need {need}{_unit(key, need)}.")


#: Ends of options' names -> their units.
_UNITS = {"_s": "seconds", "_ms": "milliseconds", "tokens": "tokens", "_mb": "MB"}
_UNITS |= {"rate": "requests/s", "rates": "requests/s", "tds": "tokens/s"}


def _unit(key: str, need: str) -> str:
    """Return the unit of a number, which the value must not have; empty if its name says none."""
    if need not in ("a number", "an integer"):
        return ""
    # The longest end counts: x_tokens_per_s is no time.
    name = key.rpartition(".")[2]
    if "_per_" in name:
        over, _, under = name.rpartition("_per_")
        return f", {over.rpartition('_')[2]}/{under}, without its unit"
    unit = next((unit for end, unit in _UNITS.items() if name.endswith(end)), "")
    return f" of {unit}, without the unit" if unit else ""
