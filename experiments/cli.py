"""The console script: ``andes-opt COMMAND ...``."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from experiments.commands.registry import COMMANDS
from experiments.configuration.errors import (
    RunRefused,
    RunsFailed,
    Terminated,
    is_user_error,
    not_understood,
    one_line,
)
from experiments.configuration.hydra_run import TRACEBACKS, run_by_hydra
from experiments.configuration.output import careful_output, visible
from experiments.configuration.threads import limit_threads

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run a command.

    Parameters
    ----------
    arguments
        Command and its arguments; None for those of the process.

    Returns
    -------
    int
        Exit status: 0, 1 for a failed run, 2 for a user error, 130 for an interrupt, 143 for
        SIGTERM. Text that can't be printed is lost without a word if the listener has gone; else
        that is a user error of a command that makes nothing but text, and a remark of others.
        With ``HYDRA_FULL_ERROR=1`` errors pass through with their traceback.
    """
    limit_threads()
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = visible(words[0]) if words else ""
    with careful_output(f"andes-opt {name}".rstrip()) as output, _in_order():
        status = _main(words)
    keeps_results = name in COMMANDS and COMMANDS[name].hydra
    return status or (2 if output.trouble is not None and not keeps_results else 0)


@contextmanager
def _in_order() -> Iterator[None]:
    """Let SIGTERM leave all blocks in order, as Ctrl-C does, so that they keep what they have."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(_number: int, _frame: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _main(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help(), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    name, rest = words[0], words[1:]
    if name == "--version":
        name = "versions"

    try:
        if name not in COMMANDS:
            raise not_understood("command", name, COMMANDS)
        _run(name, rest)
    except Terminated:
        print(f"andes-opt {name}: terminated.", file=sys.stderr)
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        print(f"andes-opt {name}: interrupted.", file=sys.stderr)
        return 130
    except RunsFailed as failed:
        print(f"andes-opt {name}: {failed}", file=sys.stderr)
        return 1
    except RunRefused as refused:
        return _report(name, refused.__cause__ or refused)
    except Exception as error:
        return _report(name, error)
    return 0


def _report(name: str, error: BaseException) -> int:
    """Print a user error in one line; raise anything else, a defect, with its traceback."""
    if os.environ.get(TRACEBACKS) == "1" or not is_user_error(error):
        raise error
    print(f"andes-opt {name}: {one_line(error)}", file=sys.stderr)
    return 2


def _run(name: str, arguments: list[str]) -> None:
    command = COMMANDS[name]
    if not command.hydra:
        importlib.import_module(command.module).main(arguments)
        return
    if any(word.startswith("experiment=") for word in arguments):
        from experiments.commands.study import main_of_alias

        if main_of_alias(name, arguments):
            return
    run_by_hydra(name, arguments, lambda: importlib.import_module(command.module).run)


def _help() -> str:
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: andes-opt COMMAND [key=value ...] [--multirun]",
            "",
            *lines,
            "",
            "andes-opt COMMAND --help shows a command's groups, defaults and examples.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
