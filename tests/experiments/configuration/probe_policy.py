"""A policy that leaves behind how many threads its process has: for ``test_launchers.py``."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numba
import numpy as np
import polars as pl
from threadpoolctl import threadpool_info

from andes_opt.policy.fcfs import FCFS


class Probe(FCFS):
    """First come, first served; ``threads/SEED.json`` tells of the process that served."""

    def __init__(self, seed: int, folder: str = "threads") -> None:
        super().__init__()
        if seed == 1 and Path("kill").exists():
            Path("kill").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        np.ones((8, 8)) @ np.ones((8, 8))  # BLAS is there
        pools = [pool["num_threads"] for pool in threadpool_info()]
        seen = {
            "process": os.getpid(),
            "pools": pools,
            "numba": numba.get_num_threads(),
            "polars": pl.thread_pool_size(),
            "folder": str(Path.cwd()),
        }
        # Relative, as a trace's path may be.
        Path(folder).mkdir(exist_ok=True)
        (Path(folder) / f"{seed}.json").write_text(json.dumps(seen))
