"""
How close the emulator is: to the simulator, and to preemptions counted on a GPU.

    python -m benchmarks.emulator_closeness simulator    # policies, both ways
    python -m benchmarks.emulator_closeness preemptions  # a closed loop, by seed

Each prints a table of docs/emulate.md. Needs vLLM. No time is measured.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import polars as pl

from andes_opt.metrics import summarise
from experiments.analysis.markdown import markdown
from experiments.configuration.compose import load
from experiments.live.vllm_command import checked_settings
from experiments.runs.emulation import run_emulation
from experiments.runs.simulation import run_simulation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: An overload that none of the policies serves without loss.
OVERLOAD = ("engine=opt_66b_recompute", "workload.rate=5.5")
#: Qwen2.5-7B on a GB200; the iteration time does not matter to a closed loop's preemptions.
CLOSED_LOOP = (
    "stock=true",
    "engine=qwen32b_h200",
    "engine.capacity_tokens=299584",
    "engine.max_context_tokens=8192",
    "engine.token_budget=8192",
    "concurrency=128",
    "lengths=uniform",
    "lengths.prompt_tokens=[800,1200]",
    "lengths.output_tokens=[4000,6000]",
    "vllm.enable-prefix-caching=false",
)


def emulated(overrides: Sequence[str]) -> dict[str, float]:
    """The summary of an emulation."""
    config = load("emulate", overrides)
    settings = None if config.stock else checked_settings(config.live)
    return summarise(run_emulation(config, settings))


def against_the_simulator(requests: int) -> str:
    """The table of policies, emulated and simulated."""
    policies = {"stock": ("stock=true",), "andes": ("policy=andes",), "thrift": ("policy=thrift",)}
    rows = []
    for name, choice in policies.items():
        words = [*OVERLOAD, f"workload.requests={requests}"]
        policy = "policy=fcfs" if name == "stock" else choice[0]
        ways = {
            "emulated": emulated([*words, *choice]),
            "simulated": summarise(run_simulation(load("simulate", [*words, policy]))),
        }
        rows.append({"policy": "stock, FCFS" if name == "stock" else name, **_columns(ways)})
    return markdown(pl.DataFrame(rows), {name: 3 for name in rows[0] if name != "policy"})


def _columns(ways: dict[str, dict[str, float]]) -> dict[str, Any]:
    metrics = {
        "QoE area": "qoe_area_mean",
        "QoE window": "qoe_window_mean",
        "preemptions/request": "preemptions_per_request",
    }
    return {
        f"{name}, {way}": summary[metric]
        for name, metric in metrics.items()
        for way, summary in ways.items()
    }


def of_a_closed_loop(requests: int) -> str:
    """The table of preemptions by seed."""
    rows = []
    for seed in range(3):
        words = [*CLOSED_LOOP, f"workload.requests={requests}", f"seed={seed}"]
        summary = emulated(words)
        rows.append(
            {name: int(summary[name]) for name in ("requests", "iterations", "preemptions")}
        )
        rows[-1] = {"seed": seed, **rows[-1]}
    return markdown(pl.DataFrame(rows), {})


TABLES: dict[str, tuple[Callable[[int], str], int]] = {
    "simulator": (against_the_simulator, 1_000),
    "preemptions": (of_a_closed_loop, 450),
}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--requests", type=int)
    given = parser.parse_args()
    make, usual = TABLES[given.table]
    print(make(given.requests or usual))


if __name__ == "__main__":
    main()
