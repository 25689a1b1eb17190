"""
Values of the command line, quoted for Hydra's grammar where nothing else can be meant.

The grammar has lists, mappings, functions, quotes and sweeps, and refuses an unquoted ``=``, ``~``,
``?``, bracket or letter outside ASCII within a value. Paths and addresses have all of these.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

if TYPE_CHECKING:
    from collections.abc import Iterable

_OVERRIDE = re.compile(r"((?:\+{1,2}|~)?[A-Za-z_][\w./@:-]*)=(.*)", re.DOTALL)
#: What begins a list, a mapping, a quoted value or a call of a function, or is a sweep, or names
#: another option.
_MORE = re.compile(r"""\s*(?:[\[{("']|$|\w+\([^)]*$|\w+\(.*\)\s*$)|.*(?:,|\$\{)""", re.DOTALL)
#: Where backslashes count: before a quotation mark, and at the end.
_BEFORE_QUOTE = re.compile(r"(\\*)('|\Z)")
#: One's own folder, where a value, an element or a quotation begins.
_HOME = re.compile(r"""(^|[,\[]\s*)(["']?)~(?=/)""")


def taken(override: str) -> str:
    """
    Return an override as Hydra's grammar takes it, if there is one way to mean it.

    ``~/`` at the beginning of a value becomes one's own folder.

    Parameters
    ----------
    override
        A word of the command line; what is no ``KEY=VALUE`` is returned as it is.
    """
    match = _OVERRIDE.fullmatch(override)
    if match is None:
        return override
    key = match[1]
    value = _HOME.sub(lambda found: found[1] + found[2] + str(Path.home()), match[2])
    if parses(f"{key}={value}") or _MORE.match(value):
        return f"{key}={value}"
    return f"{key}={quoted(value)}"


def all_taken(overrides: Iterable[str]) -> list[str]:
    """Return overrides as :func:`taken` returns each."""
    return [taken(override) for override in overrides]


def parses(override: str) -> bool:
    """Return whether Hydra's grammar takes an override."""
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return True


def quoted(text: str) -> str:
    """Return a text quoted for Hydra's grammar, whatever is in it."""

    def escape(found: re.Match[str]) -> str:
        return found[1] * 2 + ("\\'" if found[2] else "")

    return f"'{re.sub(_BEFORE_QUOTE, escape, text)}'"


def advice(override: str) -> str:
    """Return how to write an override that the grammar refuses, quoted for the shell."""
    match = _OVERRIDE.fullmatch(override)
    form = "need key=value, or 'key=[a,b]' for a list"
    if match is None:
        return f"{form}."
    key, value = match.groups()
    inner = value.strip()
    if inner.startswith("[") and inner.endswith("]"):
        shown = _for_shell([f"{key}=[{_each_quoted(inner[1:-1])}]"])
        return f"write {shown[0]}." if shown else f"{form}."
    one, several = f"{key}={_doubly_quoted(value)}", f"{key}={_each_quoted(value)}"
    shown = _for_shell([one, several] if "," in value else [one])
    if not shown:
        return f"{form}."
    if inner.startswith(("[", "{", "(")):
        return f"{form}; as a text: {shown[0]}."
    return f"write {', or for several values '.join(shown)}."


def _for_shell(lines: Iterable[str]) -> list[str]:
    return [shlex.quote(line) for line in lines if parses(line)]


def _doubly_quoted(text: str) -> str:
    """As :func:`quoted`, in the marks that need no others around them in a shell."""
    return quoted(text) if any(mark in text for mark in "\"'\\") else f'"{text}"'


def _each_quoted(values: str) -> str:
    return ",".join(_doubly_quoted(value.strip()) for value in values.split(","))
