"""What several test files need: snapshots, and a reader written down independently."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from andes_opt.latency import LatencyModel
from andes_opt.snapshot import Snapshot, State

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

sys.path.insert(0, str(Path(__file__).parent))

REFERENCE = Path(__file__).parents[1] / "reference"


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of hand-checkable numbers."""
    return REFERENCE


@pytest.fixture(scope="session")
def read_exactly() -> Callable[..., tuple[float, float]]:
    """
    A fluid reader followed from event to event, in plain Python.

    Tokens arrive at ``times`` and besides as a fluid of ``rate`` from ``rate_from`` on. He
    digests at ``tds`` from ``start`` on what there is. Returns the tokens he digests in
    [0, end] and the integral of their number: exact, as all is linear between events.
    """

    def read(
        end: float,
        start: float,
        tds: float,
        *,
        backlog: float = 0.0,
        times: Sequence[float] = (),
        rate: float = 0.0,
        rate_from: float = 0.0,
    ) -> tuple[float, float]:
        now, digested, integral = 0.0, 0.0, 0.0
        pending = sorted(times)
        events = sorted({t for t in (*pending, start, rate_from, end) if 0 < t <= end})
        for event in events:
            while pending and pending[0] <= now:
                pending.pop(0)
                backlog += 1
            while now < event:
                inflow = rate if now >= rate_from else 0.0
                appetite = tds if now >= start else 0.0
                speed = appetite if backlog > 0 else min(appetite, inflow)
                step = event - now
                if backlog > 0 and speed > inflow:
                    step = min(step, backlog / (speed - inflow))
                integral += digested * step + speed * step * step / 2
                digested += speed * step
                backlog += (inflow - speed) * step
                if step < event - now:
                    backlog, now = 0.0, now + step
                else:
                    now = event
                if backlog < 1e-12:
                    backlog = 0.0
        return digested, integral

    return read


@pytest.fixture(scope="session")
def make_snapshot() -> Callable[..., Snapshot]:
    """
    A random snapshot of n requests; keyword arguments replace whole fields.

    All states occur, ages from before ttft_s to a minute, readers behind and ahead.
    """

    def make(n: int, seed: int = 0, **fields: Any) -> Snapshot:
        rng = np.random.default_rng(seed)
        time_s = 100.0
        age_s = np.sort(rng.choice([0.25, 0.75, 3.0, 10.0, 60.0], n) * rng.uniform(0.5, 1, n))
        prompt, generated = rng.integers(8, 600, n), rng.integers(0, 300, n)
        ttft_s, tds = np.full(n, 1.0), rng.uniform(3.5, 6.0, n)
        state = rng.choice([State.WAITING, State.RUNNING, State.PREEMPTED, State.HELD], n)
        generated[state == State.WAITING] = 0
        resident = (state == State.RUNNING) | (state == State.HELD)
        need = (-(-(prompt + generated) // 16) + 1) * 16
        ideal = tds * np.maximum(age_s[::-1] - ttft_s, 0)
        digested = np.minimum(rng.uniform(0.3, 1.0, n) * ideal, generated)
        values: dict[str, Any] = {
            "time_s": time_s,
            "request_id": np.arange(n),
            "arrival_s": time_s - age_s[::-1],
            "prompt_tokens": prompt,
            "generated_tokens": generated,
            "kv_tokens": np.where(resident, need - 16, 0),
            "need_tokens": need,
            "state": state.astype(np.int8),
            "ttft_s": ttft_s,
            "tds": tds,
            "digested": digested,
            "area": digested * np.maximum(age_s[::-1] - ttft_s, 0) * rng.uniform(0.2, 0.5, n),
            "preemptions": np.zeros(n, dtype=np.int64),
            "restore_s": np.where(resident, 0.0, rng.uniform(0.01, 0.5, n)),
            "capacity_tokens": max(16, int(need.sum() * rng.uniform(0.2, 0.8)) // 16 * 16),
            "block_tokens": 16,
            "max_batch": 256,
            "token_budget": 2048,
            "latency": LatencyModel(0.1, 0.02, 1e-5, 1.2e-4),
            "requests_seen": n,
            "preemptions_seen": 0,
        }
        assert math.isfinite(float(values["area"].sum()))
        return Snapshot(**(values | fields))

    return make
