"""Runs made by hand, for the tests of the report."""

from __future__ import annotations

import numpy as np
import polars as pl

from andes_opt import qoe
from andes_opt.qoe import QoETarget
from experiments.runs.columns import SCHEMA, frame
from experiments.runs.records import Run

KEY = {
    "command": "simulate",
    "policy": "fcfs",
    "solver": None,
    "objective": None,
    "engine": "small",
    "workload": "poisson",
    "lengths": "fixed",
    "readers": "reading",
    "rate": 1.0,
    "seed": 0,
    "overrides": "",
}
ENVIRONMENT = {"schema": SCHEMA, "run": {"configuration": "a", "code": "b"}, "git": None}


def requests(delay_s, seed=0, n=20):
    """Columns of n requests whose first token comes after about ``delay_s``; token times."""
    rng = np.random.default_rng(seed)
    first_s = delay_s * rng.uniform(0.5, 1.5, n) + 0.1
    tokens = rng.integers(2, 12, n)
    times = [first + 0.15 * np.arange(count) for first, count in zip(first_s, tokens, strict=True)]
    target = QoETarget(1.0, 5.0)
    columns = {
        "request": np.arange(n),
        "arrival_s": np.arange(n) * 0.5,
        "prompt_tokens": np.full(n, 10),
        "output_tokens": tokens,
        "ttft_s": np.full(n, target.ttft_s),
        "tds": np.full(n, target.tds),
        "rejected": np.zeros(n, dtype=bool),
        "first_token_s": first_s,
        "completion_s": [each[-1] for each in times],
        "preemptions": np.zeros(n, dtype=int),
    }
    for definition in ("area", "delay", "window"):
        score = getattr(qoe, definition)
        columns[f"qoe_{definition}"] = [score(each, target) for each in times]
    return columns, times


def write_run(folder, delay_s=0.5, *, detail=False, environment=ENVIRONMENT, **key):
    """A complete run with rows per request; ``detail`` adds tokens and a timeline."""
    folder.mkdir(parents=True)
    key = KEY | key
    columns, times = requests(delay_s, key["seed"] or 0)
    if detail:
        number = np.repeat(np.arange(len(times)), [each.size for each in times])
        tokens = pl.DataFrame({"request": number, "time_s": np.concatenate(times)})
        tokens.write_parquet(folder / "tokens.parquet")
        steps = np.arange(700)
        timeline = {
            "time_s": 0.1 * steps,
            "decoding": 5.0 + steps % 7,
            "prefill_tokens": 0.0 * steps,
            "kv_tokens": 100.0 * (1 + steps % 9),
            "waiting": 1.0 * (steps % 3),
            "held": 0.0 * steps,
        }
        pl.DataFrame(timeline).write_parquet(folder / "timeline.parquet")
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "config.yaml").write_text("engine: {capacity_tokens: 1000}\n")
    Run(folder, environment).finish(frame(columns, **key), {"requests": 20.0})
    return folder


def write_answers(folder, solvers=("greedy", "exact"), instances=5, overrides="families=[hard]"):
    """A complete run with rows per instance and solver; the first solver has a gap."""
    folder.mkdir(parents=True)
    names = [f"i{k}" for k in range(instances) for _ in solvers]
    first = [solver == solvers[0] for _ in range(instances) for solver in solvers]
    columns = {
        "solver": list(solvers) * instances,
        "source": ["hard"] * len(names),
        "instance": names,
        "certified": [not each for each in first],
        "gap_percent": [
            1.0 + 0.1 * (k // len(solvers)) if each else 0.0 for k, each in enumerate(first)
        ],
        "wall_s": [1e-4 if each else 2e-3 for each in first],
        "status": ["feasible" if each else "optimal" for each in first],
    }
    rows = frame(columns, command="quality", seed=0, overrides=overrides)
    Run(folder, ENVIRONMENT).finish(rows, {"instances": instances})
    return folder


def write_everything(folder):
    """Three policies at three rates with three seeds, one run in detail, and solvers."""
    slow = {"fcfs": 0.6, "andes": 0.4, "round_robin": 0.5}
    for policy, delay_s in slow.items():
        solver = "exact" if policy == "andes" else None
        for rate in (1.0, 2.0, 3.0):
            for seed in range(3):
                write_run(
                    folder / f"{policy}_{rate}_{seed}",
                    delay_s * rate**2,
                    policy=policy,
                    solver=solver,
                    rate=rate,
                    seed=seed,
                    detail=rate == 3.0 and seed == 1 and policy != "round_robin",
                )
    write_answers(folder / "quality")
    return folder
