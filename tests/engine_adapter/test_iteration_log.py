"""Timed iterations on file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from andes_opt.calibration import read_iterations
from engine_adapter.iteration_log import IterationLog

if TYPE_CHECKING:
    from pathlib import Path


def test_calibrate_reads_what_the_engine_wrote(tmp_path: Path) -> None:
    """Every iteration is a row of a file that andes-opt calibrate takes, in order."""
    path = tmp_path / "iterations.csv"
    log = IterationLog(str(path))
    for i in range(100):
        log.add(0.01 + i / 1000, i, 10 * i, i % 3)
    log.close()
    log.close()
    iterations = read_iterations(path)
    assert iterations.count == 100
    assert iterations.batch.tolist() == list(range(100))
    assert iterations.context_tokens[7] == 70
    assert iterations.prefill_tokens[5] == 2
    assert iterations.seconds[3] == 0.013
