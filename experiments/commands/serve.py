"""``andes-opt serve``: vLLM's OpenAI server with our scheduler in its engine."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from experiments.configuration.errors import UsageError
from experiments.configuration.threads import users_environment
from experiments.live.process import exit_on_signals, process_group
from experiments.live.vllm_command import adapter_settings, require_vllm, server_command, take_flag

if TYPE_CHECKING:
    from collections.abc import Sequence


_GROUPS = ("policy", "solver", "objective", "live")
_OVERRIDE = re.compile(r"(?:\+{1,2}|~)?([A-Za-z_]\w*)(?:[./@][\w./@]*)?=")

_HELP = """\
usage: andes-opt serve MODEL [policy=NAME] [solver=NAME] [objective=NAME] [live=NAME]
                       [GROUP.OPTION=VALUE ...] [vLLM's flags ...]

Start vLLM's OpenAI server for a model with our scheduler in it, until Ctrl-C. What holds an =
and names one of the groups is ours (andes-opt list policies, solvers, objectives, live);
everything else, and all that follows a --, goes to `vllm serve` as it is: --api-server-count,
--headless, --data-parallel-size and --shutdown-timeout, too. A second Ctrl-C ends it at once.

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
    model, flags = take_flag(theirs, "--model")
    if model is None:
        raise UsageError("name a model: andes-opt serve MODEL [policy=NAME] [vLLM's flags].")
    return Arguments(model, ours, flags)


def main(arguments: Sequence[str]) -> None:
    """
    Serve until the server ends, or this process is interrupted or terminated.

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
    require_vllm()
    # vLLM has a limit of its own, --shutdown-timeout.
    with (
        exit_on_signals(),
        process_group(command, grace_s=None, env=users_environment()) as server,
    ):
        status = server.wait()
    if status:
        raise SystemExit(status if status > 0 else 128 - status)
