"""A real vLLM engine, on a GPU where there is one: our streams against vLLM's own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from live_model import write_model

pytestmark = [pytest.mark.live, pytest.mark.slow]

HERE = Path(__file__).parent
#: Closer than this, the order of two log-probabilities may depend on the batch.
TIE = 1e-4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small OPT with real random weights."""
    return write_model(tmp_path_factory.mktemp("model"))


def run_engine(model: str, result: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Run live_engine.py in a process group of its own, and leave nothing of it behind."""
    # One thread: with several, each waits for the others on a busy machine.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    # On a GPU, attention in float32 would round to fewer bits: then far more streams nearly tie.
    environment["TRITON_F32_DEFAULT"] = "ieee"
    process = subprocess.Popen(
        [sys.executable, str(HERE / "live_engine.py"), model, str(result), json.dumps(options)],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    try:
        output, _ = process.communicate(timeout=400)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output[-4000:]
    values: dict[str, Any] = json.loads(result.read_text())
    return values


@pytest.mark.parametrize("asynchronous", [False, True])
def test_streams(model: str, asynchronous: bool, tmp_path: Path) -> None:
    """
    Hundreds of requests under random service, holds and evictions get stock vLLM's tokens.

    With greedy sampling, tiny KV, shared prefixes and aborts. A stream may differ only from a
    token on whose two best log-probabilities lie within 1e-4, and fewer than 1 % may.
    """
    options = {
        "asynchronous": asynchronous,
        "requests": 200,
        "seed": 1 + asynchronous,
        "blocks": 30,
        "policy": {"_target_": "live_policies.Random", "seed": 1},
    }
    result = run_engine(model, tmp_path / "result.json", options)
    assert result["depth"] == (2 if asynchronous else 1)
    ours, stock = result["ours"], result["stock"]
    assert set(ours["finished"]) == set(stock["finished"])
    assert len(stock["finished"]) > 180

    divergences = []
    for key, expected in stock["streams"].items():
        got = ours["streams"][key]
        both = min(len(expected), len(got))
        if key in stock["finished"]:
            assert len(got) == len(expected)
        for position in range(both):
            if got[position] != expected[position]:
                divergences.append((key, position, stock["margins"][key][position]))
                break
    print("divergences (stream, position, margin):", divergences)
    assert all(margin <= TIE for _, _, margin in divergences), divergences
    assert len(divergences) < 0.01 * len(stock["streams"]), divergences
    assert len({token for stream in stock["streams"].values() for token in stream}) > 100

    adapter = result["adapter"]
    # A held request keeps a place, so that fewer are held than in the days of free holds.
    assert adapter["evicted"] > 200 and adapter["held"] > 200
    assert adapter["events"].get("adapter failed", 0) == 0
    assert adapter["events"]["target not understood"] == options["requests"] // 10
    assert adapter["unfinished"] == 0
