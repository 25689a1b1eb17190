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
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from andes_opt.lengths import SHIPPED_TABLES
from experiments import ROOT
from experiments.runs.code_closure import code_of, leaves, modules_of, targets

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

#: Packages of which a run may load any module, since configuration names classes.
_DOMAIN = ("andes_opt", "solvers", "engine_adapter")
#: Tables of ours, which configuration names without a folder.
_TABLES = ROOT / "andes_opt" / "data"

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
    Return what identifies the run of a configuration.

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
    code, foreign = code_hash(command), _foreign_modules(config)
    if foreign:
        code = _digest([code, code_of(foreign)])
    return {"configuration": configuration_hash(command, config), "code": code}


def _foreign_modules(config: DictConfig) -> set[str]:
    """Return the modules of the user's own whose classes a configuration names."""
    options = OmegaConf.to_container(_own(config), resolve=False)
    named = targets(options)
    solvers = options.get("solvers") if isinstance(options, dict) else None
    if isinstance(solvers, list):
        named |= {str(name).rpartition(".")[0] for name in solvers if "." in str(name)}
    scheduler = options.get("scheduler_cls") if isinstance(options, dict) else None
    if scheduler is not None:
        named.add(str(scheduler).rpartition(".")[0])
    ours = {*_DOMAIN, "experiments"}
    return {name for name in named if name and name.partition(".")[0] not in ours}


def _own(config: DictConfig) -> DictConfig:
    """Return the command's own part of a configuration."""
    keys = [str(key) for key in config if key not in ("hydra", "sweep")]
    return OmegaConf.masked_copy(config, keys)


@contextmanager
def identified(run: dict[str, str]) -> Iterator[None]:
    """Let :func:`current` return ``run`` while this is open."""
    token = _current.set(run)
    try:
        yield
    finally:
        _current.reset(token)


def current() -> dict[str, str] | None:
    """Return what identifies the run that is being made; None outside of one."""
    return _current.get()


def configuration_hash(command: str, config: DictConfig) -> str:
    """
    Return a hash of the command and of every value that can change its results.

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
    values = [
        [path, value if (command, ".".join(path)) in _PLACES else _content(path, value)]
        for path, value in leaves(plain)
        if (command, ".".join(path)) not in _OUTPUTS
    ]
    return _digest([command, json.dumps(sorted(values, key=itemgetter(0)))])


@cache
def code_hash(command: str) -> str:
    """
    Return a hash of the code that a command can run, as this process found it at first.

    No machine is in it, unlike in :func:`code_closure.state_of`: a sweep may go on elsewhere.
    """
    return code_of({f"experiments.commands.{command}", *modules_of(*_DOMAIN)})[:_DIGITS]


def register_run_id() -> None:
    """
    Let configurations say ``${run_id:}``, the hash of the configuration itself.

    Sweeps name the folders of their runs by it: unlike a run's number, it stays the same
    when the sweep gets more values.
    """
    OmegaConf.register_new_resolver("run_id", _run_id, replace=True)


def _run_id(*, _root_: DictConfig) -> str:
    return configuration_hash(_root_.hydra.job.name, _root_)


def contents(options: Any) -> list[Any]:
    """
    Return the leaves of plain options, what lies there in place of each file or folder to read.

    Parameters
    ----------
    options
        Nested dicts and lists.
    """
    found = [[path, _content(path, value)] for path, value in leaves(options)]
    return sorted(found, key=itemgetter(0))


def _content(keys: Sequence[str], value: Any) -> Any:
    """Return the value, or the digest of what lies at the path that it is."""
    name = next((key for key in reversed(".".join(keys).split(".")) if not key.isdigit()), "")
    if name not in _INPUTS or not isinstance(value, str):
        return value
    shipped = name == "table" and value in SHIPPED_TABLES
    path = _TABLES / f"{value}.json" if shipped else Path(value).expanduser()
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
