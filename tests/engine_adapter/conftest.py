"""Makes the harness in this folder importable, also by name from a configuration."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from andes_opt.latency import LatencyModel
from andes_opt.snapshot import Snapshot, State

if TYPE_CHECKING:
    from collections.abc import Callable

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def make_snapshot() -> Callable[..., Snapshot]:
    """Snapshots of n requests that wait, unless said otherwise."""

    def make(n: int, **changes: Any) -> Snapshot:
        values: dict[str, Any] = {
            "time_s": 0.0,
            "request_id": np.arange(1, n + 1),
            "arrival_s": np.zeros(n),
            "prompt_tokens": np.full(n, 10),
            "generated_tokens": np.zeros(n, dtype=np.int64),
            "kv_tokens": np.zeros(n, dtype=np.int64),
            "need_tokens": np.full(n, 32),
            "state": np.full(n, State.WAITING, dtype=np.int8),
            "ttft_s": np.ones(n),
            "tds": np.full(n, 4.8),
            "delivered": np.zeros(n, dtype=np.int64),
            "digested": np.zeros(n),
            "area": np.zeros(n),
            "preemptions": np.zeros(n, dtype=np.int64),
            "restore_s": np.zeros(n),
            "capacity_tokens": 320,
            "block_tokens": 16,
            "max_batch": 8,
            "token_budget": 128,
            "latency": LatencyModel(0.03, 1e-4, 4e-7, 1e-4),
            "requests_seen": n,
            "preemptions_seen": 0,
        }
        return Snapshot(**{**values, **changes})

    return make
