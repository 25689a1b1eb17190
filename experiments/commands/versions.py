"""``andes-opt versions``: the versions of everything that results depend on."""

from __future__ import annotations

from andes_opt.versions import versions
from experiments.configuration.errors import UsageError

_HELP = """\
usage: andes-opt versions

Print the versions of Python, of this package and of everything that results depend on.

Examples
  andes-opt versions
  andes-opt --version
  andes-opt versions > versions.txt
"""


def main(arguments: list[str]) -> None:
    """Print the versions, a line each."""
    if arguments and arguments[0] in ("-h", "--help"):
        print(_HELP, end="")
        return
    if arguments:
        raise UsageError(f"{arguments[0]!r} not understood: versions takes no arguments.")
    for name, version in versions().items():
        print(f"{name:<14}{version}")
