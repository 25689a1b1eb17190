"""The engine loop against a second simulator, written from vLLM's rules in plain Python."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andes_opt import qoe
from andes_opt.engine import EngineProfile
from andes_opt.latency import LatencyModel
from andes_opt.policy.fcfs import FCFS
from andes_opt.simulator import simulate
from andes_opt.workload import Poisson, Requests

OPT_66B = LatencyModel(
    base_s=0.035, per_request_s=3e-4, per_context_token_s=4e-7, per_prefill_token_s=1.2e-4
)


@dataclass
class Sequence:
    """A request as the second simulator sees it."""

    arrival_s: float
    prompt: int
    output: int
    computed: int = 0
    blocks: int = 0
    preemptions: int = 0
    times_s: list[float] = field(default_factory=list)

    @property
    def lacking(self) -> int:
        return self.prompt + len(self.times_s) - self.computed


def first_come_first_served(requests: Requests, engine: EngineProfile) -> list[Sequence]:
    """Serve all requests as vLLM does: lists, no arrays, nothing shared with the engine loop."""
    everybody = [
        Sequence(*numbers)
        for numbers in zip(
            requests.arrival_s.tolist(),
            requests.prompt_tokens.tolist(),
            requests.output_tokens.tolist(),
            strict=True,
        )
    ]
    coming, waiting, running = list(everybody), [], []
    free, now, swapped_tokens = engine.num_blocks, 0.0, 0
    while coming or waiting or running:
        if not waiting and not running:
            now = max(now, coming[0].arrival_s)
        while coming and coming[0].arrival_s <= now:
            waiting.append(coming.pop(0))

        budget, preempted = engine.token_budget, False
        scheduled: list[tuple[Sequence, int]] = []
        for sequence in list(running):
            if sequence not in running or budget == 0:
                continue
            chunk = min(sequence.lacking, budget)
            needed = -(-(sequence.computed + chunk) // engine.block_tokens) - sequence.blocks
            while needed > free and sequence in running:
                victim = running.pop()
                free += victim.blocks
                swapped_tokens += victim.computed
                victim.blocks, victim.preemptions = 0, victim.preemptions + 1
                if engine.preemption == "recompute":
                    victim.computed = 0
                waiting.insert(0, victim)
                preempted = True
            if sequence in running:
                free, sequence.blocks = free - needed, sequence.blocks + needed
                scheduled.append((sequence, chunk))
                budget -= chunk
        while waiting and not preempted and budget > 0 and len(running) < engine.max_batch:
            sequence = waiting[0]
            chunk = min(sequence.lacking, budget)
            needed = -(-(sequence.computed + chunk) // engine.block_tokens)
            known = min(sequence.prompt + len(sequence.times_s), engine.max_context_tokens)
            whole = -(-known // engine.block_tokens)
            to_leave = int(engine.watermark * (engine.num_blocks + 1)) if running else 0
            if max(needed, whole if engine.reserve_full_context else 0) + to_leave > free:
                break
            free, sequence.blocks = free - needed, needed
            swapped_tokens += sequence.computed
            running.append(waiting.pop(0))
            scheduled.append((sequence, chunk))
            budget -= chunk

        decoding = [s for s, _ in scheduled if s.times_s and s.lacking == 1]
        tokens = sum(chunk for _, chunk in scheduled)
        now += (
            engine.latency.base_s
            + engine.latency.per_request_s * len(decoding)
            + engine.latency.per_context_token_s * sum(s.computed + 1 for s in decoding)
            + engine.latency.per_prefill_token_s * (tokens - len(decoding))
        )
        if tokens > len(decoding):
            now += engine.latency.mixed_base_s
            now += engine.latency.mixed_per_request_s * len(decoding)
        if engine.preemption == "swap":
            now += swapped_tokens * engine.swap_s_per_token
        swapped_tokens = 0
        for sequence, chunk in scheduled:
            sequence.computed += chunk
            if sequence.lacking == 0:
                sequence.times_s.append(now - sequence.arrival_s)
            if len(sequence.times_s) == sequence.output:
                running.remove(sequence)
                free += sequence.blocks
    return everybody


def compare(requests: Requests, engine: EngineProfile) -> int:
    """Both simulators give the same times, preemptions and QoE; how often they preempted."""
    result = simulate(requests, engine, FCFS(), record_tokens=True)
    assert not result.rejected.any()
    expected = first_come_first_served(requests, engine)
    assert result.preemptions.tolist() == [sequence.preemptions for sequence in expected]
    assert result.token_times_s is not None
    for k, sequence in enumerate(expected):
        np.testing.assert_allclose(result.token_times_s[k], sequence.times_s, atol=1e-7)
        target = qoe.QoETarget(float(requests.ttft_s[k]), float(requests.tds[k]))
        assert result.qoe_area[k] == pytest.approx(qoe.area(sequence.times_s, target), abs=1e-6)
    return int(result.preemptions.sum())


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 30),
    preemption=st.sampled_from(["swap", "recompute"]),
    capacity_tokens=st.sampled_from([192, 512, 4096]),
    token_budget=st.sampled_from([7, 64, 2048]),
    reserve_full_context=st.booleans(),
    watermark=st.sampled_from([0.0, 0.01, 0.1, 0.5]),
    mixed=st.sampled_from([(0.0, 0.0), (-0.03, 5e-4), (0.02, -3e-4)]),
)
def test_the_engine_loop_agrees_with_a_plain_simulator(
    seed: int,
    n: int,
    preemption: str,
    capacity_tokens: int,
    token_budget: int,
    reserve_full_context: bool,
    watermark: float,
    mixed: tuple[float, float],
) -> None:
    """Every token of every request leaves at the same moment, under swap and recompute."""
    rng = np.random.default_rng(seed)
    requests = Requests(
        arrival_s=np.concatenate(([0.0], np.cumsum(rng.exponential(0.2, n - 1)))),
        prompt_tokens=rng.integers(1, 120, n),
        output_tokens=rng.integers(1, 60, n),
        ttft_s=rng.choice([0.0, 0.5, 1.0], n),
        tds=rng.uniform(2.0, 20.0, n),
    )
    engine = EngineProfile(
        name="tiny",
        latency=replace(OPT_66B, mixed_base_s=mixed[0], mixed_per_request_s=mixed[1]),
        capacity_tokens=capacity_tokens,
        block_tokens=16,
        max_batch=8,
        token_budget=token_budget,
        preemption=preemption,  # type: ignore[arg-type]
        swap_s_per_token=1e-4,
        reserve_full_context=reserve_full_context,
        watermark=watermark,
    )
    compare(requests, engine)


@pytest.fixture
def opt_66b() -> EngineProfile:
    """The reference profile of the studies."""
    return EngineProfile(
        name="opt_66b_4xa100",
        latency=OPT_66B,
        capacity_tokens=60_000,
        block_tokens=16,
        max_batch=256,
        token_budget=2048,
        preemption="swap",
        swap_s_per_token=2.95e-5,
    )


def test_an_overloaded_chat_service_agrees(opt_66b: EngineProfile) -> None:
    """400 ShareGPT requests at 8 a second: a full cache, a queue, and preemptions."""
    assert compare(Poisson(rate=8.0, requests=400).generate(0), opt_66b) > 20


def test_what_a_full_cache_sustains_by_hand(opt_66b: EngineProfile) -> None:
    """
    With a standing queue FCFS completes as many requests/s as the profile's formula says.

    A request holds prompt + j tokens while it makes its j-th token, so a full cache has
    B = M / (tokens held, mean over a request's life) requests, an iteration takes
    base + B (request + prompts/output per token) + context M, and gives B tokens: 3.8
    requests/s for ShareGPT lengths. Preemptions, which this leaves out, cost some percent.
    """
    requests = Poisson(rate=50.0, requests=6000).generate(1)
    prompt, output = requests.prompt_tokens, requests.output_tokens
    held = float((prompt * output + output * (output + 1) / 2).sum() / output.sum())
    held += opt_66b.block_tokens / 2  # the last block is half full on average
    batch = opt_66b.capacity_tokens / held
    per_token_s = OPT_66B.per_prefill_token_s * prompt.sum() / output.sum()
    iteration_s = (
        OPT_66B.base_s
        + batch * (OPT_66B.per_request_s + per_token_s)
        + OPT_66B.per_context_token_s * opt_66b.capacity_tokens
    )
    by_hand = batch / iteration_s / output.mean()

    done_s = np.sort(requests.arrival_s + simulate(requests, opt_66b, FCFS()).completion_s)
    middle = done_s[1000:5000]
    simulated = (middle.size - 1) / (middle[-1] - middle[0])
    assert by_hand == pytest.approx(3.8, abs=0.1)
    assert 0.92 * by_hand < simulated < by_hand
