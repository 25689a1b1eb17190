"""
CPU time and memory of the emulator, and whose time it is.

``python -m benchmarks.bench_emulator`` writes ``docs/results/emulator_speed.md``; give another
path to write it there, and ``--requests`` for a shorter look. Needs vLLM. One process, one thread,
after imports and a warm-up; CPU time of the thread, so that other work on the machine disturbs
little, but a busy machine's caches are slower all the same.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from benchmarks.machine import headline
from experiments.analysis.markdown import markdown
from experiments.configuration.compose import build, load
from experiments.live.vllm_command import checked_settings
from experiments.runs.emulation import quiet_vllm
from experiments.runs.files import write_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine_adapter.emulator import EmulationResult

ENGINE, RATE = "opt_66b_recompute", 6.0
#: A rate that the engine sustains: the number of active requests does not depend on n.
CALM_RATE = 3.0
#: What is timed: its name, and overrides of conf/emulate.yaml.
CASES = (
    ("stock", ("stock=true",)),
    ("stock, no prefix cache", ("stock=true", "vllm.enable-prefix-caching=false")),
    ("stock, synchronous", ("stock=true", "vllm.async-scheduling=false")),
    ("Andes (exact)", ("policy=andes", "solver=exact")),
    ("thrift (exact)", ("policy=thrift", "solver=exact")),
)
#: Sizes of the tables by size, over that of the others.
FACTORS = (0.5, 1.0, 2.0)


@dataclass(slots=True)
class Meter:
    """CPU seconds of this thread within some calls, those within other metered calls once."""

    inside_s: float = 0.0
    calls: int = 0
    _depth: int = 0

    def around(self, owner: Any, name: str) -> None:
        """Meter a method of an object or class until the process ends."""
        method = getattr(owner, name)

        def metered(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            began_s = time.thread_time()
            try:
                return method(*args, **kwargs)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.inside_s += time.thread_time() - began_s
                    self.calls += 1

        setattr(owner, name, metered)

    def take(self) -> float:
        """Returns the seconds since the last call."""
        seconds, self.inside_s = self.inside_s, 0.0
        return seconds


@dataclass(frozen=True, slots=True)
class Timed:
    """An emulation and where its CPU seconds went: in all, in the scheduler, per request."""

    result: EmulationResult
    cpu_s: float
    scheduler_s: float
    requests_s: float


class Bench:
    """Times emulations with vLLM's calls and our own work for requests metered."""

    def __init__(self) -> None:
        quiet_vllm()
        from vllm.v1.core.sched.scheduler import Scheduler

        from engine_adapter.emulator import emulation
        from engine_adapter.emulator.replies import Replies
        from engine_adapter.scheduler import AndesScheduler

        self._emulate = emulation.emulate
        self._scheduler, self._requests = Meter(), Meter()
        for name in ("schedule", "update_from_output", "add_request", "shutdown"):
            self._scheduler.around(Scheduler, name)
        # So is what an adapter adds around vLLM's own, and to build them.
        self._scheduler.around(AndesScheduler, "schedule")
        self._scheduler.around(emulation, "_scheduler")
        self._requests.around(emulation._Run, "_request")  # noqa: SLF001
        self._requests.around(emulation.Prompts, "make")
        self._requests.around(Replies, "end")

    def time(self, overrides: Sequence[str], rate: float, requests: int) -> Timed:
        """Emulate once."""
        config, workload, engine = _built(overrides, rate, requests)
        settings = None if config.stock else checked_settings(config.live)
        self._scheduler.take(), self._requests.take()
        began_s = time.thread_time()
        result = self._emulate(workload, engine, settings, vllm=dict(config.vllm))
        cpu_s = time.thread_time() - began_s
        return Timed(result, cpu_s, self._scheduler.take(), self._requests.take())


def _built(overrides: Sequence[str], rate: float, requests: int) -> tuple[Any, Any, Any]:
    words = [f"engine={ENGINE}", f"workload.rate={rate}", f"workload.requests={requests}"]
    config = load("emulate", [*words, *overrides])
    return config, build(config, "workload").generate(0), build(config, "engine")


