"""
What is printed: in any encoding, to any place, and fit to be read on a terminal.

Sentences are worth less than what they are about. A full disk, a closed pipe or descriptor, or an
encoding without the right letters costs the sentence, and never the run.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    import io
    from collections.abc import Iterator


def visible(text: str) -> str:
    """
    Return a text of somebody else's with what terminals obey spelled out, ``\\x1b`` say.

    Line ends stay; other control characters, and those that turn the direction of writing, don't.
    """
    return "".join(
        letter
        if letter.isprintable() or letter == "\n"
        else letter.encode("unicode_escape").decode()
        for letter in text
    )


class CarefulStream:
    """
    A text stream that writes what it can to another one, and raises nothing.

    Parameters
    ----------
    stream
        Where to write. Everything but writing is left to it.

    Attributes
    ----------
    trouble
        Why something could not be written; None if all was, or if the listener has gone.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._silent = False
        self.trouble: str | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text; letters that the encoding lacks as ``\\u4e2d``."""
        try:
            if not self._silent:
                self._stream.write(text)
        except UnicodeEncodeError as error:
            self.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        except (OSError, ValueError) as error:
            self._fall_silent(error)
        return len(text)

    def flush(self) -> None:
        """Write out what is held."""
        try:
            if not self._silent:
                self._stream.flush()
        except (OSError, ValueError) as error:
            self._fall_silent(error)

    def _fall_silent(self, error: OSError | ValueError) -> None:
        """Write nothing more; what is held goes nowhere, lest it fail again at the end."""
        self._silent = True
        if not isinstance(error, BrokenPipeError):  # `andes-opt list solvers | head` is no trouble
            self.trouble = getattr(error, "strerror", None) or str(error)
        with suppress(OSError, ValueError):  # it may stand for no file
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextmanager
def careful_output(name: str) -> Iterator[CarefulStream]:
    """
    Let nothing that is printed inside raise; say at the end on standard error what was lost.

    Parameters
    ----------
    name
        What the remark begins with, the command.

    Yields
    ------
    CarefulStream
        Standard output.
    """
    _open_closed_descriptors()
    out = CarefulStream(sys.stdout)
    with (
        redirect_stdout(cast("io.TextIOBase", out)),
        redirect_stderr(cast("io.TextIOBase", CarefulStream(sys.stderr))),
    ):
        try:
            yield out
        finally:
            out.flush()
            if out.trouble is not None:
                print(f"{name}: standard output can't be written: {out.trouble}.", file=sys.stderr)
            sys.stderr.flush()


def _open_closed_descriptors() -> None:
    """
    Point what the shell has closed (``>&-``) to nowhere.

    Else the next file that is opened gets its number, and child processes print into it.
    """
    if sys.stdout is not None and sys.stderr is not None and sys.stdin is not None:
        return
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
