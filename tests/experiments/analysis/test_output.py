"""What people look at: progress bars, tables, figures."""

from __future__ import annotations

import io

import polars as pl
import pytest
from numba import njit

from experiments.analysis import figures
from experiments.analysis.markdown import markdown
from experiments.runs.progress import bar, jit_seconds


class Terminal(io.StringIO):
    """Standard error that says it is a terminal."""

    def isatty(self):
        return True


@pytest.mark.parametrize(("stream", "visible"), [(Terminal(), True), (io.StringIO(), False)])
def test_progress_shows_on_a_terminal_only(stream, visible, monkeypatch):
    """Log files and pipes get no progress bar."""
    monkeypatch.setattr("sys.stderr", stream)
    with bar(3, "working") as progress:
        progress.update(3)
    assert ("working" in stream.getvalue()) == visible


def test_compile_time_is_counted_once():
    """A first call costs compile time, a second one none."""

    @njit
    def plus_one(x):
        return x + 1

    with jit_seconds() as first:
        plus_one(1)
    with jit_seconds() as second:
        plus_one(1)
    assert first.value > 0
    assert second.value == 0


def test_tables_align_and_round():
    """Numbers go right with the wanted decimals, text goes left, null is a dash."""
    table = pl.DataFrame({"solver": ["a", "longer"], "ms": [1.234, None], "n": [5, 12]})
    assert markdown(table, {"ms": 2}).splitlines() == [
        "| solver |   ms |   n |",
        "| ------ | ---: | --: |",
        "| a      | 1.23 |   5 |",
        "| longer |    - |  12 |",
    ]


def test_the_gap_figure_shows_optimal_and_other_solvers(tmp_path):
    """Gaps of 0 have no logarithm and refusals no time; both kinds of rows are drawn around."""
    rows = pl.DataFrame(
        {
            "solver": ["exact", "greedy", "brute_force"],
            "source": ["x"] * 3,
            "instance": ["1"] * 3,
            "wall_s": [1e-3, 1e-4, None],
            "gap_percent": [0.0, 0.3, None],
        }
    )
    figures.gap_against_time(rows, tmp_path / "gap.png")
    assert (tmp_path / "gap.png").read_bytes().startswith(b"\x89PNG")


def test_the_rate_figure_tells_solvers_apart(tmp_path):
    """A policy with two solvers is two lines; one without a solver bears its own name."""
    definitions = ("qoe_area", "qoe_delay", "qoe_window")
    rows = pl.DataFrame(
        {
            "policy": ["fcfs", "andes", "andes"] * 2,
            "solver": [None, "greedy", "exact"] * 2,
            "rate": [1.0] * 3 + [2.0] * 3,
            **{name: [0.9, 1.0, 1.0, 0.1, 0.8, 0.8] for name in definitions},
        }
    )
    names = rows.select(figures.arm()).to_series().unique(maintain_order=True)
    assert names.to_list() == ["fcfs", "andes (greedy)", "andes (exact)"]
    figures.qoe_against_rate(rows, tmp_path / "qoe.png")
    assert (tmp_path / "qoe.png").read_bytes().startswith(b"\x89PNG")


def test_a_bar_or_a_line_end_in_a_name_breaks_no_table():
    """Bars are escaped, line ends are blanks, and what terminals obey is spelled out."""
    table = pl.DataFrame({"a|b": ["x|y", "x\ny", "x\x1b[2Jy"]})
    head, _, *lines = markdown(table, {}).splitlines()
    assert head.split() == ["|", "a\\|b", "|"]
    assert [line.strip("| ") for line in lines] == ["x\\|y", "x y", "x\\x1b[2Jy"]
