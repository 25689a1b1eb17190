"""Forecast QoE: closed forms against the definition, and the flags solvers rely on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from andes_opt.forecast import QoEForecast
from andes_opt.instance import GainModel
from andes_opt.latency import LatencyModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from andes_opt.snapshot import Snapshot

    Reader = Callable[..., tuple[float, float]]

RATES = (0.1, 0.25, 1.0, 2.0, 4.0, 5.0, 20.0)


@dataclass(frozen=True)
class Case:
    """One request's state; times on a grid of 1/16 s, so that sums of them are exact."""

    age_s: float
    delivered: int
    digested: float
    area: float
    ttft_s: float
    tds: float
    restore_s: float
    dt_s: float


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any state that a request can be in: before ttft_s nothing is digested."""
    age_s = draw(st.integers(0, 1600)) / 16
    ttft_s = draw(st.sampled_from([0.0, 1.0, 2.5, 40.0, 100.0]))
    tds = draw(st.sampled_from([0.5, 2.0, 4.0, 5.0]))
    read_s = max(0.0, age_s - ttft_s)
    digested = draw(st.integers(0, 64)) / 64 * tds * read_s
    area = draw(st.integers(0, 64)) / 64 * digested * read_s / 2
    backlog = draw(st.sampled_from([0, 1, 7, 40, 300]))
    return Case(
        age_s,
        int(digested) + backlog,
        min(digested, int(digested) + backlog),
        area,
        ttft_s,
        tds,
        draw(st.sampled_from([0.0, 0.0625, 1.5, 10.0, 60.0])),
        draw(st.sampled_from([0.5, 5.0, 50.0])),
    )


def forecast(case: Case, latency: LatencyModel, **more: float) -> QoEForecast:
    return QoEForecast(
        [case.age_s],
        [case.delivered],
        [case.digested],
        [case.area],
        [case.ttft_s],
        [case.tds],
        [case.restore_s],
        dt_s=case.dt_s,
        latency=latency,
        capacity_tokens=int(more.get("capacity_tokens", 1000)),
        mean_need_tokens=more.get("mean_need_tokens", 100.0),
    )


def gain_at(case: Case, rate: float) -> float:
    return float(forecast(case, LatencyModel(1 / rate, 0, 0, 0))(1)[0])


@settings(max_examples=400, deadline=None)
@given(cases(), st.sampled_from(RATES))
def test_forecast_equals_its_definition(read_exactly: Reader, case: Case, rate: float) -> None:
    """Q_wait, Q_serve and the gain equal the definition integrated event by event, to 1e-9."""
    start = max(0.0, case.ttft_s - case.age_s)
    ideal = read_exactly(case.age_s + case.dt_s, case.ttft_s, case.tds, backlog=1e6)[1]

    def score(rate: float) -> float:
        _, extra = read_exactly(
            case.dt_s,
            start,
            case.tds,
            backlog=case.delivered - case.digested,
            rate=rate,
            rate_from=case.restore_s,
        )
        return (case.area + case.digested * case.dt_s + extra) / ideal if ideal > 0 else 1.0

    event(f"younger than ttft: {case.age_s < case.ttft_s}")
    event(f"restored within dt: {case.restore_s < case.dt_s}")
    event(f"fast: {rate >= case.tds}")
    event(f"gains: {score(rate) > score(0.0)}")
    model = forecast(case, LatencyModel(1 / rate, 0, 0, 0))
    assert model.q_wait[0] == pytest.approx(score(0.0), abs=1e-9)
    assert model.q_serve(1)[0] == pytest.approx(score(rate), abs=1e-9)
    assert model(1)[0] == pytest.approx(score(rate) - score(0.0), abs=1e-9)


@settings(max_examples=150, deadline=None)
@given(cases(), st.sampled_from([0.0, 1e-3, 0.05]), st.sampled_from([0.0, 1e-4]))
def test_gains_never_rise_with_the_batch(case: Case, per_request: float, per_token: float) -> None:
    """monotone: from batch size 0 to 200 no gain rises, and none is negative."""
    model = forecast(case, LatencyModel(0.05, per_request, per_token, 0), capacity_tokens=5000)
    table = model.table(0, 200)
    assert model.monotone
    assert (np.diff(table, axis=0) <= 1e-14).all()
    assert (table >= 0).all()


@settings(max_examples=200, deadline=None)
@given(cases(), st.floats(0.05, 10), st.floats(0.05, 10), st.floats(0, 1))
def test_gains_are_concave_in_the_rate(case: Case, low: float, high: float, share: float) -> None:
    """concave_in_rate: no gain lies below the chord between two token rates."""
    between = share * low + (1 - share) * high
    chord = share * gain_at(case, low) + (1 - share) * gain_at(case, high)
    assert forecast(case, LatencyModel(1, 0, 0, 0)).concave_in_rate
    assert gain_at(case, between) >= chord - 1e-12


def test_gain_is_0_if_no_reader_would_read_yet() -> None:
    """A horizon that ends before ttft_s: denominator 0, Q 1 either way, gain 0."""
    case = Case(0.0, 0, 0.0, 0.0, 10.0, 5.0, 0.0, 5.0)
    model = forecast(case, LatencyModel(0.01, 0, 0, 0))
    assert model(1)[0] == 0.0
    assert model.q_wait[0] == model.q_now[0] == 1.0


def test_gain_is_0_for_a_restore_beyond_the_horizon() -> None:
    """A request that can't go on within dt gains nothing, however fast the engine is."""
    case = Case(20.0, 10, 10.0, 50.0, 1.0, 5.0, 60.0, 50.0)
    assert forecast(case, LatencyModel(1e-4, 0, 0, 0))(1)[0] == 0.0


