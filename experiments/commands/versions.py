"""``andes-opt versions``: the versions of everything that results depend on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from andes_opt.versions import versions
from experiments.configuration.plain_arguments import PlainParser

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str]) -> None:
    """Print the versions, a line each."""
    PlainParser(
        "versions",
        "Print the versions of Python, of this package and of everything that results depend on.",
        """
andes-opt versions
andes-opt --version
andes-opt versions > versions.txt
""",
    ).parse_args(arguments)
    for name, version in versions().items():
        print(f"{name:<14}{version}")
