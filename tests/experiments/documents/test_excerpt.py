"""Excerpts of results documents: the table that was asked for, and a list of all documents."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import pytest

from experiments import ROOT
from experiments.documents.blocks import refresh
from experiments.documents.excerpt import excerpt, index, main

if TYPE_CHECKING:
    from pathlib import Path

PAGES = ["README.md", "docs/findings.md", "docs/studies.md"]

TEXT = """# Capacity

Written by `andes-opt study capacity`; do not edit.

## Requests/s

Of short runs.

| arm  | rate |
| ---- | ---: |
| fcfs |  3.8 |

| other |
| ----- |

## Nothing

Words.
"""


def test_the_first_table_of_a_section():
    """Neither the words above the table nor a second table come along."""
    assert excerpt(TEXT, "Requests/s").splitlines()[-1] == "| fcfs |  3.8 |"
    assert len(excerpt(TEXT, "Requests/s").splitlines()) == 3


def test_sections_without_a_table_and_unknown_ones():
    """Both are told in a sentence, with a near name."""
    with pytest.raises(ValueError, match="has no table"):
        excerpt(TEXT, "Nothing")
    with pytest.raises(ValueError, match="did you mean 'Requests/s'"):
        excerpt(TEXT, "Request/s")


def test_every_document_is_listed_with_its_command(tmp_path: Path):
    """A line for each document, linked from the page above."""
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "capacity.md").write_text(TEXT)
    line = "- [Capacity](results/capacity.md): `andes-opt study capacity`"
    assert index(folder, tmp_path) == line


@pytest.mark.parametrize("page", PAGES)
def test_pages_show_what_the_results_say(page, monkeypatch):
    """Every excerpt on a page is what its results document says today."""
    monkeypatch.chdir(ROOT)

    def run(command):
        return main(shlex.split(command)[3:])

    text = (ROOT / page).read_text(encoding="utf-8")
    assert refresh(text, run, only="experiments.documents.excerpt") == text


def test_no_page_with_excerpts_is_forgotten():
    """The pages above are all that show excerpts."""
    pages = [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]
    marked = [
        p
        for p in pages
        if "made by: python -m experiments.documents.excerpt" in p.read_text("utf-8")
    ]
    assert sorted(p.relative_to(ROOT).as_posix() for p in marked) == sorted(PAGES)
