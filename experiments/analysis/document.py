"""Markdown documents: how they were made, sections, tables and figures; written whole."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.runs.environment import commit_words
from experiments.runs.files import write_atomically, write_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

#: Stands for the way to the figures until a document has its place.
_FIGURES = "FIGURES/"

TINY = "**Tiny form: no result, only a look at the form of one.**"


def how_made(title: str, command: str, facts: Iterable[str]) -> str:
    """
    Return what a document begins with.

    Parameters
    ----------
    title
        Its heading.
    command
        The command that makes it.
    facts
        Sentences on how it was made, a bullet each.
    """
    written = f"Written by `{command}`; do not edit. Run it again to go on after an interruption."
    return paragraphs(f"# {title}", written, bullets(facts))


def processor(environment: Mapping[str, Any]) -> str:
    """Return what a document says about the machine that it was made on."""
    return f"Processor: {environment['cpu']}, {environment['cores_usable']} cores usable"


def code(environment: Mapping[str, Any], packages: Sequence[str]) -> str:
    """Return commit, versions of some packages, and the start of the run."""
    versions = environment["versions"]
    listed = ", ".join(f"{name} {versions[name]}" for name in packages if name in versions)
    return f"Commit {commit_words(environment)}; {listed}; started {environment['started']}."


def section(title: str, *parts: str) -> str:
    """Return a heading with the parts that are not empty."""
    return paragraphs(f"## {title}", *parts)


def paragraphs(*parts: str) -> str:
    """Return the parts that are not empty, a blank line between them."""
    return "\n\n".join(part for part in parts if part)


def bullets(sentences: Iterable[str]) -> str:
    """Return a list, a line each."""
    return "\n".join(f"- {sentence}" for sentence in sentences)


def picture(words: str, path: Path) -> str:
    """Return the Markdown that shows a figure of the document's folder."""
    return f"![{words}]({_FIGURES}{path.name})"


def without_pictures(text: str) -> str:
    """Return the text as a terminal shows it."""
    return "\n".join(line for line in text.splitlines() if f"]({_FIGURES}" not in line)


def write(text: str, path: Path, figures: str = "") -> None:
    """
    Write a document, whole or not at all.

    Parameters
    ----------
    text
        Markdown.
    path
        The file.
    figures
        The way from there to the figures, with a slash at its end.
    """
    write_text(path, text.replace(_FIGURES, figures).rstrip("\n") + "\n")


def publish(
    text: str, name: str, folder: Path, docs: str | None, figures: Iterable[Path] = ()
) -> list[Path]:
    """
    Write a document into the run's folder and, with its figures, into that of documents.

    Parameters
    ----------
    text
        Markdown.
    name
        Name of the file, without suffix.
    folder
        The run's folder, in which the figures are.
    docs
        Folder whose ``results/`` and ``figures/`` get copies; None for no copies.
    figures
        The figures.

    Returns
    -------
    list of Path
        What was written into ``docs``.
    """
    write(text, folder / f"{name}.md")
    if docs is None:
        return []
    results, pictures = Path(docs) / "results", Path(docs) / "figures"
    for place in (results, pictures):
        place.mkdir(parents=True, exist_ok=True)
    written = [results / f"{name}.md"]
    for path in figures:
        write_atomically(pictures / path.name, partial(shutil.copyfile, path))
        written.append(pictures / path.name)
    write(text, written[0], "../figures/")
    return written
