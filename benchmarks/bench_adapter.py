"""
Processor time that the adapter takes on the engine's thread, with many requests.

    python -m benchmarks.bench_adapter                  # the table of docs/live.md
    python -m benchmarks.bench_adapter --active 80 --arms andes:greedy --iterations 2000
    python -m benchmarks.bench_adapter --step-ms 5      # an engine of short iterations

Needs vLLM. Its scheduler is stepped without a model; an iteration is said to take 30 ms. As many
requests as asked for are unfinished all the time, a third of them fit the KV cache, and
every reader is behind, so the policy is asked as often as the adapter's own pace allows. Times are
processor time of the thread around the adapter's code, and what other programs do to
caches disturbs them still, hence the load in the headline.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.machine import headline
from engine_adapter.clock import SystemClock
from experiments.analysis.markdown import markdown
from experiments.live.vllm_command import adapter_settings

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # it logs to standard output
# The harness that steps vLLM's scheduler without a model is the tests'.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "engine_adapter"))

PARTS = ("observe", "snapshot", "decide", "apply")
_BLOCK_TOKENS = 32


class SteppedClock(SystemClock):
    """The engine's time passes between iterations, and never within; work is measured."""

    now_s: float = 0.0

    def monotonic_s(self) -> float:
        """Returns the time that the benchmark has set."""
        return self.now_s


@dataclass(slots=True)
class SameTokenWorker:
    """A model that answers every request with the same token."""

    known: dict[str, int] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)

    def execute(self, output: Any) -> Any:
        """Run one iteration: a token for each request that has no prompt left to compute."""
        from vllm.v1.outputs import ModelRunnerOutput

        for new in output.scheduled_new_reqs:
            self.known[new.req_id] = len(new.prompt_token_ids)
            self.done[new.req_id] = new.num_computed_tokens
        data = output.scheduled_cached_reqs
        for key, computed in zip(data.req_ids, data.num_computed_tokens, strict=True):
            self.done[key] = computed
        keys = list(output.num_scheduled_tokens)
        sampled: list[list[int]] = []
        for key in keys:
            self.done[key] += output.num_scheduled_tokens[key]
            ends = self.done[key] >= self.known[key]
            self.known[key] += ends
            sampled.append([7] if ends else [])
        return ModelRunnerOutput(
            req_ids=keys,
            req_id_to_index={key: i for i, key in enumerate(keys)},
            sampled_token_ids=sampled,
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )


@dataclass(slots=True)
class TimedController:
    """A controller whose every call is timed, in processor seconds of this thread."""

    controller: Any
    own_s: list[float] = field(default_factory=list)

    @property
    def events(self) -> Any:
        """The controller's."""
        return self.controller.events

    def before(self) -> None:
        """Prepare the engine's queues."""
        began_s = time.thread_time()
        self.controller.before()
        self.own_s.append(time.thread_time() - began_s)

    def restore(self) -> None:
        """Put back what is hidden."""
        began_s = time.thread_time()
        self.controller.restore()
        self.own_s[-1] += time.thread_time() - began_s

    def after(self, output: Any) -> None:
        """Learn from what was scheduled."""
        began_s = time.thread_time()
        self.controller.after(output)
        self.own_s[-1] += time.thread_time() - began_s

    def failed(self, error: Exception) -> None:
        """No benchmark of a broken adapter."""
        raise error

    def close(self) -> None:
        """End what the controller started."""
        self.controller.close()


def measure(
    model: str, active: int, policy: str, solver: str, iterations: int, step_s: float
) -> dict[str, Any]:
    """
    Step an engine under a policy.

    Parameters
    ----------
    model
        Folder with a model's configuration.
    active
        Unfinished requests, all the time.
    policy, solver
        Names in ``conf/``.
    iterations
        Measured, after a tenth as many that are not.
    step_s
        How long an iteration of the engine takes.
    """
    from live_stepping import Engine, make_scheduler

    from engine_adapter.scheduler import AndesScheduler, make_controller

    settings = adapter_settings([f"policy={policy}", f"solver={solver}"])
    mean_context = 170 + 75
    scheduler = make_scheduler(
        model,
        AndesScheduler,
        blocks=active * mean_context // _BLOCK_TOKENS // 3,
        block_tokens=_BLOCK_TOKENS,
        max_batch=256,
        token_budget=2048,
        max_context=1024,
        asynchronous=True,
        additional_config={"andes_opt": settings},
    )
    clock = SteppedClock()
    scheduler.andes.close()
    timed = TimedController(make_controller(scheduler, clock))
    scheduler.andes = timed
    worker = SameTokenWorker()
    engine = Engine(scheduler, worker, depth=2)
    rng = random.Random(0)
    count = 0
    running = []
    warm = iterations // 10 + 300  # the first of which fill the engine
    for step in range(warm + iterations):
        while len(scheduler.requests) < active:
            prompt = [rng.randrange(250) for _ in range(rng.randint(1, 340))]
            engine.add(str(count), prompt, rng.randint(1, 300), ttft_s=1.0, tds=4.8)
            count += 1
        engine.step()
        clock.now_s += step_s
        if step == warm:
            before = timed.controller.summary()
        running.append(len(scheduler.running))
    after = timed.controller.summary()
    own_s = np.array(timed.own_s[-iterations:])
    scheduler.shutdown()
    # Other programs may make a decision slow, but nothing may fail.
    if set(after["events"]) - {"planner slow"}:
        raise RuntimeError(f"the adapter had events: {after['events']}.")
    means_ms = {
        part: 1e3 * (after[f"{part}_s"] - before[f"{part}_s"]) / iterations for part in PARTS
    }
    shares = {
        f"{name} share %": 100 * (after[f"{name}_s"] - before[f"{name}_s"]) / (iterations * step_s)
        for name in ("planning", "adapter")
    }
    return {
        "requests": active,
        "running": float(np.mean(running[-iterations:])),
        "policy": f"{policy} ({solver})",
        **{f"{part} ms": mean_ms for part, mean_ms in means_ms.items()},
        "iterations/plan": iterations / max(1, after["plans"] - before["plans"]),
        "adapter ms": sum(means_ms.values()),
        "CPU ms": 1e3 * float(own_s.mean()),
        "p99 ms": 1e3 * float(np.quantile(own_s, 0.99)),
        **shares,
    }


def main() -> None:
    """Print the machine and the table."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--active", type=int, nargs="+", default=[80, 500])
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument(
        "--arms", nargs="+", default=["andes:greedy", "andes:exact", "thrift:exact"],
        help="policy:solver",
    )  # fmt: skip
    parser.add_argument("--step-ms", type=float, default=30.0, help="the engine's iteration")
    options = parser.parse_args()

    from live_stepping import write_tiny_config

    with tempfile.TemporaryDirectory() as folder:
        model = write_tiny_config(Path(folder))
        rows = [
            measure(model, active, *arm.split(":"), options.iterations, options.step_ms / 1e3)
            for active in options.active
            for arm in options.arms
        ]
    print(headline() + "\n")
    decimals = {name: 3 for name in rows[0] if name.endswith("ms")}
    decimals |= {"running": 0, "iterations/plan": 1}
    decimals |= {name: 2 for name in rows[0] if name.endswith("share %")}
    print(markdown(pl.DataFrame(rows), decimals))


if __name__ == "__main__":
    main()
