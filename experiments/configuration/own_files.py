"""The user's own configuration files, of ``--config-dir``: what is wrong with one, and which."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from experiments.configuration.errors import UsageError, one_line

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def check_file(path: Path) -> None:
    """
    Refuse a file that holds no configuration.

    Raises
    ------
    UsageError
        If it is no UTF-8, no YAML, or empty; the sentence names file and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
        empty = not OmegaConf.create(text)
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise UsageError(f"{path}, line {line}: no UTF-8 text: {error.reason}.") from error
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}.") from error
    except Exception as error:  # whatever the YAML reader and OmegaConf raise
        mark = getattr(error, "problem_mark", None)
        place = f"{path}, line {mark.line + 1}" if mark is not None else str(path)
        why = getattr(error, "problem", None) or one_line(error)
        raise UsageError(f"{place}: no YAML: {why}.") from error
    if empty:
        raise UsageError(f"{path} is empty.")


def check_files(folders: Iterable[Path]) -> None:
    """
    Refuse the first file of some folders that can't be read: which one a reader does not tell.

    Raises
    ------
    UsageError
        As :func:`check_file`, but files may be empty.
    """
    for folder in folders:
        for path in sorted(folder.rglob("*.yaml")):
            if path.stat().st_size:
                check_file(path)
