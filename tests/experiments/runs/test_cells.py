"""The grid of cells: parallel, each result kept, a stopped run goes on."""

from __future__ import annotations

import json
import math
import sys

import pytest

from experiments.runs.cells import Cell, Store, finish, processes_of

#: Work that writes down that it was done, fails at 3, and is interrupted at 4.
WORK = """
from pathlib import Path

def square(x, log, careful=False):
    if careful and x == 3:
        raise ValueError("three is not understood.")
    if careful and x == 4:
        raise KeyboardInterrupt
    with open(log, "a") as file:
        file.write(f"{x}\\n")
    return {"square": x * x, "root": x ** 0.5 if x >= 0 else float("nan")}
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A module of work; the cells of some numbers, and what was done so far."""
    (tmp_path / "work_of_a_test.py").write_text(WORK)
    monkeypatch.syspath_prepend(tmp_path)
    log = tmp_path / "log.txt"
    log.touch()

    def cells(*numbers, **options):
        return [
            Cell("work_of_a_test:square", {"x": x, "log": str(log), **options}, {"x": x})
            for x in numbers
        ]

    yield cells, lambda: [int(line) for line in log.read_text().split()]
    sys.modules.pop("work_of_a_test", None)


def test_results_come_in_the_order_of_the_cells_and_equal_cells_once(work, tmp_path):
    """Each distinct cell is computed once, whatever its label says."""
    cells, log = work
    done = finish(cells(2, 5, 2), tmp_path / "cells", processes=1)
    assert [result["square"] for result in done.results] == [4, 25, 4]
    assert log() == [2, 5]
    assert (done.computed, done.reused) == (2, 0)
    assert done.seconds > 0


def test_what_is_known_is_not_done_again(work, tmp_path):
    """A second grid computes its new cells only, and gives the same results."""
    cells, log = work
    finish(cells(1, 2), tmp_path / "cells", processes=1)
    done = finish(cells(3, 2, 1), tmp_path / "cells", processes=1)
    assert [result["square"] for result in done.results] == [9, 4, 1]
    assert log() == [1, 2, 3]
    assert (done.computed, done.reused) == (1, 2)


@pytest.mark.parametrize(("bad", "error"), [(3, ValueError), (4, KeyboardInterrupt)])
def test_a_stopped_grid_keeps_what_it_has(work, tmp_path, bad, error):
    """After an error or an interrupt the results before it are there for the next run."""
    cells, log = work
    folder = tmp_path / "cells"
    with pytest.raises(error):
        finish(cells(1, 2, bad, 9, careful=True), folder, processes=1)
    assert log() == [1, 2]
    done = finish(cells(1, 2, 9, careful=True), folder, processes=1)
    assert (done.computed, done.reused) == (1, 2)


@pytest.mark.parametrize("text", ["", '{"seconds": 1, "resu', "[1, 2]", '{"seconds": 1}'])
def test_a_file_that_is_no_result_is_replaced(work, tmp_path, text):
    """A half-written or foreign file counts as missing."""
    cells, _ = work
    folder = tmp_path / "cells"
    (cell,) = cells(7)
    folder.mkdir()
    path = Store(folder).path(cell)
    path.write_text(text)
    done = finish([cell], folder, processes=1)
    assert done.results[0]["square"] == 49
    assert json.loads(path.read_text())["result"]["square"] == 49
    assert [p.name for p in folder.iterdir()] == [path.name]


def test_options_and_code_make_the_identity(work, tmp_path):
    """Other options or other code of the work mean another file; another label does not."""
    cells, _ = work
    (cell,), (other,) = cells(7), cells(8)
    relabelled = Cell(cell.work, cell.options, {"x": "seven"})
    store = Store(tmp_path)
    assert store.path(cell) == store.path(relabelled)
    assert store.path(cell) != store.path(other)

    path = tmp_path / "work_of_a_test.py"
    path.write_text(WORK.replace("x * x", "x * x + 0"))
    assert Store(tmp_path).path(cell) != store.path(cell)


def test_what_a_cell_reads_counts_by_content(tmp_path):
    """
    A trace that a cell names may move, but not change; a cell that names none is as ever.

    A regression test: studies took results of another trace.
    """
    store, paths = Store(tmp_path / "cells"), []
    for text in ("1", "1", "2"):
        trace = tmp_path / f"{len(paths)}.csv"
        trace.write_text(text)
        options = {"run": {"workload": {"path": str(trace)}}}
        paths.append(store.path(Cell("json:dumps", options, {})))
    assert paths[0] == paths[1] != paths[2]


def test_what_json_cannot_hold_becomes_null(work, tmp_path):
    """NaN comes back as None, now and when it is read again."""
    cells, _ = work
    for _ in range(2):
        done = finish(cells(-1), tmp_path / "cells", processes=1)
        assert done.results == [{"square": 1, "root": None}]


def test_processes_give_the_same_results(tmp_path):
    """Two processes do what one does."""
    cells = [Cell("statistics:fmean", {"data": [k, k + 1]}, {}) for k in range(4)]
    parallel = finish(cells, tmp_path / "two", processes=2)
    assert parallel.results == [0.5, 1.5, 2.5, 3.5]
    assert parallel.computed == 4
    assert len(list((tmp_path / "two").glob("*.json"))) == 4


@pytest.mark.parametrize(
    ("launcher", "least", "most"),
    [({}, 1, 1), ({"n_jobs": 3}, 3, 3), ({"n_jobs": None}, 1, 1), ({"n_jobs": -1}, 1, math.inf)],
)
def test_the_launcher_says_how_many_processes(launcher, least, most):
    """n_jobs counts as in joblib; a launcher without it means one."""

    class Hydra:
        pass

    hydra = Hydra()
    hydra.launcher = launcher
    assert least <= processes_of(hydra) <= most