def test_tokens_before_ttft_are_a_head_start() -> None:
    """Below reading speed, tokens that arrive before ttft_s are worth something."""
    early = Case(0.0, 0, 0.0, 0.0, 10.0, 5.0, 0.0, 20.0)
    late = Case(0.0, 0, 0.0, 0.0, 10.0, 5.0, 10.0, 20.0)
    assert gain_at(early, 2.0) > gain_at(late, 2.0) > 0


def test_rate_takes_context_as_the_smaller_of_capacity_and_batch() -> None:
    """r = 1/latency(B) with the context min(M, B * mean need)."""
    latency = LatencyModel(0.1, 0.01, 1e-3, 0.5)
    case = Case(20.0, 10, 10.0, 50.0, 1.0, 50.0, 0.0, 50.0)
    model = forecast(case, latency, capacity_tokens=250, mean_need_tokens=100.0)
    for batch in (0, 1, 2, 3, 40):
        rate = 1 / latency.iteration_s(batch, min(250, batch * 100.0))
        assert model(batch)[0] == pytest.approx(gain_at(case, rate), rel=1e-12)


def test_q_now_is_the_score_of_a_reader_who_waits_for_nothing(
    read_exactly: Callable[..., tuple[float, float]],
) -> None:
    """q_now is digested over uncapped ideal area so far."""
    digested, area = read_exactly(10.0, 1.0, 4.0, times=(2.0, 2.0, 5.0, 9.0))
    state = Case(10.0, 4, digested, area, 1.0, 4.0, 0.0, 50.0)
    model = forecast(state, LatencyModel(0.1, 0, 0, 0))
    assert model.q_now[0] == pytest.approx(area / (4.0 * 9.0**2 / 2))


def test_forecast_of_a_snapshot(make_snapshot: Callable[..., Snapshot]) -> None:
    """Every request's forecast is that of its own row, with the snapshot's engine."""
    snapshot = make_snapshot(30, seed=3)
    model = QoEForecast.of(snapshot, 20.0)
    table = model.table(0, 40)
    assert isinstance(model, GainModel)
    assert (table > 0).any()
    for i in range(30):
        alone = QoEForecast(
            [snapshot.time_s - snapshot.arrival_s[i]],
            *(
                [array[i]]
                for array in (
                    snapshot.generated_tokens,
                    snapshot.digested,
                    snapshot.area,
                    snapshot.ttft_s,
                    snapshot.tds,
                    snapshot.restore_s,
                )
            ),
            dt_s=20.0,
            latency=snapshot.latency,
            capacity_tokens=snapshot.capacity_tokens,
            mean_need_tokens=float(snapshot.need_tokens.mean()),
        )
        assert np.allclose(alone.table(0, 40)[:, 0], table[:, i], rtol=1e-12, atol=0)
    for batch in (0, 7, 40):
        assert (model(batch) == table[batch]).all()


def test_forecast_of_nobody(make_snapshot: Callable[..., Snapshot]) -> None:
    """An engine without requests has a forecast for none."""
    model = QoEForecast.of(make_snapshot(1, request_id=np.arange(0), **EMPTY), 50.0)
    assert model(5).shape == (0,)
    assert model.table(0, 3).shape == (4, 0)


#: Snapshot fields of no request.
EMPTY = {
    name: np.zeros(0, dtype=np.int64 if "tokens" in name else np.float64)
    for name in (
        "arrival_s",
        "prompt_tokens",
        "generated_tokens",
        "kv_tokens",
        "need_tokens",
        "ttft_s",
        "tds",
        "digested",
        "area",
        "restore_s",
    )
}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tds", 0.0),
        ("tds", np.nan),
        ("area", -1.0),
        ("restore_s", np.inf),
        ("digested", np.nan),
        ("age_s", np.nan),
        ("age_s", -np.inf),
    ],
)
def test_forecast_refuses_a_state_out_of_range(field: str, value: float) -> None:
    """A number that no request can have is refused, with the request and its state."""
    names = ("age_s", "delivered", "digested", "area", "ttft_s", "tds", "restore_s")
    columns = {name: [1.0, 1.0] for name in names}
    columns[field] = [1.0, value]
    with pytest.raises(ValueError, match=rf"request 1 .*{field} {value:g}"):
        QoEForecast(
            **columns,
            dt_s=50.0,
            latency=LatencyModel(0.1, 0, 0, 0),
            capacity_tokens=10,
            mean_need_tokens=1,
        )


def test_forecast_refuses_shapes_and_horizon() -> None:
    """Arrays of different lengths, and a horizon that is no positive number."""
    engine = {
        "latency": LatencyModel(0.1, 0, 0, 0),
        "capacity_tokens": 10,
        "mean_need_tokens": 1.0,
    }
    ones = [np.ones(3)] * 6
    with pytest.raises(ValueError, match=r"restore_s \(2,\) not understood"):
        QoEForecast(*ones, np.ones(2), dt_s=50.0, **engine)
    with pytest.raises(ValueError, match="shapes age_s"):
        QoEForecast(*([np.ones((3, 2))] * 7), dt_s=50.0, **engine)
    with pytest.raises(ValueError, match="dt_s = 0"):
        QoEForecast(*ones, np.ones(3), dt_s=0, **engine)


def test_clocks_may_differ_by_a_hair() -> None:
    """A negative age counts as 0: engine and client clocks need not agree."""
    case = Case(-1e-6, 0, 0.0, 0.0, 1.0, 5.0, 0.5, 50.0)
    just_arrived = Case(0.0, 0, 0.0, 0.0, 1.0, 5.0, 0.5, 50.0)
    assert gain_at(case, 3.0) == gain_at(just_arrived, 3.0)
