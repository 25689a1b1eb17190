"""From a client's log to rows and a summary with the simulator's names."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest

from andes_opt import qoe
from andes_opt.metrics import summarise
from andes_opt.qoe import QoETarget
from andes_opt.workload import Requests
from experiments import ROOT
from experiments.client.log import ClientLog, Outcome, Reply
from experiments.client.measured import measure, row_columns, summary
from experiments.live.run import engine_numbers
from experiments.runs.columns import CLIENT_COLUMNS, REQUEST_COLUMNS, frame

VECTORS = ROOT / "tests" / "reference" / "qoe_vectors.json"
NO_COUNTERS = {"vllm": {}, "adapter": {}}


def reply(times_s, outcome=Outcome.COMPLETED, sent_s=0.0, **changes):
    """A reply whose tokens came at some times on the run's clock."""
    values = {
        "error": "" if outcome is Outcome.COMPLETED else "why",
        "estimated": False,
        "events": len(times_s),
        "malformed": 0,
        "prompt_tokens": None,
        "connect_s": 0.002,
        **changes,
    }
    return Reply(
        outcome=outcome, sent_s=sent_s, token_times_s=np.array(times_s, dtype=float), **values
    )


def log(replies, arrivals, targets=None, **changes):
    """A client's log of some replies."""
    n = len(arrivals)
    targets = targets or [(1.0, 5.0)] * n
    requests = Requests(
        arrival_s=np.array(arrivals, dtype=float),
        prompt_tokens=np.full(n, 10),
        output_tokens=np.full(n, 4),
        ttft_s=np.array([ttft for ttft, _ in targets]),
        tds=np.array([tds for _, tds in targets]),
    )
    values = {
        "loop_lag_s": np.array([0.001, 0.003]),
        "in_flight_max": n,
        "wall_s": 10.0,
        "cpu_s": 1.0,
        "interrupted": False,
        "server_gone": False,
    }
    return ClientLog(requests=requests, replies=tuple(replies), **(values | changes))


def mixed():
    """A reader on time, one late, one refused, one broken off, one given up."""
    return log(
        [
            reply([1.0, 1.2, 1.4, 1.6], prompt_tokens=12),
            reply([4.0, 4.5, 5.0, 5.5], sent_s=1.01, events=2),
            reply([], Outcome.REFUSED, sent_s=2.0),
            reply([3.5, 3.6], Outcome.FAILED, sent_s=3.0, malformed=1),
            reply([4.5], Outcome.TIMED_OUT, sent_s=4.0, estimated=True),
        ],
        [0.0, 1.0, 2.0, 3.0, 4.0],
    )


def test_scores_equal_the_reference_vectors():
    """Streams of the hand-checked vectors, at any arrival, get the vectors' three scores."""
    vectors = json.loads(VECTORS.read_text())
    arrivals = np.arange(len(vectors), dtype=float)
    replies = [
        reply(np.array(v["token_times_s"]) + a) for v, a in zip(vectors, arrivals, strict=True)
    ]
    targets = [(v["ttft_s"], v["tds"]) for v in vectors]
    measured = measure(log(replies, arrivals, targets), 1.0)
    for definition in ("area", "delay", "window"):
        expected = [v[definition] for v in vectors]
        assert getattr(measured, f"qoe_{definition}") == pytest.approx(expected, abs=1e-6)


def test_what_broke_off_is_scored_by_what_came():
    """A broken stream scores as a reply of its tokens would, one without a token 0 throughout."""
    measured = measure(mixed(), 1.0)
    scores = ("qoe_area", "qoe_delay", "qoe_window", "fluidity", "smooth_benefit_tokens")
    for name in scores:
        values = getattr(measured, name)
        assert values[0] > 0
        assert values[2] == 0
    for name in ("fluidity", "smooth_benefit_tokens"):
        assert (getattr(measured, name)[3:] == 0).all()
    target = QoETarget(1.0, 5.0)
    for definition in (qoe.area, qoe.delay, qoe.window):
        values = getattr(measured, f"qoe_{definition.__name__}")
        assert values[3] == definition([0.5, 0.6], target)
        assert values[4] == definition([0.5], target)
    assert measured.output_tokens.tolist() == [4, 4, 0, 2, 1]
    assert measured.rejected.tolist() == [False, False, True, False, False]
    assert np.isnan(measured.completion_s).tolist() == [False, False, True, True, True]
    assert measured.first_token_s[[0, 1, 3, 4]] == pytest.approx([1.0, 3.0, 0.5, 0.5])
    assert measured.prompt_tokens.tolist() == [12, 10, 10, 10, 10]
    late = QoETarget(1.0, 5.0)
    assert measured.qoe_area[1] == qoe.area([3.0, 3.5, 4.0, 4.5], late)


def test_the_summary_speaks_the_simulators_language():
    """Every metric of a simulated run is there under its name, with the same meaning."""
    client_log = mixed()
    measured = measure(client_log, 1.0)
    values = summary(measured, client_log)
    common = summarise(measured)
    unseen = {"preemptions", "preemptions_per_request"}
    assert {name: values[name] for name in common if name not in unseen} == pytest.approx(
        {name: value for name, value in common.items() if name not in unseen}, nan_ok=True
    )
    assert all(math.isnan(values[name]) for name in unseen)
    assert values["requests"] == 5
    assert (values["rejected"], values["unfinished"]) == (1, 2)
    assert (values["failed"], values["timed_out"], values["interrupted"]) == (1, 1, 0)
    assert values["makespan_s"] == pytest.approx(5.5)
    # By 4.0 s, the last arrival, 4 + 1 tokens of complete replies had come.
    assert values["tokens_per_s_arriving"] == pytest.approx(5 / 4)


