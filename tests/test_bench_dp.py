"""The timing of the dynamic programme: what its page holds, and that wrong optima end it."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from benchmarks import bench_dp
from solvers.exact import Exact

pytestmark = pytest.mark.torch


def test_the_page_has_a_line_for_each_solver_and_size(monkeypatch, tmp_path):
    """On the processor, tiny: every solver proves every optimum, and the command is named."""
    page = tmp_path / "dp.md"
    options = ["--device", "cpu", "--stacks", "2", "--sizes", "8", "12", "--instances", "2"]
    monkeypatch.setattr(sys, "argv", ["bench_dp", str(page), *options])
    bench_dp.main()
    text = page.read_text(encoding="utf-8")
    assert text.count("| 2 of 2") == 6
    assert "dp_torch cpu, 2 at once" in text
    assert "--sizes 8 12 --instances 2`; do not edit" in text


def test_a_size_that_is_refused_is_said():
    """A solver that refuses a size has no time there, and the others have."""
    lines = bench_dp.measure(bench_dp.rivals("cpu", [2]), 12, 1)
    assert [line["solved"] for line in lines] == ["1 of 1"] * 3
    small = bench_dp.rivals("cpu", [2])
    small["dp"] = bench_dp.DP(max_cells=1)
    exact, dp, _ = bench_dp.measure(small, 12, 1)
    assert (dp["solved"], dp["median ms"], dp["times exact"]) == ("0 of 1", None, "refused")
    assert exact["median ms"] > 0


def test_optima_that_differ_end_the_measurement():
    """A solver that claims a worse optimum is no rival but an error."""

    class Halved:
        exact = True

        def solve(self, instance, *, time_limit_s=None):
            return Exact().solve(replace(instance, capacity=instance.capacity // 2))

    with pytest.raises(RuntimeError, match="optima differ on hard, N = 12"):
        bench_dp.measure({"exact": Exact(), "halved": Halved()}, 12, 2)


def test_no_such_device_is_one_sentence(monkeypatch):
    """A device that PyTorch does not know ends it with its name, and no traceback."""
    monkeypatch.setattr(sys, "argv", ["bench_dp", "--device", "abacus", "--sizes", "5"])
    with pytest.raises(SystemExit, match="bench_dp: device = 'abacus' not understood"):
        bench_dp.main()
