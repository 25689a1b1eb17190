"""``andes-opt list``: what the files of ``conf/`` offer, the columns, the modules."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from experiments.configuration.compose import CONF_DIR, first_comment, groups
from experiments.configuration.errors import not_understood
from experiments.configuration.experiment import studies
from experiments.configuration.launchers import LAUNCHERS
from experiments.configuration.plain_arguments import PlainParser
from experiments.runs.columns import COLUMNS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_PACKAGES = ("andes_opt", "solvers", "engine_adapter", "experiments")
#: Groups that hold options of one thing rather than things to choose from.
_SINGLE = ("isolation", "live", "study", "tuning")
#: Kinds that are not groups of ``conf/``.
EXTRA_KINDS = {
    "columns": "columns of rows.parquet",
    "families": "generated instances for `andes-opt quality families=[...]`",
    "launchers": "where `--multirun` makes the runs of a sweep, hydra/launcher=NAME",
    "modules": "modules of the packages",
    "studies": "questions that `andes-opt study NAME` answers; experiments: experiment=NAME",
}


def plural(group: str) -> str:
    """Return a group's name on the command line: ``policy`` -> ``policies``."""
    if group.endswith("s") or group in _SINGLE:
        return group
    return f"{group[:-1]}ies" if group.endswith("y") else f"{group}s"


def entries(kind: str) -> dict[str, str]:
    """
    Return the names of a kind and their one-line descriptions.

    Parameters
    ----------
    kind
        ``solvers``, ``policies`` ... or the group's own name; ``columns`` for those of
        ``rows.parquet``; ``launchers``; ``families`` for those of ``andes_opt/families.py``;
        ``modules`` for the packages' files; ``studies`` for those of ``andes-opt study``.

    Raises
    ------
    UsageError
        If there is no such kind.
    """
    if kind == "columns":
        return {
            name: f"{column.meaning}{f' [{column.unit}]' if column.unit else ''}"
            for name, column in COLUMNS.items()
        }
    if kind == "modules":
        return modules()
    if kind == "studies":
        return studies()
    if kind == "launchers":
        return {name: launcher.meaning for name, launcher in LAUNCHERS.items()}
    if kind == "families":
        from andes_opt.families import FAMILIES  # numba takes a second to import

        return dict(FAMILIES)
    known = groups()
    names = {plural(group): group for group in known} | {group: group for group in known}
    if kind not in names:
        kinds = [*(plural(group) for group in known), *EXTRA_KINDS]
        raise not_understood("list", kind, kinds, " ")
    group = names[kind]
    return {name: first_comment(CONF_DIR / group / f"{name}.yaml") for name in known[group]}


def modules() -> dict[str, str]:
    """Return the path of every module and the first sentence of its docstring."""
    root = CONF_DIR.parent
    paths = [path for package in _PACKAGES for path in sorted((root / package).rglob("*.py"))]
    return {
        path.relative_to(root).as_posix(): _first_sentence(path)
        for path in paths
        if path.name != "__init__.py"
    }


def _first_sentence(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return paragraph.split(". ")[0].rstrip(".")


def main(arguments: Sequence[str]) -> None:
    """
    Print the entries of one kind, or the kinds there are.

    Raises
    ------
    UsageError
        On an unknown kind, or on more than one.
    """
    parser = PlainParser(
        "list",
        "Without a kind: the kinds there are. With one: a line for each name.",
        """
andes-opt list
andes-opt list solvers
andes-opt list columns
""",
    )
    parser.add_argument("kind", nargs="?", metavar="KIND", help="solvers, policies, columns ...")
    kind = parser.parse_args(arguments).kind
    if kind is not None:
        lines = entries(kind)
    else:
        lines = {
            plural(group): ", ".join(name for name in names if name not in studies())
            for group, names in groups().items()
            if group != "study"  # defaults of studies, which are not for choosing
        }
        lines |= EXTRA_KINDS
    width = max((len(name) for name in lines), default=0)
    for name, text in lines.items():
        print(f"{name:<{width}}  {text}".rstrip())