def test_metrics_of_streams_by_hand():
    """TPOT, ITL, goodput, smooth goodput, fluidity and the client's own numbers, as counted."""
    client_log = mixed()
    values = summary(measure(client_log, 0.5), client_log)
    assert values["tpot_p50_s"] == pytest.approx(0.35)  # of 0.2 and 0.5
    assert values["itl_p50_s"] == pytest.approx(0.35)  # of three 0.2 and three 0.5
    assert values["itl_max_s"] == pytest.approx(0.5)
    assert values["goodput_share"] == pytest.approx(1 / 5)
    assert values["goodput_requests_per_s"] == pytest.approx(1 / 5.5)
    # The second reader waits 2 s for the first token, then 0.3 s before each other.
    assert values["idle_mean_s"] == pytest.approx(2.9 / 2)
    assert values["smooth_goodput_tokens_per_s"] == pytest.approx((4 + 4 - 0.5 * 2.9) / 5.5)
    assert values["fluidity_share_ge_0p9"] == pytest.approx(1 / 5)
    assert values["send_lag_max_s"] == pytest.approx(0.01)
    assert values["connect_max_s"] == pytest.approx(0.002)
    assert values["loop_lag_max_s"] == pytest.approx(0.003)
    assert values["client_cpu_share"] == pytest.approx(0.1)
    assert values["tokens_per_event"] == pytest.approx(11 / 9)
    assert (values["estimated_streams"], values["malformed_events"]) == (1, 1)


def test_a_reply_on_time_at_exactly_its_pace_is_good():
    """A TPOT of 1/tds, but for rounding, meets the target."""
    client_log = log([reply(1.0 + np.arange(999) / 4.9)], [0.0], [(1.0, 4.9)])
    assert summary(measure(client_log, 1.0), client_log)["goodput_share"] == 1.0


def test_one_token_or_none_leave_no_gaps():
    """Runs with nothing to measure give NaN, never an error."""
    for replies in ([reply([0.5])], [reply([], Outcome.FAILED, sent_s=math.nan)]):
        client_log = log(replies, [0.0], loop_lag_s=np.empty(0))
        values = summary(measure(client_log, 1.0), client_log)
        assert math.isnan(values["tpot_p50_s"])
        assert math.isnan(values["itl_p99_s"])
        assert math.isnan(values["loop_lag_p99_s"])
    assert math.isnan(values["ttft_p50_s"])
    assert values["goodput_share"] == 0


def test_an_interrupted_log_is_scored_as_far_as_it_goes():
    """Requests that were never sent are no rows."""
    client_log = log([reply([0.5]), reply([1.5], Outcome.INTERRUPTED, sent_s=1.0)], [0, 1, 2, 3])
    measured = measure(client_log, 1.0)
    assert measured.arrival_s.size == 2
    assert summary(measured, client_log)["interrupted"] == 1


def test_rows_have_documented_columns_and_types():
    """Rows hold all columns of a simulated request and those of the client, and nothing else."""
    rows = frame(row_columns(measure(mixed(), 1.0)))
    assert rows.columns == [*REQUEST_COLUMNS, *CLIENT_COLUMNS]
    assert rows["outcome"].to_list() == ["completed"] * 2 + ["refused", "failed", "timed out"]
    assert rows["error"].to_list() == [None, None, "why", "why", "why"]
    assert rows["preemptions"].null_count() == 5
    assert rows["send_lag_s"][1] == pytest.approx(0.01)


def test_every_metric_of_live_runs_is_documented_and_no_other():
    """The table in docs/live.md lists what a run's summary has beside the simulator's metrics."""
    text = (ROOT / "docs" / "live.md").read_text("utf-8")
    table = text[text.index("`summary.json` has these metrics") : text.index("## Watch it")]
    first_cells = re.findall(r"^\| (`[^|]+) \|", table, flags=re.MULTILINE)
    names = {name for cell in first_cells for name in re.findall(r"`([^`]+)`", cell)}
    of_the_adapter = {
        "adapter_...",
        "planning_share",
        "adapter_share",
        "adapter_iteration_mean_s",
    }
    percentiles = {"fluidity": (1, 10, 50), **dict.fromkeys(("send", "connect", "loop"), (50, 99))}
    documented = {
        name.replace("{percent}", str(percent))
        for name in names - of_the_adapter
        for percent in percentiles.get(name.split("_")[0], (50, 90, 99))
    }
    client_log = mixed()
    measured = measure(client_log, 1.0)
    assert of_the_adapter < names
    of_engines = {"engine_start_s", *engine_numbers(NO_COUNTERS, NO_COUNTERS, 1)}
    assert of_engines < documented | {"preemptions", "preemptions_per_request"}
    ours = (set(summary(measured, client_log)) | of_engines) - set(summarise(measured))
    assert documented == ours
