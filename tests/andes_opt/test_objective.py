"""Objectives as gain models: their values, their flags, their YAML files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from andes_opt.forecast import QoEForecast
from andes_opt.gains import token_rate
from andes_opt.instance import GainModel
from andes_opt.latency import LatencyModel
from andes_opt.objective import (
    AverageQoE,
    AverageQoEWithPreemptionCost,
    MaxMinQoE,
    Objective,
    PerfectRequests,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from andes_opt.snapshot import Snapshot

    MakeSnapshot = Callable[..., Snapshot]

OBJECTIVES = (
    AverageQoE(),
    AverageQoE(dt_s=2.0),
    MaxMinQoE(),
    PerfectRequests(),
    PerfectRequests(dt_s=5.0, tolerance=0.2),
    AverageQoEWithPreemptionCost(),
    AverageQoEWithPreemptionCost(evict_cost=0.2, restore_s_per_token=0.001),
)
FILES = sorted((Path(__file__).parents[2] / "conf" / "objective").glob("*.yaml"))

seeds = st.integers(0, 2**16)
objectives = st.sampled_from(OBJECTIVES)


@settings(max_examples=120, deadline=None)
@given(objectives, seeds)
def test_flags_hold(make_snapshot: MakeSnapshot, objective: Objective, seed: int) -> None:
    """monotone, concave_in_rate and saturates are true of the numbers wherever stated."""
    snapshot = make_snapshot(12, seed)
    model = objective.gains(snapshot)
    table = model.table(0, 80)
    assert isinstance(model, GainModel)
    if model.monotone:
        assert (np.diff(table, axis=0) <= 1e-14).all()
    scalars = QoEForecast.of(snapshot, 50.0).scalars
    rates = np.array([token_rate(scalars, batch) for batch in range(81)])
    if model.concave_in_rate:
        assert (np.diff(rates) < 0).all()
        share = (rates[1:-1] - rates[2:]) / (rates[:-2] - rates[2:])
        chord = share[:, None] * table[:-2] + (1 - share[:, None]) * table[2:]
        assert (table[1:-1] >= chord - 1e-11).all()
    if objective.saturates:
        fast = rates > snapshot.tds.max()
        assert (table[fast] == table[0]).all()


def test_every_objective_states_its_flags(make_snapshot: MakeSnapshot) -> None:
    """All objectives are monotone; counting perfect requests is not concave in the rate."""
    flags = {
        type(objective): (objective.gains(make_snapshot(9)).concave_in_rate, objective.saturates)
        for objective in OBJECTIVES
    }
    assert all(objective.gains(make_snapshot(9)).monotone for objective in OBJECTIVES)
    assert flags == {
        AverageQoE: (True, True),
        MaxMinQoE: (True, True),
        PerfectRequests: (False, True),
        AverageQoEWithPreemptionCost: (True, False),
    }


def test_counting_perfect_requests_is_not_concave(make_snapshot: MakeSnapshot) -> None:
    """A fresh request jumps from 0 to 1 on the way up from a low token rate."""
    table = PerfectRequests().gains(make_snapshot(60, seed=1)).table(0, 200)
    assert set(np.unique(table)) == {0.0, 1.0}
    assert ((table[0] == 1) & (table[-1] == 0)).any()


def test_average_qoe_is_the_forecast(make_snapshot: MakeSnapshot) -> None:
    """AverageQoE's gains are Q_serve(B) - Q_wait over its own horizon."""
    snapshot = make_snapshot(40)
    for dt_s in (5.0, 50.0):
        model = AverageQoE(dt_s).gains(snapshot)
        assert (model(9) == QoEForecast.of(snapshot, dt_s)(9)).all()
    assert (AverageQoE(5.0).gains(snapshot)(9) != AverageQoE(50.0).gains(snapshot)(9)).any()


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_max_min_is_what_waiting_costs_below_the_minimum(
    make_snapshot: MakeSnapshot, seed: int
) -> None:
    """max(Q_min - Q_wait, 0) with the smallest present QoE, at every batch size."""
    snapshot = make_snapshot(20, seed)
    forecast = QoEForecast.of(snapshot, 50.0)
    expected = [max(min(forecast.q_now) - q, 0.0) for q in forecast.q_wait]
    model = MaxMinQoE().gains(snapshot)
    for batch in (0, 1, 50):
        assert (model(batch) == expected).all()


@settings(max_examples=80, deadline=None)
@given(seeds, st.sampled_from([0.001, 0.01, 0.3]))
def test_perfect_requests_counts_thresholds(
    make_snapshot: MakeSnapshot, seed: int, tolerance: float
) -> None:
    """The gain is [Q_serve >= 1 - tol] - [Q_wait >= 1 - tol], unless within rounding of it."""
    snapshot = make_snapshot(30, seed)
    forecast = QoEForecast.of(snapshot, 50.0)
    table = PerfectRequests(tolerance=tolerance).gains(snapshot).table(0, 60)
    for batch in range(0, 61, 6):
        served = forecast.q_serve(batch)
        clear = np.abs(served - (1 - tolerance)) > 1e-9
        expected = (served >= 1 - tolerance) & ~(forecast.q_wait >= 1 - tolerance)
        assert (table[batch] == expected)[clear].all()


