"""Metrics of a run, and intervals over runs."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from andes_opt import metrics
from andes_opt.metrics import (
    completion_delay_s,
    jain,
    mean_ci,
    paired_difference,
    summarise,
)

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Rows:
    """Outcomes as a live client would have them: arrays and nothing else."""

    arrival_s: Any
    output_tokens: Any
    ttft_s: Any
    tds: Any
    rejected: Any
    first_token_s: Any
    completion_s: Any
    qoe_area: Any
    qoe_delay: Any
    qoe_window: Any
    preemptions: Any


@dataclass(frozen=True)
class RecordedRows(Rows):
    """Outcomes with counters, as a simulation has them."""

    tokens_by_last_arrival: Any
    iterations: int
    wall_s: float


# Four requests; the third is rejected, the fourth has one token.
EXAMPLE = Rows(
    arrival_s=np.array([0.0, 1.0, 2.0, 4.0]),
    output_tokens=np.array([11, 5, 7, 1]),
    ttft_s=np.array([1.0, 1.0, 1.0, 1.0]),
    tds=np.array([5.0, 4.0, 5.0, 5.0]),
    rejected=np.array([False, False, True, False]),
    first_token_s=np.array([0.5, 3.0, np.nan, 2.0]),
    completion_s=np.array([2.5, 7.0, np.nan, 2.0]),
    qoe_area=np.array([1.0, 0.5, 0.7, 0.9]),
    qoe_delay=np.array([1.0, 0.4, np.nan, 0.0]),
    qoe_window=np.array([1.0, 0.0, 0.0, 0.9]),
    preemptions=np.array([0, 3, 0, 1]),
)


def rows(**changes: Any) -> Rows:
    """The example with changes."""
    return dataclasses.replace(EXAMPLE, **changes)


# --- One run


def test_example_worked_by_hand() -> None:
    """Every metric of four requests, computed on paper."""
    summary = summarise(EXAMPLE)
    expected = {
        "requests": 4,
        "rejected": 1,
        "unfinished": 0,
        "qoe_area_mean": (1 + 0.5 + 0 + 0.9) / 4,  # the rejected request scores 0
        "qoe_area_p50": (0.5 + 0.9) / 2,
        "qoe_area_p1": 0.5 * 0.03,
        "qoe_area_share_ge_0p9": 0.5,
        "qoe_area_share_0": 0.25,
        "qoe_area_share_1": 0.25,
        "qoe_delay_mean": 1.4 / 4,
        "qoe_window_mean": 1.9 / 4,
        "qoe_window_share_0": 0.5,
        "qoe_window_jain": 1.9**2 / (4 * (1 + 0.81)),
        "ttft_p50_s": 2.0,  # of 0.5, 2, 3
        "ttft_p90_s": 2.8,
        "ttft_p99_s": 2.98,
        "tds_p50": (5 + 1) / 2,  # 10 gaps in 2 s, 4 gaps in 4 s; one token has no speed
        # Due at 1 + 10/5 = 3 (came at 2.5), 1 + 4/4 = 2 (came at 7) and 1 (came at 2).
        "completion_delay_max_s": 5.0,
        "completion_delay_mean_s": 2.0,
        "makespan_s": 8.0,
        "tokens_per_s": 17 / 8,
        # By 4 s: all 11 of the first; the second's first token comes at that moment.
        "tokens_per_s_arriving": 12 / 4,
        "preemptions": 4,
        "preemptions_per_request": 1.0,
    }
    for name, value in expected.items():
        assert summary[name] == pytest.approx(value), name
    assert all(type(value) is float for value in summary.values())


def test_metrics_that_other_parts_rely_on_are_there() -> None:
    """The names promised to readers of summary.json."""
    assert {
        "qoe_area_mean",
        "qoe_delay_mean",
        "qoe_window_mean",
        "qoe_area_share_ge_0p9",
        "qoe_window_share_0",
        "completion_delay_max_s",
        "rejected",
        "ttft_p50_s",
        "ttft_p90_s",
        "ttft_p99_s",
        "tokens_per_s",
        "preemptions_per_request",
        "iterations",
        "wall_s",
    } <= set(
        summarise(
            RecordedRows(**vars(EXAMPLE), tokens_by_last_arrival=None, iterations=9, wall_s=1.5)
        )
    )


def test_what_the_run_counted_is_taken_over() -> None:
    """A run's own counters win over estimates and stand in the summary."""
    counted = RecordedRows(**vars(EXAMPLE), tokens_by_last_arrival=14, iterations=9, wall_s=1.5)
    summary = summarise(counted)
    assert summary["tokens_per_s_arriving"] == 14 / 4
    assert summary["iterations"] == 9
    assert summary["wall_s"] == 1.5


