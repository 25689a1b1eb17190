"""The package from Python: the page that shows it, the notebook, classes from elsewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import polars as pl
import pytest
from nbclient import NotebookClient

from andes_opt.instance import GainTable, Instance
from experiments.cli import main

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", PAGE, re.DOTALL)
NOTEBOOK = ROOT / "notebooks" / "sweep.ipynb"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with what the page's examples read: an instance and a sweep of two runs."""
    path = tmp_path_factory.mktemp("python")
    gains = GainTable(np.array([[0.3, 0.5]] * 2), first_batch=0)
    Instance(np.array([3, 5]), 5, 0, 1, gains).save(path / "step.npz")
    runs = ["policy=fcfs,andes", "workload.requests=30", "workload.rate=4.8,6.4", "seed=0,1"]
    sweep = ["hydra/launcher=basic", f"hydra.sweep.dir={path / 'sweep'}"]
    assert main(["simulate", "--multirun", *runs, *sweep]) == 0
    return path


def in_folder(folder, *command):
    """A command's standard output."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_shows_everything():
    """Simulate in five lines, solve in three, score in two, read, and a class of one's own."""
    code = [
        [line for line in example.splitlines() if line and not line.startswith(("from", "import"))]
        for example, _ in EXAMPLES
    ]
    assert len(EXAMPLES) == 7
    simulate, _, solve, _, score, _, _ = code
    assert len(simulate) <= 5
    assert len(solve) <= 3
    assert len(score) <= 2


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_prints_what_stands_below_it(number, folder):
    """Each runs as it stands, by itself."""
    example, output = EXAMPLES[number]
    assert in_folder(folder, "-c", example).strip() == output.strip()


def test_the_examples_pass_strict_type_checking(tmp_path):
    """What users get to see of the types is complete."""
    files = [tmp_path / f"example_{k}.py" for k in range(len(EXAMPLES))]
    for path, (example, _) in zip(files, EXAMPLES, strict=True):
        path.write_text(example)
    # From the root, so that what `make types` found out counts.
    in_folder(ROOT, "-m", "mypy", *files)


def test_the_notebook_runs(folder):
    """Every cell, in order; it has a table and a figure, and is kept without outputs."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not [cell for cell in notebook.cells if cell.get("outputs")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        NotebookClient(
            notebook, timeout=300, resources={"metadata": {"path": str(folder)}}
        ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert any("text/html" in output.get("data", {}) for output in outputs)
    printed = "".join(output.get("text", "") for output in outputs)
    assert "OPTIMAL" in printed
    assert "stderr" not in {output.get("name") for output in outputs}


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A module outside the tree with the page's policy, and CONTRIBUTING's solver."""
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    solver = re.search(r"```python\n(.*?)```", contributing, re.DOTALL)[1]
    (tmp_path / "mine.py").write_text(EXAMPLES[-1][0])
    (tmp_path / "my_solver.py").write_text(solver)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("mine", "my_solver"):  # other tests have modules of the same names
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("arguments", "column", "name"),
    [
        (
            ["policy._target_=mine.ShortestPrompt", "policy.preference=2.0"],
            "policy",
            "mine.ShortestPrompt",
        ),
        (["solver._target_=my_solver.HeaviestLast"], "solver", "my_solver.HeaviestLast"),
    ],
)
def test_classes_from_elsewhere_are_used_by_their_path(arguments, column, name, elsewhere):
    """A policy with an option, and a solver; rows name them."""
    overload = ["workload.requests=30", "workload.rate=8", "engine.capacity_tokens=3000"]
    assert main(["simulate", *arguments, *overload, "hydra.run.dir=out"]) == 0
    assert pl.read_parquet("out/rows.parquet")[column].unique().to_list() == [name]
    summary = json.loads(Path("out/summary.json").read_text())
    if column == "solver":
        assert summary["solves"] > 0


def test_a_solver_from_elsewhere_is_compared(elsewhere):
    """`solvers=[...]` takes the path of a class too."""
    families = ["families=[hard]", "sizes=[8]", "count=1"]
    solvers = "solvers=[my_solver.HeaviestLast,exact]"
    assert main(["quality", solvers, *families, "hydra.run.dir=out"]) == 0
    rows = pl.read_parquet("out/rows.parquet")
    assert set(rows["solver"]) == {"my_solver.HeaviestLast", "exact"}
