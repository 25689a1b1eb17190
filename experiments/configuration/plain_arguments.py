"""Arguments of the commands that have no configuration file."""

from __future__ import annotations

import argparse
from typing import NoReturn

from experiments.configuration.errors import UsageError


class PlainParser(argparse.ArgumentParser):
    """
    A parser whose help ends with examples, and whose errors are user errors.

    Parameters
    ----------
    command
        The command's name.
    description
        What it does.
    examples
        Command lines, one a line.
    """

    def __init__(self, command: str, description: str, examples: str) -> None:
        lines = "".join(f"  {line}\n" for line in examples.strip().splitlines())
        super().__init__(
            prog=f"andes-opt {command}",
            description=description.strip(),
            epilog=f"Examples\n{lines}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raise what the user can mend, without the usage text."""
        raise UsageError(f"{message}.")