def test_an_evenly_paced_stream_is_interpolated_exactly() -> None:
    """Where the run did not count, evenly spaced tokens are counted right at token moments."""
    even = rows(
        arrival_s=np.array([0.0, 3.0, 3.0, 3.0]),
        first_token_s=np.array([1.0, 9.0, np.nan, 9.0]),
        completion_s=np.array([6.0, 9.0, np.nan, 9.0]),
    )
    # Tokens of the first at 1, 1.5, 2, 2.5, 3 ...: five by 3 s.
    assert summarise(even)["tokens_per_s_arriving"] == pytest.approx(5 / 3)


def test_nobody_served() -> None:
    """If all are rejected QoE is 0 and what can't be measured is NaN."""
    gone = np.full(4, np.nan)
    summary = summarise(rows(rejected=np.ones(4, bool), first_token_s=gone, completion_s=gone))
    assert summary["qoe_area_mean"] == 0
    assert summary["qoe_area_share_0"] == 1
    assert summary["rejected"] == 4
    assert math.isnan(summary["ttft_p50_s"])
    assert math.isnan(summary["completion_delay_max_s"])
    assert math.isnan(summary["tds_p50"])
    assert math.isnan(summary["tokens_per_s"])


def test_broken_streams_are_counted_and_keep_their_score() -> None:
    """A live stream that breaks off is unfinished, not rejected: its QoE counts."""
    summary = summarise(rows(completion_s=np.array([2.5, np.nan, np.nan, 2.0])))
    assert summary["unfinished"] == 1
    assert summary["qoe_area_mean"] == pytest.approx(2.4 / 4)
    assert summary["ttft_p50_s"] == 2.0
    assert summary["completion_delay_max_s"] == 1.0


def test_rejected_requests_leave_percentiles_alone() -> None:
    """TTFT, speed and completion delay are those of the run without its rejected requests."""
    kept = ~EXAMPLE.rejected
    without = Rows(**{name: array[kept] for name, array in vars(EXAMPLE).items()})
    full, part = summarise(EXAMPLE), summarise(without)
    for name in full:
        if name.startswith(("ttft", "tds", "completion")):
            assert full[name] == part[name], name


@settings(max_examples=30)
@given(st.permutations(range(4)))
def test_the_order_of_requests_does_not_matter(order: list[int]) -> None:
    """Metrics are about the set of requests."""
    shuffled = Rows(**{name: array[list(order)] for name, array in vars(EXAMPLE).items()})
    assert summarise(shuffled) == pytest.approx(summarise(EXAMPLE), rel=1e-12)


def test_completion_delay_is_against_the_due_time_of_the_last_token() -> None:
    """Early replies have delay 0, late ones the lateness of their last token."""
    np.testing.assert_allclose(completion_delay_s(EXAMPLE), [0, 5, np.nan, 1])


def test_refuses_what_is_no_run() -> None:
    """No requests, or arrays of different lengths, are refused."""
    empty = Rows(**{name: array[:0] for name, array in vars(EXAMPLE).items()})
    with pytest.raises(ValueError, match="without requests"):
        summarise(empty)
    with pytest.raises(ValueError, match=r"tds has shape \(2,\), arrival_s \(4,\)"):
        summarise(rows(tds=np.ones(2)))


def test_time_per_token_and_completed_requests() -> None:
    """TPOT is over replies with a second token; requests/s over the whole run."""
    summary = summarise(EXAMPLE)
    assert summary["tpot_p50_s"] == pytest.approx((0.2 + 1.0) / 2)
    assert summary["tpot_p95_s"] == pytest.approx(0.2 + 0.95 * 0.8)
    assert summary["ttft_p95_s"] == pytest.approx(2.0 + 0.9 * 1.0)
    assert summary["requests_per_s"] == pytest.approx(3 / 8.0)


def test_the_start_of_a_run_can_be_left_out() -> None:
    """Requests of the first seconds don't count; what the run itself reports stays."""
    late = rows(
        **{
            name: getattr(EXAMPLE, name)[1:]
            for name in (item.name for item in dataclasses.fields(Rows))
        }
    )
    given_rows = RecordedRows(**vars(EXAMPLE), tokens_by_last_arrival=9, iterations=7, wall_s=1.0)
    summary = summarise(given_rows, skip_s=0.5)
    assert summary["iterations"] == 7
    for name, value in summarise(late).items():
        assert summary[name] == pytest.approx(value, nan_ok=True), name


