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
    from collections.abc import Callable, Iterator

    from live_stepping import Engine, Start

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


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model folder that holds a config and nothing else."""
    from live_stepping import write_tiny_config

    return write_tiny_config(tmp_path_factory.mktemp("model"))


@pytest.fixture
def start(tiny_model: str) -> Iterator[Start]:
    """Makes engines around a scheduler of ours or of vLLM's, stepped without a model."""
    from live_stepping import Engine, make_scheduler

    engines: list[Engine] = []

    def make(
        policy: dict[str, Any] | None = None,
        *,
        asynchronous: bool = False,
        scheduler_class: Any = None,
        adapter: dict[str, Any] | None = None,
        **options: Any,
    ) -> Engine:
        from vllm.v1.core.sched.async_scheduler import AsyncScheduler
        from vllm.v1.core.sched.scheduler import Scheduler

        from engine_adapter.scheduler import AndesScheduler

        config = {}
        if policy is not None:
            config = {
                "andes_opt": {"policy": policy, "planning_share_limit": 1.0, **(adapter or {})}
            }
            scheduler_class = scheduler_class or AndesScheduler
        stock = AsyncScheduler if asynchronous else Scheduler
        engine = Engine.around(
            make_scheduler(
                tiny_model,
                scheduler_class or stock,
                asynchronous=asynchronous,
                additional_config=config,
                **options,
            )
        )
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.scheduler.shutdown()
