"""A model and how vLLM serves it: ``conf/live_engine/``, checked, started, one at a time."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from experiments.configuration.compose import load_choice
from experiments.configuration.errors import UsageError, require
from experiments.live.server import Server, address, free_port, running
from experiments.live.vllm_command import require_vllm, server_command, server_flags

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from omegaconf import DictConfig

    from andes_opt.engine import EngineProfile
    from experiments.live.models import Model

_GROUP = "live_engine"
_CLASS = "experiments.live.engine.LiveEngine"
#: Key -> what it needs.
_NEEDED = {
    "_target_": _CLASS,
    "name": "what results call the engine",
    "model": "a mapping whose _target_ is a class of experiments.live.models",
    "flags": "a mapping of vLLM's flags, {} for none",
    "profile": "a mapping whose _target_ is andes_opt.engine.EngineProfile",
    "saturated_tokens_per_s": "null as long as it is unknown",
}
_MAPPINGS = ("model", "flags", "profile")


@dataclass(frozen=True, slots=True)
class LiveEngine:
    """
    A model and how vLLM serves it.

    Parameters
    ----------
    name
        As in ``conf/live_engine/``.
    model
        Makes the model's folder.
    profile
        The same engine as the simulator sees it; its latency is where the adapter starts.
    flags
        vLLM's flags without their dashes; true for a flag without a value.
    environment
        Variables of the server's process.
    saturated_tokens_per_s
        Tokens/s that stock vLLM delivers when requests never run out, or None: what a load
        is a multiple of.
    server
        A program that is started with the same flags in place of vLLM's server, and with the
        engine's name for a model.
    models
        Folder for models that are made here.
    start_s
        How long the server may take until it answers, > 0.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    name: str
    model: Model
    profile: EngineProfile
    flags: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    saturated_tokens_per_s: float | None = None
    server: Sequence[str] = ()
    models: str = "outputs/models"
    start_s: float = 300.0

    def __post_init__(self) -> None:
        rate = self.saturated_tokens_per_s
        if rate is not None and not rate > 0:
            raise ValueError(f"saturated_tokens_per_s = {rate} not understood: need more than 0.")
        if not self.start_s > 0:
            raise ValueError(f"start_s = {self.start_s} not understood: need more than 0.")

    def command(self, settings: dict[str, Any] | None, port: int) -> list[str]:
        """
        The command that starts the server.

        Parameters
        ----------
        settings
            The adapter's; None for vLLM's own scheduler.
        port
            Where it listens, on 127.0.0.1.

        Raises
        ------
        UsageError
            If vLLM is needed and not installed, or the flags choose a scheduler.
        """
        flags = address(port, self.name)
        for name, value in self.flags.items():
            if value is False or value is None:
                continue
            flags.append(f"--{name}")
            if value is not True:
                flags.append(str(value))
        if self.server:
            return [*self.server, "--model", self.name, *server_flags(settings, flags)]
        require_vllm()
        return server_command(self.model.folder(Path(self.models)), settings, flags)


@contextmanager
def serving(engine: LiveEngine, settings: dict[str, Any] | None, folder: Path) -> Iterator[Server]:
    """
    An engine that serves while the block runs; nothing of it is left afterwards.

    Parameters
    ----------
    engine
        The engine.
    settings
        The adapter's, without ``report_path``; None for vLLM's own scheduler.
    folder
        Gets ``server.log`` and ``adapter.json``.

    Raises
    ------
    UsageError
        If vLLM is not installed, or another engine of this user's runs already.
    EngineFailed
        If the server ends, or does not answer in time.
    """
    report = None
    if settings is not None:
        report = (folder / "adapter.json").resolve()
        report.unlink(missing_ok=True)
        settings = {**settings, "report_path": str(report)}
    with only_engine():
        port = free_port()
        with running(
            engine.command(settings, port),
            engine.name,
            port,
            log=folder / "server.log",
            start_s=engine.start_s,
            environment=engine.environment,
            report=report,
        ) as server:
            yield server


@contextmanager
def only_engine() -> Iterator[None]:
    """
    Hold the lock that one live run of a user has at a time: two engines would time each other.

    Raises
    ------
    UsageError
        If another run holds it, or ``filelock`` is not installed.
    """
    require("filelock", "live")
    from filelock import FileLock, Timeout

    path = Path(tempfile.gettempdir()) / f"andes-opt-live-{os.getuid()}.lock"
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise UsageError(
            "another live run is under way: engines that share a machine time each other."
        ) from error
    try:
        yield
    finally:
        lock.release()


def check_engine(name: str, node: DictConfig | None = None) -> None:
    """
    Refuse an engine's file, one of the user's own say, that lacks a key which every run reads.

    Runs read ``live_engine.name`` and others before the engine is built, so that no constructor
    would get to say what is missing. An engine of another class has other keys, and is not looked
    at.

    Parameters
    ----------
    name
        Of the file, without ``.yaml``.
    node
        What came of it in a run's configuration, where overrides may have added keys; None for
        the file as it is.

    Raises
    ------
    UsageError
        If there is no such file, or something is missing in it.
    """
    if node is None:
        node = load_choice(_GROUP, name)
    plain: Any = OmegaConf.to_container(node, resolve=False)
    if plain.get("_target_", _CLASS) != _CLASS:
        return
    lacking = [f"{key} ({need})" for key, need in _NEEDED.items() if not _has(plain, key)]
    if lacking:
        raise UsageError(
            f"{_GROUP}/{name}.yaml lacks {', '.join(lacking)}: start from a copy of "
            f"conf/{_GROUP}/opt_tiny.yaml, which has all that an engine needs."
        )


def check_chosen(config: DictConfig) -> None:
    """
    Check the engine of a run's configuration.

    Parameters
    ----------
    config
        Of ``andes-opt live``, within its run.

    Raises
    ------
    UsageError
        As :func:`check_engine` does.
    """
    check_engine(str(HydraConfig.get().runtime.choices[_GROUP]), config.live_engine)


def _has(plain: dict[str, Any], key: str) -> bool:
    value = plain.get(key)
    if value == "???":
        return False
    if isinstance(value, str) and value.startswith("${"):
        return True  # an interpolation, which is resolved later
    if key in _MAPPINGS:
        return isinstance(value, dict) and (key == "flags" or "_target_" in value)
    return key in plain if key == "saturated_tokens_per_s" else value is not None