def row(name: str, timed: Timed) -> dict[str, Any]:
    """A line of a table."""
    result = timed.result
    n, iterations = result.arrival_s.size, result.iterations
    ours_s = timed.cpu_s - timed.scheduler_s
    return {
        "scheduler": name,
        "requests": n,
        "iterations": iterations,
        "virtual s": result.makespan_s,
        "CPU s": timed.cpu_s,
        "times real time": result.makespan_s / timed.cpu_s,
        "us/iteration": 1e6 * timed.cpu_s / iterations,
        "ours us/iteration": 1e6 * (ours_s - timed.requests_s) / iterations,
        "ours us/request": 1e6 * timed.requests_s / n,
        "ours %": 100 * ours_s / timed.cpu_s,
    }


DECIMALS = {
    "virtual s": 0,
    "CPU s": 2,
    "times real time": 0,
    "us/iteration": 0,
    "ours us/iteration": 0,
    "ours us/request": 0,
    "ours %": 1,
}


def memory(bench: Bench, requests: int) -> str:
    """Most memory of emulations at a calm rate, by number of requests."""
    rows = []
    for factor in FACTORS:
        n = round(factor * requests / 4)  # tracing allocations is slow
        _, workload, engine = _built(("stock=true",), CALM_RATE, n)
        tracemalloc.start()
        bench._emulate(workload, engine)  # noqa: SLF001
        rows.append({"requests": n, "MB": tracemalloc.get_traced_memory()[1] / 1e6})
        tracemalloc.stop()
    return markdown(pl.DataFrame(rows), {"MB": 1})


def document(requests: int, command: str) -> str:
    """The whole page."""
    bench = Bench()
    for _, overrides in CASES:  # compile, or load what is compiled
        bench.time(overrides, RATE, min(requests, 100))
    cases = [row(name, bench.time(overrides, RATE, requests)) for name, overrides in CASES]
    linear = [
        row("stock", bench.time(("stock=true",), CALM_RATE, round(factor * requests)))
        for factor in FACTORS
    ]
    first = cases[0]
    pieces = [
        "# Speed of the emulator",
        f"Written by `{command}`; do not edit.",
        f"{ENGINE}, Poisson arrivals, ShareGPT lengths; CPU time of one thread after imports, "
        f"compiled code warm. {headline()}.",
        f"{requests} requests at {RATE:g}/s by stock vLLM with its prefix cache take "
        f"{first['CPU s']:.1f} s, {first['times real time']:.0f} times faster than real time; "
        f"{first['ours %']:.0f} % of that is ours, the rest vLLM's scheduler.",
        "## CPU time",
        f"At {RATE:g} requests/s, more than the engine can serve. *Ours* is all but vLLM's "
        "`schedule` (with the adapter in it), `update_from_output` and `add_request`, and building "
        "the scheduler. Per request are token ids, block hashes of the prompt, the request object, "
        "and the score of the reply.",
        markdown(pl.DataFrame(cases), DECIMALS),
        "## Against the number of requests",
        f"At {CALM_RATE:g} requests/s, which the engine sustains.",
        markdown(pl.DataFrame(linear), DECIMALS),
        "## Memory",
        f"Largest memory that Python holds during an emulation (`tracemalloc`) at {CALM_RATE:g} "
        "requests/s: the engine's blocks, what is active, and a few numbers for each request.",
        memory(bench, requests),
    ]
    return "\n\n".join(pieces) + "\n"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", nargs="?", type=Path, default=_DOCUMENT)
    parser.add_argument("--requests", type=int, default=1_500)
    given = parser.parse_args()
    command = "python -m benchmarks.bench_emulator"
    if given.requests != 1_500:
        command += f" --requests {given.requests}"
    text = document(given.requests, command)
    given.path.parent.mkdir(parents=True, exist_ok=True)
    write_text(given.path, text)
    print(text)


_ROOT = Path(__file__).resolve().parents[1]
_DOCUMENT = _ROOT / "docs" / "results" / "emulator_speed.md"

if __name__ == "__main__":
    main()
