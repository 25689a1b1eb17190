"""The documents: what they promise is there, and what they show is current."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.commands.listing import entries
from experiments.commands.registry import COMMANDS
from experiments.documents.blocks import commands

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def code_blocks(text, language):
    """Contents of the fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_example_runs_as_printed():
    """The README's Python example, of about ten lines, runs and prints what stands below it."""
    example = code_blocks(README, "python")[0]
    assert len(example.strip().splitlines()) <= 12
    done = subprocess.run(
        [sys.executable, "-c", example], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == code_blocks(README, "text")[0].strip()


def test_the_two_commands_are_make_targets():
    """The first shell block has the two commands, and the Makefile knows them."""
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"^make ([a-z-]+)", code_blocks(README, "sh")[0], re.MULTILINE)
    assert named == ["demo", "test"]
    assert set(named) <= set(targets)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_local_links_lead_somewhere(document):
    """Every relative link and figure of a document exists."""
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_number_blocks_have_commands_that_exist(document):
    """Every block names a command of the project, and has been filled."""
    text = document.read_text(encoding="utf-8")
    for command in commands(text):
        words = command.split()
        known = words[0] == "andes-opt" and words[1] in COMMANDS
        known = known or words[:3] == [".venv/bin/python", "-m", "benchmarks"]
        known = known or words[:2] == ["python", "-m"]
        assert known, command
    assert "-->\n```\n```" not in text
    assert "-->\n<!-- end -->" not in text


def test_structure_lists_every_module():
    """docs/structure.md has each module's line; `make docs` makes the list again."""
    text = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8")
    listed = dict(
        line.split(maxsplit=1) for line in text.splitlines() if re.match(r"\w+/\S+\.py\s", line)
    )
    assert listed == entries("modules")


def test_every_module_says_what_it_is():
    """The list is made of docstrings, so each module needs one."""
    assert all(entries("modules").values())


def test_the_solver_of_contributing_conforms(tmp_path):
    """The one-file solver that CONTRIBUTING shows passes the conformance suite."""
    from andes_opt import testing

    source = tmp_path / "heaviest_last.py"
    source.write_text(code_blocks((ROOT / "CONTRIBUTING.md").read_text(), "python")[0])
    spec = importlib.util.spec_from_file_location("heaviest_last", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    testing.check_solver(module.HeaviestLast)