def test_preemption_cost_follows_its_definition(make_snapshot: MakeSnapshot) -> None:
    """c_i on residents and k_i(B) on the others are those of the class's description."""
    snapshot = make_snapshot(40, seed=5)
    objective = AverageQoEWithPreemptionCost(
        evict_cost=0.03, evict_stall=2.0, admit_stall=0.5, restore_s_per_token=0.002
    )
    resident = snapshot.kv_tokens > 0
    batch = int(resident.sum())
    stall_s = float(snapshot.restore_s[~resident].mean())
    free = QoEForecast.of(snapshot, 50.0)
    stalled = QoEForecast.of(
        dataclasses.replace(snapshot, restore_s=snapshot.restore_s + stall_s), 50.0
    )
    rho = float((free(batch) - stalled(batch))[resident].mean()) / stall_s
    assert rho > 0

    context = snapshot.prompt_tokens + snapshot.generated_tokens
    model = objective.gains(snapshot)
    for b in (0, 1, 2, 17):
        cost = model(b) - free(b)
        c = 0.03 + 2.0 * rho * (batch - 1) * 0.002 * context
        k = 0.5 * rho * snapshot.restore_s * max(0, b - 1)
        assert np.allclose(cost[resident], c[resident], rtol=1e-9)
        assert np.allclose(cost[~resident], -k[~resident], rtol=1e-9)


def test_preemption_cost_can_be_turned_off(make_snapshot: MakeSnapshot) -> None:
    """Without weights the gains are those of average QoE."""
    snapshot = make_snapshot(40, seed=5)
    objective = AverageQoEWithPreemptionCost(evict_stall=0.0, admit_stall=0.0)
    assert (objective.gains(snapshot)(20) == AverageQoE().gains(snapshot)(20)).all()


def test_preemption_cost_without_residents_or_others(make_snapshot: MakeSnapshot) -> None:
    """Nobody to stall costs nothing; with only residents the stall is that of restoring one."""
    snapshot = make_snapshot(20, seed=2)
    empty = dataclasses.replace(snapshot, kv_tokens=np.zeros(20, dtype=np.int64))
    objective = AverageQoEWithPreemptionCost(restore_s_per_token=0.002)
    assert (objective.gains(empty)(9) == AverageQoE().gains(empty)(9)).all()

    full = dataclasses.replace(
        snapshot,
        kv_tokens=snapshot.need_tokens,
        restore_s=np.zeros(20),
        generated_tokens=np.zeros(20),
    )
    cost = objective.gains(full)(9) - AverageQoE().gains(full)(9)
    assert (cost >= 0).all()
    assert (cost > 0).any()


def test_preemption_cost_is_not_concave_if_latency_ignores_the_batch(
    make_snapshot: MakeSnapshot,
) -> None:
    """With a latency that never rises, a cost per batch size is no function of the rate."""
    snapshot = make_snapshot(40, seed=5, latency=LatencyModel(0.5, 0, 0, 1e-4))
    assert not AverageQoEWithPreemptionCost().gains(snapshot).concave_in_rate
    assert AverageQoEWithPreemptionCost(admit_stall=0.0).gains(snapshot).concave_in_rate


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_nobody_to_serve(make_snapshot: MakeSnapshot, objective: Objective) -> None:
    """An engine without requests has an empty gain model."""
    snapshot = make_snapshot(3)
    nobody = {
        field.name: getattr(snapshot, field.name)[:0]
        for field in dataclasses.fields(snapshot)
        if isinstance(getattr(snapshot, field.name), np.ndarray)
    }
    assert objective.gains(make_snapshot(3, **nobody))(1).shape == (0,)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_yaml_file_states_every_option(path: Path) -> None:
    """Each file in conf/objective makes an objective and lists its options and defaults."""
    config = OmegaConf.load(path)
    objective = instantiate(config)
    assert isinstance(objective, Objective)
    options = {field.name: field.default for field in dataclasses.fields(objective)}
    assert {"_target_": config["_target_"], **options} == dict(config)


def test_all_objectives_have_a_file() -> None:
    """The registry is complete."""
    assert [path.stem for path in FILES] == [
        "average_qoe",
        "max_min_qoe",
        "perfect_requests",
        "preemption_cost",
    ]


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: AverageQoE(dt_s=0), "dt_s"),
        (lambda: MaxMinQoE(dt_s=-1), "dt_s"),
        (lambda: PerfectRequests(dt_s=float("nan")), "dt_s"),
        (lambda: PerfectRequests(tolerance=0.0), "tolerance"),
        (lambda: PerfectRequests(tolerance=1.0), "tolerance"),
        (lambda: AverageQoEWithPreemptionCost(evict_cost=-0.1), "evict_cost"),
        (lambda: AverageQoEWithPreemptionCost(admit_stall=-0.1), "admit_stall"),
        (lambda: AverageQoEWithPreemptionCost(restore_s_per_token=-1), "restore_s_per_token"),
    ],
)
def test_constructors_refuse(make: Callable[[], Objective], name: str) -> None:
    """An option out of range is refused by name."""
    with pytest.raises(ValueError, match=f"{name} = .* not understood"):
        make()
