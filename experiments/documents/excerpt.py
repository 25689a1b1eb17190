"""
``python -m experiments.documents.excerpt``: tables of results documents, for other pages to show.

With a document and the title of one of its sections it prints that section's first table;
without any, what each document of ``docs/results`` is about, as a list of links.
"""

from __future__ import annotations

import sys
from difflib import get_close_matches
from itertools import dropwhile, takewhile
from pathlib import Path

_RESULTS = Path("docs/results")


def excerpt(text: str, section: str) -> str:
    """
    Return the first table of a section of a Markdown text.

    Parameters
    ----------
    text
        The text.
    section
        Title of the section, without its ``##``.

    Raises
    ------
    ValueError
        If there is no such section, or no table in it.
    """
    lines = text.splitlines()
    titles = [line.lstrip("# ") for line in lines if line.startswith("#")]
    if section not in titles:
        near = get_close_matches(section, titles, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"section {section!r} not understood: need one of {titles}{hint}")
    inside = list(dropwhile(lambda line: line.lstrip("# ") != section, lines))[1:]
    inside = list(takewhile(lambda line: not line.startswith("#"), inside))
    table = takewhile(_in_table, dropwhile(lambda line: not _in_table(line), inside))
    rows = list(table)
    if not rows:
        raise ValueError(f"section {section!r} has no table.")
    return "\n".join(rows)


def index(folder: Path, above: Path) -> str:
    """
    Return a line for each document of a folder: a link, and the command that wrote it.

    Parameters
    ----------
    folder
        With Markdown files.
    above
        Folder of the page that shows the list; links are relative to it.
    """
    lines = []
    for path in sorted(folder.glob("*.md")):
        text = path.read_text(encoding="utf-8").splitlines()
        written = next(line for line in text if line.startswith("Written by `"))
        command = written.split("`")[1]
        link = path.relative_to(above).as_posix()
        lines.append(f"- [{text[0].lstrip('# ')}]({link}): `{command}`")
    return "\n".join(lines)


def _in_table(line: str) -> bool:
    return line.startswith("|")


def main(arguments: list[str]) -> str:
    """Run the command and return what it prints."""
    if not arguments:
        return index(_RESULTS, _RESULTS.parent)
    if len(arguments) != 2:
        raise ValueError("need a document and a section: excerpt FILE SECTION")
    path, section = arguments
    return excerpt(Path(path).read_text(encoding="utf-8"), section)


if __name__ == "__main__":
    try:
        print(main(sys.argv[1:]))
    except (OSError, ValueError) as error:
        sys.exit(f"excerpt: {error}")
