"""
Number blocks in Markdown files: each is the output of the command written above it.

    <!-- made by: andes-opt list solvers -->
    ...
    <!-- end -->

``python -m experiments.documents.blocks README.md`` runs the commands and replaces what lies
between. A block that is fenced stays fenced. With ``--only excerpt`` just the blocks whose command
says ``excerpt`` are made again.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.runs.files import write_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_BLOCK = re.compile(
    r"(?P<head><!-- made by: (?P<command>[^\n]+?) -->\n)(?P<body>.*?)(?P<tail><!-- end -->)",
    re.DOTALL,
)
_FENCE = "```"


def commands(text: str) -> list[str]:
    """Return the commands of all blocks of a Markdown text."""
    return [match["command"] for match in _BLOCK.finditer(text)]


def refresh(text: str, run: Callable[[str], str], only: str = "") -> str:
    """
    Return a Markdown text with every block made again.

    Parameters
    ----------
    text
        The text.
    run
        Command -> its output.
    only
        Blocks whose command does not have these words stay as they are.
    """

    def replaced(match: re.Match[str]) -> str:
        if only not in match["command"]:
            return match[0]
        output = run(match["command"]).strip("\n") + "\n"
        if match["body"].startswith(_FENCE):
            output = f"{_FENCE}\n{output}{_FENCE}\n"
        return match["head"] + output + match["tail"]

    return _BLOCK.sub(replaced, text)


def run_command(command: str) -> str:
    """
    Return what a shell command prints, with this environment's scripts first in the path.

    Raises
    ------
    subprocess.CalledProcessError
        If the command fails.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        command,
        shell=True,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PATH": path},
    )
    return done.stdout


def main(arguments: Sequence[str]) -> None:
    """Make the blocks of some files again."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.documents.blocks", description=main.__doc__
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument(
        "--only", default="", metavar="WORDS", help="just blocks whose command has these words"
    )
    options = parser.parse_args(arguments)
    for path in options.files:
        text = path.read_text(encoding="utf-8")
        made = [command for command in commands(text) if options.only in command]
        text = refresh(text, run_command, options.only)
        write_text(path, text)
        print(f"{path}: {len(made)} blocks made again.")


if __name__ == "__main__":
    main(sys.argv[1:])
