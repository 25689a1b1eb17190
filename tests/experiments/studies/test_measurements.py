"""What the cells of studies measure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andes_opt import qoe
from andes_opt.instance import GainTable, Instance
from andes_opt.simulator import simulate
from experiments.analysis.statistics import as_rows
from experiments.configuration.compose import load, load_choice
from experiments.runs.code_closure import closure
from experiments.studies import measurements
from experiments.studies.exact_vs_greedy import regimes_of
from experiments.studies.exact_vs_greedy_measurements import batch_binds, stepped
from experiments.studies.points import Point
from experiments.studies.settings import Regime
from solvers.greedy import Greedy

SMALL = ("workload.requests=40", "engine.capacity_tokens=3000")


def plain(*overrides):
    """The plain nodes of a small simulation."""
    config = load("simulate", [*SMALL, *overrides])
    return measurements.with_rate(Point("variant", "arm", config, {}).run, 6.0)


def as_dict(numbers):
    """Metric and part -> number."""
    return {(metric, part): value for metric, part, value in numbers}


@settings(max_examples=60, deadline=None)
@given(
    limit=st.floats(0.01, 40),
    start=st.floats(0.5, 10),
    tolerance=st.floats(0.005, 0.3),
)
def test_the_highest_rate_is_bracketed(limit, start, tolerance):
    """The answer is good, and a rate at most (1 + tolerance) times as high is not."""
    asked = []

    def good(rate):
        asked.append(rate)
        return rate <= limit

    rate = measurements.highest_rate(good, start, tolerance, 30.0)
    if limit >= 30.0:
        assert rate == 30.0
    else:
        assert rate <= limit < rate * (1 + tolerance) * (1 + 1e-12)
        assert rate in asked
    assert max(asked) <= max(30.0, start)
    assert len(asked) < 40


def test_a_search_without_any_good_rate_ends():
    """If no rate is good the capacity is 0."""
    assert measurements.highest_rate(lambda rate: False, 4.0, 0.01, 100.0) == 0.0


def test_capacity_is_the_rate_at_the_threshold():
    """The rate found is good by both definitions, and 21 % more is not."""
    run = plain("policy=fcfs")
    found = as_dict(measurements.capacity(run, 3, 0.9, 2.0, 0.2, 50.0))
    for definition in ("area", "window"):
        rate = found[f"capacity_{definition}", ""]
        for factor, good in ((1.0, True), (1.21, False)):
            result = measurements.simulated(measurements.with_rate(run, rate * factor), 3)
            assert (getattr(result, f"qoe_{definition}").mean() >= 0.9) == good


def test_served_has_the_run_its_parts_and_its_distributions():
    """Quarters average to the whole, and the quantiles at 0 and 100 % are the extremes."""
    run = plain("policy=fcfs")
    result = measurements.simulated(run, 1)
    found = as_dict(measurements.served(run, 1))
    assert found["qoe_area_mean", ""] == pytest.approx(result.qoe_area.mean(), rel=1e-6)
    for lengths in ("prompt", "reply"):
        quarters = [
            found["part_qoe_area", f"{lengths} {name}"]
            for name in ("shortest", "short", "long", "longest")
        ]
        assert np.mean(quarters) == pytest.approx(result.qoe_area.mean(), rel=1e-6)
    assert found["quantile_qoe_area", "0"] == pytest.approx(result.qoe_area.min(), rel=1e-6)
    assert found["quantile_qoe_area", "100"] == pytest.approx(result.qoe_area.max(), rel=1e-6)
    speeds = [part for metric, part in found if metric == "part_qoe_area" and "tokens/s" in part]
    assert len(speeds) == np.unique(result.tds).size
    assert measurements.served(run, 1) != measurements.served(run, 2)


def test_readers_of_nearly_one_speed_are_one_part():
    """A regression test: of speeds that two digits don't tell apart only the last was kept."""
    result = measurements.simulated(plain("policy=fcfs"), 1)
    tds = np.where(np.arange(result.tds.size) % 4, 4.001, 4.004)
    found = as_dict(measurements.numbers_of(replace(result, tds=tds)))
    mean = found["part_qoe_area", "reader 4.00 tokens/s"]
    assert mean == pytest.approx(result.qoe_area.mean(), rel=1e-6)


def test_readers_of_many_speeds_are_shown_in_quarters():
    """A regression test: each of a thousand speeds was a part of its own."""
    result = measurements.simulated(plain("policy=fcfs"), 1)
    tds = np.linspace(3.0, 8.0, result.tds.size)
    found = as_dict(measurements.numbers_of(replace(result, tds=tds)))
    parts = [
        part for metric, part in found if metric == "part_qoe_area" and part.startswith("reader")
    ]
    assert parts == [f"reader {words}" for words in ("slowest", "slow", "fast", "fastest")]
    for part, quarter in zip(parts, np.split(result.qoe_area, 4), strict=True):
        assert found["part_qoe_area", part] == pytest.approx(quarter.mean(), rel=1e-6)


STREAMS = st.lists(st.floats(0, 2), min_size=1, max_size=40).map(np.cumsum)


