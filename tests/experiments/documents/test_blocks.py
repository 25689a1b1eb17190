"""Blocks of Markdown files that commands write."""

from __future__ import annotations

import subprocess

import pytest

from experiments.documents.blocks import commands, main, refresh, run_command

TEXT = """before
<!-- made by: echo one -->
old
<!-- end -->
between
<!-- made by: echo two -->
```
old
```
<!-- end -->
after
"""


def test_blocks_are_replaced_and_all_else_stays():
    """Only the lines between the markers change; a fence stays a fence."""
    made = refresh(TEXT, lambda command: f"output of {command}\n")
    assert made == TEXT.replace("old", "output of echo one", 1).replace("old", "output of echo two")
    assert refresh(made, lambda command: f"output of {command}\n") == made


def test_blocks_of_some_commands_only():
    """Blocks whose command lacks the words stay as they are."""
    made = refresh(TEXT, lambda command: f"output of {command}\n", only="two")
    assert made == TEXT.replace("```\nold", "```\noutput of echo two")


def test_the_command_line(tmp_path, capsys):
    """Files are written in place, and what was made again is counted."""
    path = tmp_path / "page.md"
    path.write_text(TEXT)
    main(["--only", "one", str(path)])
    assert path.read_text() == TEXT.replace("old", "one", 1)
    assert "1 blocks made again" in capsys.readouterr().out


def test_commands_are_found_in_order():
    """Every block's command is listed once."""
    assert commands(TEXT) == ["echo one", "echo two"]


def test_a_failing_command_changes_nothing():
    """A command's failure is an error, not a block of nonsense."""
    with pytest.raises(subprocess.CalledProcessError):
        refresh(TEXT.replace("echo one", "exit 3"), run_command)
