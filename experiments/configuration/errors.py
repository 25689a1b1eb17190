"""User errors: found before a run starts, told in one sentence."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig


class UsageError(Exception):
    """Something the user can mend: a wrong name, a bad value, a missing file."""


class RunRefused(BaseException):
    """
    Carries a user error (its ``__cause__``) out of a Hydra job.

    Hydra prints a line of its own about every Exception that leaves a job; this is none.
    """


class RunsFailed(BaseException):
    """
    Some runs of a sweep failed, and the others are made.

    No Exception, since Hydra turns one that a callback raises into a warning.
    """


def is_user_error(error: BaseException) -> bool:
    """
    Whether an error says what the user can mend.

    Constructors and readers state bad values as ValueError and files as OSError, each in
    one sentence. An invalid plan is a ValueError too, but a solver's fault. A policy that
    serves nobody is one of the user's own.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from andes_opt.plan import InvalidPlan
    from andes_opt.snapshot import Starved

    kinds = (UsageError, HydraException, OmegaConfBaseException, ValueError, OSError, Starved)
    return isinstance(error, kinds) and not isinstance(error, InvalidPlan)


def not_understood(key: str, value: object, choices: Iterable[str]) -> UsageError:
    """A :class:`UsageError` with the offending value, the valid ones and the nearest."""
    choices = list(choices)
    near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else "."
    return UsageError(f"{key}={value} not understood: need one of {', '.join(choices)}{hint}")


def not_installed(what: str, *extras: str) -> UsageError:
    """A :class:`UsageError` for a missing package, with the extras that bring it."""
    choices = " or ".join(f"pip install -e '.[{extra}]'" for extra in extras)
    return UsageError(f"{what} is not installed: {choices} in the folder of andes-opt.")


def unknown_key(key: str, choices: Iterable[str], elsewhere: Iterable[str] = ()) -> UsageError:
    """
    A :class:`UsageError` for an option that does not exist.

    Parameters
    ----------
    key
        The option.
    choices
        Options of the same node.
    elsewhere
        Options of other nodes; one of the same name is likely to be meant.
    """
    choices = sorted(choices)
    parent, _, last = key.rpartition(".")
    prefix = f"{parent}." if parent else ""
    near = [other for other in elsewhere if other.rpartition(".")[2] == last]
    near += [prefix + name for name in difflib.get_close_matches(last, choices, n=1, cutoff=0.5)]
    hint = f"; did you mean {near[0]}?" if near else "."
    valid = ", ".join(prefix + choice for choice in choices) or "nothing"
    return UsageError(f"option {key} not understood: need one of {valid}{hint}")


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
    # Hydra's modules take a while to import, and `andes-opt list` needs none of them.
    from hydra._internal.utils import get_args_parser
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[assignment, method-assign]  # one line rather than the usage text
    options = parser.parse_args(list(arguments))
    if options.help or options.hydra_help or options.config_name or options.config_path:
        return

    parsed = []
    grammar = OverridesParser.create()
    for text in options.overrides:
        try:
            parsed.append(grammar.parse_override(text))
        except HydraException as error:
            raise UsageError(
                f"{text!r} not understood: need key=value, or 'key=[a,b]' for a list."
            ) from error

    sweeps = options.multirun or _mode_is_multirun(parsed)
    conf_dirs = [Path(options.config_dir)] if options.config_dir else []
    _check(command, parsed, sweeps, conf_dirs)


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
    from experiments.configuration.compose import CONF_DIR, groups
    from experiments.configuration.launchers import check_launcher

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
            choices = known_groups[override.key_or_group]
            for value in _values(override):
                for name in value if isinstance(value, list) else [value]:
                    if name is not None and str(name) not in choices:
                        raise not_understood(override.key_or_group, name, choices)
                    if _names_experiment(override) and name is not None:
                        _check_experiment(command, str(name))

    chosen = [_single(o) for o in overrides if o.key_or_group in known_groups]
    if extra_dirs:
        places = ",".join(_quoted(f"file://{folder.resolve()}") for folder in extra_dirs)
        chosen.append(f"hydra.searchpath=[{places}]")
    defaults = _compose(command, chosen)
    for override in overrides:
        key = override.key_or_group
        if key in known_groups or key.startswith(("hydra.", "hydra/")) or override.is_add():
            continue
        _check_key(defaults, key)
        if not override.is_delete():
            for value in _values(override):
                _check_type(defaults, key, value)


def _quoted(text: str) -> str:
    """Text as Hydra's grammar takes it, whatever is in it."""
    escaped = text.replace("\\'", "\\\\'").replace("'", "\\'")
    return f"'{escaped}'"


def _check_experiment(command: str, name: str) -> None:
    """Refuse an experiment that is another command's, as its first line says."""
    from experiments.configuration.compose import CONF_DIR, first_comment

    path = CONF_DIR / "experiment" / f"{name}.yaml"
    owner, colon, _ = first_comment(path).partition(":") if path.exists() else ("", "", "")
    if colon and owner != command:
        raise UsageError(f"experiment={name} is for andes-opt {owner}, not {command}.")


def _compose(command: str, overrides: Sequence[str]) -> DictConfig:
    """The command's configuration under the chosen group files."""
    from hydra.errors import HydraException

    from experiments.configuration.compose import load

    try:
        return load(command, overrides)
    except HydraException as error:
        raise UsageError(one_line(error)) from error


def _values(override: Override) -> list[Any]:
    if override.is_sweep_override():
        if not override.is_discrete_sweep():
            return []
        return list(override.sweep_iterator())
    return [override.value()]


def _single(override: Override) -> str:
    """The override with the first of its values, as text that Hydra understands."""
    if not override.is_sweep_override() or override.is_delete():
        return str(override.input_line)
    return f"{override.get_key_element()}={next(iter(override.sweep_string_iterator()))}"


def _check_key(defaults: DictConfig, key: str) -> None:
    from omegaconf import DictConfig, OmegaConf

    node: Any = defaults
    path: list[str] = []
    for part in key.split("."):
        if not isinstance(node, DictConfig):
            return  # an element of a list, or below an interpolation: Hydra knows better
        names = [str(name) for name in node]
        if part not in names:
            raise unknown_key(".".join([*path, part]), names, _options(defaults))
        path.append(part)
        if OmegaConf.is_interpolation(node, part):
            return
        node = node.get(part)


def _options(node: Any, prefix: str = "") -> list[str]:
    """Dotted keys of all options below a node, those nearest to it first."""
    from omegaconf import DictConfig, OmegaConf

    if not isinstance(node, DictConfig):
        return []
    names = [str(name) for name in node]
    found = [prefix + name for name in names]
    for name in names:
        if not OmegaConf.is_interpolation(node, name) and not OmegaConf.is_missing(node, name):
            found += _options(node.get(name), f"{prefix}{name}.")
    return sorted(found, key=lambda key: key.count("."))


def _check_type(defaults: DictConfig, key: str, value: Any) -> None:
    """Numbers stay numbers, switches switches and lists lists; None and text say nothing."""
    from omegaconf import ListConfig, OmegaConf

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


def one_line(error: BaseException) -> str:
    """An error's message in one line."""
    from omegaconf.errors import MissingMandatoryValue

    if isinstance(error, MissingMandatoryValue) and error.full_key:
        key = error.full_key
        return f"{key} is missing: this choice needs {key}=VALUE."
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines) if lines else type(error).__name__
