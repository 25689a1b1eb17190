"""A package ``vllm`` whose ``serve`` runs a program of the test's in place of a server."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_SERVE = '''
"""In the place of vLLM's subcommand: takes any words, and runs the program."""

import argparse
import runpy


class Serve:
    name = "serve"

    def subparser_init(self, subparsers):
        subparsers.add_parser(self.name).add_argument("words", nargs=argparse.REMAINDER)

    def validate(self, arguments):
        assert arguments.words

    @staticmethod
    def cmd(arguments):
        runpy.run_path(PROGRAM, run_name="__main__")


def cmd_init():
    return [Serve()]
'''


def install(packages: Path, program: Path) -> None:
    """
    Write the package.

    Parameters
    ----------
    packages
        Folder for ``PYTHONPATH``.
    program
        Run with ``sys.argv[1:]`` as ``["serve", model, ...flags]``.
    """
    sources = {
        "logger": "",
        "utils/argparse_utils": "from argparse import ArgumentParser as FlexibleArgumentParser\n",
        "entrypoints/cli/serve": f"PROGRAM = {str(program)!r}\n{_SERVE}",
    }
    for name, source in sources.items():
        path = packages / "vllm" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        for folder in (path.parent, *path.parent.parents):
            if packages in folder.parents:
                (folder / "__init__.py").touch()
