"""
How much of a preempted request's KV vLLM's prefix cache still has when it comes back.

    python -m benchmarks.resume_hits                    # the table of docs/live.md
    python -m benchmarks.resume_hits --rates 4 --requests 100

Needs vLLM. Its scheduler with its own prefix cache is stepped without a model, in virtual time by
the latency of a profile; no two requests share a prefix. The same requests are then simulated with
the share found, and with none: a profile's ``recompute_hit_share`` is this share.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from andes_opt import qoe
from andes_opt.engine import as_served
from andes_opt.policy.fcfs import FCFS
from engine_adapter.settings import instantiate
from experiments.analysis.markdown import markdown
from experiments.configuration.compose import build, load
from experiments.live.vllm_command import adapter_settings

if TYPE_CHECKING:
    from live_differential import Run

    from andes_opt.engine import EngineProfile
    from andes_opt.workload import Requests

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # it logs to standard output
# The harness that steps vLLM's scheduler without a model is the tests'.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "engine_adapter"))

ARMS = ("fcfs", "andes", "thrift", "round_robin")


def measure(model: str, requests: Requests, profile: EngineProfile, arm: str) -> dict[str, Any]:
    """A row of the table: vLLM's run, and the simulator's with and without the share found."""
    from live_differential import VirtualEngine, simulated

    spec = None
    if arm != "fcfs":
        solver = ["solver=greedy"] if arm in ("andes", "thrift") else []
        spec = adapter_settings([f"policy={arm}", *solver])["policy"]
    vllm = VirtualEngine(model, requests, profile, spec, prefix_caching=True).run()
    had, found = np.array(vllm.returns, dtype=np.int64).reshape(-1, 2).T
    share = float(found.sum() / had.sum()) if had.size else 0.0
    blocks = profile.block_tokens
    row: dict[str, Any] = {
        "policy": arm,
        "returns": had.size,
        "KV found": share,
        "all found": float((found >= had // blocks * blocks).mean()) if had.size else 0.0,
        "none found": float((found == 0).mean()) if had.size else 0.0,
    }
    runs = {"vLLM": vllm}
    for name, hit_share in (("share", share), ("0", 0.0)):
        twin = replace(profile, recompute_hit_share=hit_share)
        policy = FCFS() if spec is None else instantiate(spec)
        runs[name] = simulated(requests, twin, policy)
    for name, run in runs.items():
        row[f"area, {name}"] = _area(requests, profile, run)
    for name, run in runs.items():
        row[f"preemptions, {name}"] = float(run.preemptions.sum() / requests.num_requests)
    return row


def _area(requests: Requests, profile: EngineProfile, run: Run) -> float:
    """Mean QoE (`area`) of the requests that were served."""
    _, refused = as_served(requests, profile)
    return float(
        np.mean(
            [
                qoe.area(np.array(times), qoe.QoETarget(float(ttft_s), float(tds)))
                for times, ttft_s, tds, no in zip(
                    run.token_times_s, requests.ttft_s, requests.tds, refused, strict=True
                )
                if not no
            ]
        )
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--rates", type=float, nargs="+", default=[5.0, 7.0])
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--engine", default="opt_66b_recompute")
    parser.add_argument("--capacity-tokens", type=int, default=30_000)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    options = parser.parse_args()
    logging.disable(logging.WARNING)

    from live_stepping import write_tiny_config

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for rate in options.rates:
            config = load(
                "simulate",
                [
                    f"engine={options.engine}",
                    f"engine.capacity_tokens={options.capacity_tokens}",
                    "engine.max_context_tokens=4096",
                    "workload=poisson",
                    f"workload.rate={rate}",
                    f"workload.requests={options.requests}",
                ],
            )
            profile = build(config, "engine")
            model = write_tiny_config(Path(folder), positions=profile.max_context_tokens)
            requests = build(config, "workload").generate(0)
            rows += [
                {"rate": rate, **measure(model, requests, profile, arm)} for arm in options.arms
            ]
    decimals = {name: 3 for name in rows[0] if name.startswith("area")}
    decimals |= {name: 2 for name in rows[0] if name.startswith("preemptions")}
    decimals |= {"KV found": 3, "all found": 2, "none found": 2, "returns": 0, "rate": 1}
    print(markdown(pl.DataFrame(rows), decimals))


if __name__ == "__main__":
    main()
