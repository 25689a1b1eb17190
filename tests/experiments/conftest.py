"""What the tests of the commands share."""

from __future__ import annotations

import json

import pytest

from experiments.cli import main


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    """Runs write below the current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(tmp_path):
    """Run a command with its output folder ``out``; the folder and the summary."""

    def run_command(command, *arguments):
        folder = tmp_path / "out"
        assert main([*command.split(), f"hydra.run.dir={folder}", *arguments]) == 0
        return folder, json.loads((folder / "summary.json").read_text())

    return run_command


@pytest.fixture
def own_lock(tmp_path, monkeypatch):
    """Live runs exclude each other on a machine; those of tests with programs for engines don't."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
