"""The wheel: built, installed into a clean environment, run from another folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("andes_opt", "solvers", "engine_adapter", "experiments", "conf")


def run(*command, cwd):
    """A command's standard output; fails the test with its standard error."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        # Compiling for one tiny run in a new folder takes longer than interpreting it.
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The project's wheel, built with the tools that are installed."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", folder, ROOT, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """A new environment with the wheel in it, which sees this one's dependencies."""
    folder = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    install = ("-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index")
    run(sys.executable, *install, wheel, cwd=folder)
    site = run(
        python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])", cwd=folder
    )
    # A .pth file in a folder that a .pth file names is not read: the project itself, which
    # is installed editable here, stays invisible.
    dependencies = Path(site.strip()) / "dependencies.pth"
    dependencies.write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder


def test_the_wheel_holds_every_tracked_file_of_the_packages(wheel):
    """Modules, YAML files, tables and py.typed are all in it; tests are not."""
    shipped = set(zipfile.ZipFile(wheel).namelist())
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if path.suffix in (".py", ".yaml", ".json", ".typed") or path.name == "py.typed":
                assert path.relative_to(ROOT).as_posix() in shipped
    assert not [name for name in shipped if name.startswith(("tests/", "benchmarks/", "docs/"))]


def test_an_installed_wheel_runs_from_another_folder(environment, tmp_path):
    """`andes-opt` of a clean environment lists, simulates and writes, far from the sources."""
    script = environment / "bin" / "andes-opt"
    assert "andes-opt" in run(script, "versions", cwd=tmp_path)
    assert "fcfs" in run(script, "list", "policies", cwd=tmp_path)
    where = run(
        environment / "bin" / "python",
        "-c",
        "import solvers; print(solvers.__file__)",
        cwd=tmp_path,
    )
    assert str(environment) in where

    tiny = ("workload.requests=8", "policy=fcfs", "hydra.run.dir=out")
    run(script, "simulate", *tiny, cwd=tmp_path)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["requests"] == 8
    assert json.loads((tmp_path / "out" / "env.json").read_text())["git"] is None