@settings(max_examples=60, deadline=None)
@given(times=STREAMS, tds=st.floats(0.5, 10), ttft_s=st.floats(0, 3))
def test_the_buffer_paces_tokens_and_costs_the_reader_nothing(times, tds, ttft_s):
    """Tokens are shown when there and 1/tds apart; delay and window QoE stay what they were."""
    shown = measurements.paced(times, tds)
    expected = []
    for time_s in times:
        expected.append(max(time_s, expected[-1] + 1 / tds) if expected else time_s)
    np.testing.assert_allclose(shown, expected, rtol=1e-12, atol=1e-12)
    assert (shown >= times).all()
    assert (np.diff(shown) >= 0).all()
    target = qoe.QoETarget(ttft_s, tds)
    assert qoe.window(shown, target) == pytest.approx(qoe.window(times, target), abs=1e-9)
    assert qoe.delay(shown, target) == pytest.approx(qoe.delay(times, target), abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(times=STREAMS, jitter_s=st.floats(0, 5), seed=st.integers(0, 9))
def test_the_network_delays_and_keeps_the_order(times, jitter_s, seed):
    """No token comes early or overtakes another; without jitter nothing changes."""
    arrived = measurements.through_network(times, jitter_s, np.random.default_rng(seed))
    assert (arrived >= times).all()
    assert (np.diff(arrived) >= 0).all()
    still = measurements.through_network(times, 0.0, np.random.default_rng(seed))
    np.testing.assert_array_equal(still, times)


def test_jitter_costs_qoe_and_the_buffer_evens_the_text():
    """Without jitter the scores are the simulation's; with it they fall, buffered or not."""
    run = plain("policy=fcfs")
    result = measurements.simulated(run, 0)
    found = {
        (jitter_s, buffered): as_dict(numbers)
        for jitter_s, buffered, numbers in measurements.jittered(run, 0, [0.0, 2.0])
    }
    for definition in ("area", "delay", "window"):
        mean = getattr(result, f"qoe_{definition}").mean()
        assert found[0.0, False][f"qoe_{definition}_mean", ""] == pytest.approx(mean, abs=1e-6)
    window = "qoe_window_mean", ""
    assert found[2.0, False][window] < found[0.0, False][window]
    assert found[2.0, True][window] == pytest.approx(found[2.0, False][window], abs=1e-6)
    for jitter_s in (0.0, 2.0):
        assert found[jitter_s, True]["rushed_share", ""] == 0
        assert found[jitter_s, False]["rushed_share", ""] > 0.1


def test_compiling_is_not_timed(monkeypatch):
    """A policy's first cell in a process simulates a short overload before the run itself."""
    served = []

    def watched(requests, *arguments, **options):
        served.append(requests.arrival_s.size)
        return simulate(requests, *arguments, **options)

    monkeypatch.setattr(measurements, "_WARM", set())
    monkeypatch.setattr(measurements, "simulate", watched)
    for name in ("fcfs", "fcfs", "round_robin"):
        measurements.simulated(plain(f"policy={name}"), 0)
    assert served == [60, 40, 40, 60, 40]


def test_every_number_has_a_meaning():
    """Metrics of cells are those of a run, or explained beside the cells."""
    run = plain("policy=andes", "solver=greedy")
    known = {metric for metric, _, _ in measurements.served(run, 0)} - set(measurements.METRICS)
    from andes_opt.metrics import summarise

    assert known == set(summarise(measurements.simulated(run, 0)))


def test_steps_of_an_exact_run_are_given_to_the_other_solver():
    """Greedy never beats the exact solver in a step; exact against itself has no gap."""
    run = plain("policy=andes", "solver=exact")
    seen = {}
    for name in ("greedy", "exact"):
        seen[name] = as_dict(stepped(run, 0, {"_target_": TARGETS[name]}, 5))
        assert seen[name]["steps", ""] > 10
    assert seen["greedy"]["step_gap_percent", ""] > 0
    assert 0 <= seen["greedy"]["step_equal_share", ""] < 1
    assert seen["exact"]["step_gap_percent", ""] == pytest.approx(0, abs=1e-7)
    assert seen["exact"]["step_equal_share", ""] == 1
    # What is measured beside does not change the run.
    alone = as_dict(measurements.served(run, 0))
    assert seen["greedy"]["qoe_area_mean", ""] == alone["qoe_area_mean", ""]


TARGETS = {name: load_choice("solver", name)["_target_"] for name in ("greedy", "exact")}


@pytest.mark.parametrize(
    ("capacity", "batch", "binds"), [(100, 1, True), (10, 2, False), (100, 2, False)]
)
def test_batch_binds_if_what_is_left_out_would_fit(capacity, batch, binds):
    """With room for both, the one slot leaves out a request that would gain."""
    gains = GainTable([[2.0, 1.0]], batch)
    instance = Instance([10, 10], capacity, batch, batch, gains)
    assert batch_binds(instance, Greedy().solve(instance)) == binds


def test_cells_hang_on_the_domain_alone():
    """No code of the rest of experiments runs in a cell, so its changes keep results."""
    for name in ("measurements", "exact_vs_greedy_measurements"):
        needed = closure([f"experiments.studies.{name}"])
        assert {part for part in needed if part.startswith("experiments.")} <= {
            "experiments.studies.measurements",
            "experiments.studies.exact_vs_greedy_measurements",
        }


def test_regimes_are_columns_of_the_rows():
    """Engine, KV tokens and horizon of a variant are read from its rows, whatever its name."""
    regime = Regime("opt_66b_slow", 12000, 0.5)
    label = {"variant": "v", "engine": "opt_66b_slow", "capacity_tokens": 12000, "dt_s": 0.5}
    rows = as_rows([(label, [measurements.Measurement("m", "", 1.0)] * 2)])
    assert regimes_of(rows) == {"v": regime}
    assert regime.settings["engine.capacity_tokens"] == 12000
