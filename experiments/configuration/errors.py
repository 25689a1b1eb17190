"""User errors: found before a run starts, told in one sentence."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING

from experiments.configuration.output import visible

if TYPE_CHECKING:
    from collections.abc import Iterable


class UsageError(Exception):
    """Something the user can mend: a wrong name, a bad value, a missing file."""


class RunRefused(BaseException):
    """
    Carries a user error (its ``__cause__``) out of a Hydra job.

    Hydra prints a line of its own about every Exception that leaves a job; this is none.
    """


class RunsFailed(BaseException):
    """
    Some runs of a sweep failed, and the others are made.

    No Exception, since Hydra turns one that a callback raises into a warning.
    """


class Terminated(KeyboardInterrupt):
    """SIGTERM, which stops what Ctrl-C stops and keeps what that keeps."""


def is_user_error(error: BaseException) -> bool:
    """
    Return whether an error says what the user can mend.

    Constructors and readers state bad values as ValueError and files as OSError, each in
    one sentence; MemoryError says that too much was asked for. An invalid plan is a ValueError
    too, but a solver's fault. A policy that serves no request is one of the user's own.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from andes_opt.plan import InvalidPlan
    from andes_opt.snapshot import Starved

    ours = (UsageError, Starved)
    third_party = (HydraException, OmegaConfBaseException)
    kinds = (*ours, *third_party, ValueError, OSError, MemoryError)
    return isinstance(error, kinds) and not isinstance(error, InvalidPlan)


def not_understood(key: str, value: object, choices: Iterable[str]) -> UsageError:
    """Return a :class:`UsageError` with the bad value, the valid ones and the nearest."""
    choices = list(choices)
    near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else "."
    return UsageError(f"{key}={value} not understood: need one of {', '.join(choices)}{hint}")


def not_installed(what: str, *extras: str) -> UsageError:
    """Return a :class:`UsageError` for a missing package, with the extras that bring it."""
    choices = " or ".join(f"pip install -e '.[{extra}]'" for extra in extras)
    return UsageError(f"{what} is not installed: {choices} in the folder of andes-opt.")


def require(package: str, *extras: str) -> None:
    """
    Refuse to go on without a package.

    Raises
    ------
    UsageError
        With the extras that bring it.
    """
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise not_installed(str(error.name), *extras) from error


def unknown_key(key: str, choices: Iterable[str], elsewhere: Iterable[str] = ()) -> UsageError:
    """
    Return a :class:`UsageError` for an option that does not exist.

    Parameters
    ----------
    key
        The option.
    choices
        Options of the same node.
    elsewhere
        Options of other nodes; one of the same name is likely to be meant.
    """
    choices = sorted(choices)
    parent, _, last = key.rpartition(".")
    prefix = f"{parent}." if parent else ""
    near = [other for other in elsewhere if other.rpartition(".")[2] == last]
    near += [prefix + name for name in difflib.get_close_matches(last, choices, n=1, cutoff=0.5)]
    hint = f"; did you mean {near[0]}?" if near else "."
    valid = ", ".join(prefix + choice for choice in choices) or "nothing"
    return UsageError(f"option {key} not understood: need one of {valid}{hint}")


def one_line(error: BaseException) -> str:
    """Return an error's message in one line, fit for a terminal whatever it quotes."""
    from omegaconf.errors import MissingMandatoryValue

    if isinstance(error, MissingMandatoryValue) and error.full_key:
        key = error.full_key
        return f"{key} is missing: this choice needs {key}=VALUE."
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return visible(" ".join(lines)) if lines else type(error).__name__
