"""
What identifies a run: a hash of its configuration and a hash of the code that runs it.

Output folders and ``sweep.*`` are no part of it, since they don't change results; but where a
capture puts its instances is. A file or folder that a run reads counts by its content, so that it
may move, but not change; so does a module of the user's that an option names.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from andes_opt.versions import versions
from experiments import ROOT
from experiments.runs.code_closure import state_of, targets

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_PACKAGES = ("andes_opt", "solvers", "engine_adapter", "experiments")
#: Code and tables; configuration counts by what a run takes from it.
_SUFFIXES = (".py", ".json")
#: Modules that read results and make none.
_READERS = "report"

#: Options that name what a run reads.
_INPUTS = ("path", "corpus", "table")
#: Options that say where results go, by command.
_OUTPUTS = {("study", "portfolio.docs")}
#: Options that say where a run's results have to be for it to be complete.
_PLACES = {("capture", "corpus")}
_DIGITS = 16

_current: ContextVar[dict[str, str] | None] = ContextVar("run", default=None)


def identity(command: str, config: DictConfig) -> dict[str, str]:
    """
    What identifies the run of a configuration.

    Parameters
    ----------
    command
        ``simulate``, ``quality`` ...
    config
        Its configuration; Hydra's own node may be in it.

    Returns
    -------
    dict[str, str]
        ``configuration`` and ``code``: hashes of 16 hexadecimal digits.
    """
    code, foreign = code_hash(), _foreign_modules(config)
    if foreign:
        code = _digest([code, state_of(foreign)])
    return {"configuration": configuration_hash(command, config), "code": code}


def _foreign_modules(config: DictConfig) -> set[str]:
    """Modules of the user's whose classes a configuration names."""
    options = OmegaConf.to_container(_own(config), resolve=False)
    named = targets(options)
    solvers = options.get("solvers") if isinstance(options, dict) else None
    if isinstance(solvers, list):
        named |= {str(name).rpartition(".")[0] for name in solvers if "." in str(name)}
    return {name for name in named if name and name.partition(".")[0] not in _PACKAGES}


def _own(config: DictConfig) -> DictConfig:
    """The command's own part of a configuration."""
    keys = [str(key) for key in config if key not in ("hydra", "sweep")]
    return OmegaConf.masked_copy(config, keys)


@contextmanager
def identified(run: dict[str, str]) -> Iterator[None]:
    """While this is open, :func:`current` gives ``run``."""
    token = _current.set(run)
    try:
        yield
    finally:
        _current.reset(token)


def current() -> dict[str, str] | None:
    """What identifies the run that is being made; None if nobody said."""
    return _current.get()


def configuration_hash(command: str, config: DictConfig) -> str:
    """
    A hash of the command and of every value that can change its results.

    Parameters
    ----------
    command, config
        As for :func:`identity`.
    """
    options = _own(config)
    try:
        plain = OmegaConf.to_container(options, resolve=True)
    except OmegaConfBaseException:
        # The run itself will say what can't be resolved.
        plain = OmegaConf.to_container(options, resolve=False)
    values = {
        key: value if (command, key) in _PLACES else _content(key, value)
        for key, value in _leaves(plain)
        if (command, key) not in _OUTPUTS
    }
    return _digest([command, json.dumps(values, sort_keys=True)])


@cache
def code_hash() -> str:
    """A hash of the packages' code and of the versions of everything that they stand on."""
    parts = [json.dumps(versions(), sort_keys=True)]
    for package in _PACKAGES:
        for path in sorted((ROOT / package).rglob("*")):
            if path.suffix in _SUFFIXES and not path.name.startswith(_READERS):
                parts += [path.relative_to(ROOT).as_posix(), _file_digest(path)]
    return _digest(parts)


def register_run_id() -> None:
    """
    Let configurations say ``${run_id:}``, the hash of the configuration itself.

    Sweeps name the folders of their runs by it: unlike a run's number, it stays the same
    when the sweep gets more values.
    """
    OmegaConf.register_new_resolver("run_id", _run_id, replace=True)


def _run_id(*, _root_: DictConfig) -> str:
    return configuration_hash(_root_.hydra.job.name, _root_)


def contents(options: Any, key: str = "") -> Any:
    """
    Plain options with the digest of what lies there in place of each file or folder to read.

    Parameters
    ----------
    options
        Nested dicts and lists.
    key
        Where they stand, dotted.
    """
    if isinstance(options, dict):
        return {name: contents(value, f"{key}.{name}") for name, value in options.items()}
    if isinstance(options, list):
        return [contents(value, key) for value in options]
    return _content(key, options)


def _leaves(node: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Every value below a node with its dotted key; lists and empty nodes are values."""
    if isinstance(node, dict) and node:
        for key, child in node.items():
            yield from _leaves(child, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def _content(key: str, value: Any) -> Any:
    """The value, or the digest of what lies at the path that it is."""
    name = key.rpartition(".")[2]
    if name not in _INPUTS or not isinstance(value, str):
        return value
    path = Path(value)
    if name == "table" and not path.suffix:
        return value  # one of ours, by its name
    if path.is_file():
        return _file_digest(path)
    if path.is_dir():
        files = (file for file in sorted(path.rglob("*")) if file.is_file())
        return [[file.relative_to(path).as_posix(), _file_digest(file)] for file in files]
    return value


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:_DIGITS]
