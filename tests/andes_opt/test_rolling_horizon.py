"""The rolling horizon: its integer program against enumeration, and what becomes of its plan."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest

from andes_opt.engine import EngineProfile
from andes_opt.latency import LatencyModel
from andes_opt.metrics import summarise
from andes_opt.policy import FCFS, RollingHorizon
from andes_opt.policy import rolling_horizon as module
from andes_opt.policy.rolling_horizon import SlotProblem
from andes_opt.simulator import simulate
from andes_opt.workload import Poisson

if TYPE_CHECKING:
    from collections.abc import Callable

    from andes_opt.snapshot import Snapshot


def problem(seed: int, n: int = 4, slots: int = 2) -> SlotProblem:
    """A small program in which memory binds."""
    rng = np.random.default_rng(seed)
    return SlotProblem(
        weights=rng.uniform(100.0, 600.0, n),
        value=1.0 / rng.uniform(50.0, 500.0, n),
        backlog=rng.uniform(0.0, 60.0, n),
        left=rng.uniform(1.0, 200.0, n),
        speed=rng.uniform(3.0, 8.0, n),
        before_s=rng.uniform(0.0, 2.0, n),
        resident=rng.random(n) < 0.5,
        eviction_cost=rng.uniform(0.0, 0.2, n),
        capacity=900.0,
        max_batch=3,
        rate=12.0,
        slots=slots,
        slot_s=8.0,
    )


def cost(given: SlotProblem, served: np.ndarray) -> float:
    """What a choice costs, written out; infinite if it does not fit."""
    total, supply, kept = 0.0, np.zeros(given.weights.size), given.resident.astype(float)
    for k in range(given.slots):
        now = served[:, k].astype(float)
        if now @ given.weights > given.capacity or now.sum() > given.max_batch:
            return float("inf")
        total += float((given.eviction_cost * np.maximum(0.0, kept - now)).sum())
        supply, kept = supply + now * given.rate * given.slot_s, now
        read = given.speed * np.maximum(0.0, (k + 1) * given.slot_s - given.before_s)
        lacking = np.minimum(read, given.backlog + given.left) - given.backlog - supply
        total += float((given.value * np.maximum(0.0, lacking)).sum()) / given.slots
    return total


@pytest.mark.parametrize("seed", range(12))
def test_the_program_is_solved_to_its_optimum(seed: int) -> None:
    """HiGHS finds what trying every choice finds."""
    given = problem(seed)
    found = given.solve(relative_gap=0.0, nodes=10_000)
    assert found is not None
    shape = found.shape
    tried = (
        cost(given, np.array(bits, dtype=bool).reshape(shape))
        for bits in itertools.product((False, True), repeat=found.size)
    )
    assert cost(given, found) == pytest.approx(min(tried), abs=1e-6)


def test_the_plan_is_followed_until_it_is_due(
    make_snapshot: Callable[..., Snapshot], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot at the same time solves nothing; without a solution the most urgent are served."""
    solves = []
    original = SlotProblem.solve

    def counted(self: SlotProblem, relative_gap: float, nodes: int) -> np.ndarray | None:
        solves.append(self.weights.size)
        return original(self, relative_gap, nodes) if len(solves) == 1 else None

    monkeypatch.setattr(module.SlotProblem, "solve", counted)
    shot = make_snapshot(25, 1)
    policy = RollingHorizon(slots=2)
    first, second = policy.decide(shot), policy.decide(shot)
    assert first.action is not None and second.action is not None
    assert len(solves) == 1
    np.testing.assert_array_equal(first.action, second.action)
    without = RollingHorizon(slots=2).decide(shot)
    assert len(solves) == 2
    assert without.action is not None and without.action.any()


def test_it_serves_readers_better_than_fcfs() -> None:
    """Under twice the load that a small cache bears, most readers are happier, and all served."""
    engine = EngineProfile(
        "small",
        LatencyModel(0.035, 3e-4, 4e-7, 1.2e-4),
        capacity_tokens=12_000,
        swap_s_per_token=2.95e-5,
    )
    requests = Poisson(rate=2.5, requests=120).generate(seed=3)
    fcfs = summarise(simulate(requests, engine, FCFS()))
    policy = RollingHorizon(slots=2, slot_s=10.0, replan_s=2.0, candidates=60, nodes=1)
    rolling = summarise(simulate(requests, engine, policy))
    assert rolling["unfinished"] == 0
    assert rolling["qoe_area_mean"] > fcfs["qoe_area_mean"] + 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slots": 0}, "slots = 0"),
        ({"slot_s": 0.0}, "slot_s = 0.0"),
        ({"replan_s": -1.0}, "replan_s = -1.0"),
        ({"stall_price": -1.0}, "stall_price = -1.0"),
        ({"candidates": 0}, "candidates = 0"),
        ({"relative_gap": -0.1}, "relative_gap = -0.1"),
        ({"nodes": 0}, "nodes = 0"),
        ({"kv_pressure": 0.0}, "kv_pressure = 0.0"),
    ],
)
def test_bad_options_are_refused(options: dict[str, float], message: str) -> None:
    """Options out of range get one sentence with the value."""
    with pytest.raises(ValueError, match=message):
        RollingHorizon(**options)  # type: ignore[arg-type]
