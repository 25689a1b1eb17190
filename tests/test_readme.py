"""The documents: what they promise is there, and what they show is current."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from experiments.cli import main
from experiments.commands.listing import entries
from experiments.commands.registry import COMMANDS
from experiments.configuration.experiment import studies
from experiments.documents.blocks import commands

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FILES = [
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.splitlines()
    if name.endswith((".md", ".py", ".yaml", ".yml", ".toml", ".html", "Makefile", ".cff"))
    and (ROOT / name).exists()
]
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
        known = known or (words[0] == "python" and (ROOT / words[1]).is_file())
        assert known, command
    assert "-->\n```\n```" not in text
    assert "-->\n<!-- end -->" not in text


def test_no_document_holds_the_marks_of_a_merge():
    """A conflict is resolved before it is committed (docs/studies.md held half of one once)."""
    marks = re.compile(r"^(?:<{7}|>{7}|={7}$|\|{7}|@@@)", re.MULTILINE)
    for path in FILES:
        assert not marks.search(path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_documents_name_studies_as_the_help_does(document):
    """`andes-opt study NAME`, not the alias of before."""
    asked = re.findall(r"experiment=(\w+)", document.read_text(encoding="utf-8"))
    assert not set(asked) & set(studies())


def _bash_accepts(lines, where):
    """Assert that bash parses the lines, and that none holds a pattern or a list unquoted."""
    done = subprocess.run(
        ["bash", "-n"], input="\n".join(lines), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{where}: {done.stderr}"
    for line in lines:
        bare = re.sub(r"'[^']*'|\"[^\"]*\"|#.*", "", line)
        assert not re.search(r"=\S*[\[\](){}*]|\w\(", bare), f"{where}: quote {line!r}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_of_documents_are_shell(document):
    """
    Every command of a document can be pasted into a shell.

    A regression test: `seed=range(3)` is a syntax error in bash without quotes.
    """
    text = document.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:sh|console|bash)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text) + re.findall(r"made by: (.+?) -->", text)
    lines = [line for block in blocks for line in block.splitlines()]
    lines = [line for line in lines if re.match(r"\s*(?:[A-Z_]+=\S+ )*andes-opt ", line)]
    lines += [span for span in spans if span.startswith(("andes-opt ", "..."))]
    lines += [span for span in spans if re.fullmatch(r"'?[\w./]+=\S+", span)]
    _bash_accepts(lines, document.name)


@pytest.mark.parametrize("command", list(COMMANDS))
def test_examples_of_help_are_shell(command, capsys):
    """So can the examples of each command's help."""
    with suppress(SystemExit):
        main([command, "--help"])
    examples = capsys.readouterr().out.partition("Examples\n")[2].splitlines()
    lines = [line.strip() for line in examples if line.startswith("  ")]
    assert lines
    _bash_accepts(lines, command)


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