@pytest.mark.parametrize(
    ("skip_s", "words"),
    [
        (4.5, "leaves out all 4 requests: the last one arrives 4.0 s"),
        (-1.0, "skip_s"),
        (math.nan, "skip_s"),
    ],
)
def test_what_can_be_left_out_is_checked(skip_s: float, words: str) -> None:
    """A summary of nothing is refused in a sentence."""
    with pytest.raises(ValueError, match=words):
        summarise(EXAMPLE, skip_s=skip_s)


def test_every_metric_is_documented_and_no_other() -> None:
    """The tables of docs/metrics.md below the symbols list exactly the metrics of a run."""
    text = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    tables = text[text.index("## Quality of experience") :]
    percentiles = {
        "qoe": metrics.QOE_PERCENTILES,
        "ttft": metrics.TTFT_PERCENTILES,
        "tpot": metrics.TPOT_PERCENTILES,
        "tds": metrics.TDS_PERCENTILES,
    }
    documented = {
        name.replace("{definition}", definition).replace("{percent}", str(percent))
        for name in re.findall(r"^\| `([^`|]+)` \|", tables, flags=re.MULTILINE)
        for definition in metrics.QOE_DEFINITIONS
        for percent in percentiles.get(name.split("_")[0], ("",))
    }
    assert documented == set(summarise(EXAMPLE)) | set(metrics.RUN_COUNTERS)


# --- Fairness


def test_jain_extremes() -> None:
    """All alike is 1, one of n has everything is 1/n, nobody has anything is 1."""
    assert jain([0.3, 0.3, 0.3]) == pytest.approx(1)
    assert jain([0, 0, 0, 5.0]) == pytest.approx(0.25)
    assert jain([0, 0]) == 1
    assert jain([1e-300, 1e-300]) == pytest.approx(1)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0.01, 100))
def test_jain_is_between_1_over_n_and_1_whatever_the_unit(values: list[float], unit: float) -> None:
    """The index is scale-free and in its range."""
    index = jain(values)
    assert 1 / len(values) - 1e-9 <= index <= 1 + 1e-9
    if max(values) > 1e-200:
        assert jain(np.array(values) * unit) == pytest.approx(index)


def test_jain_refuses() -> None:
    """Negative, NaN or no values have no index."""
    for values in ([], [-0.1, 1], [math.nan]):
        with pytest.raises(ValueError, match="Jain's index needs values >= 0"):
            jain(values)


# --- Intervals


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20), st.sampled_from([0.9, 0.95, 0.99]))
def test_intervals_are_students(values: list[float], level: float) -> None:
    """Mean and half-width equal scipy.stats' t interval."""
    interval = mean_ci(values, level)
    assert interval.mean == pytest.approx(np.mean(values))
    error = stats.sem(values)
    expected = stats.t.ppf((1 + level) / 2, len(values) - 1) * error
    assert interval.half_width == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    """Of 2,000 intervals of five normal values 95 % hold the true mean, within 2 points."""
    samples = np.random.default_rng(0).normal(3.0, 2.0, (2000, 5))
    covered = [abs(m - 3.0) <= h for m, h in map(mean_ci, samples)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


def test_one_value_says_nothing_about_spread() -> None:
    """The half-width of a single value is infinite; of equal values 0."""
    assert mean_ci([0.7]) == (0.7, math.inf)
    assert mean_ci([0.5, 0.5, 0.5]) == (0.5, 0)


def test_pairing_removes_what_both_share() -> None:
    """A constant difference is seen exactly, however noisy the seeds."""
    noise = np.random.default_rng(0).normal(0, 10, 8)
    difference = paired_difference(noise + 0.25, noise)
    assert difference.mean == pytest.approx(0.25)
    assert difference.half_width == pytest.approx(0, abs=1e-12)
    assert mean_ci(noise).half_width > 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mean_ci([]), r"values of shape \(0,\) not understood"),
        (lambda: mean_ci([[1, 2]]), r"values of shape \(1, 2\) not understood"),
        (lambda: mean_ci([1, 2], level=95), "level = 95 not understood"),
        (lambda: paired_difference([1, 2], [1]), r"shapes \(2,\) and \(1,\) don't pair up"),
    ],
)
def test_intervals_refuse(call: Any, words: str) -> None:
    """No values, wrong shapes and levels out of range are refused."""
    with pytest.raises(ValueError, match=words):
        call()
