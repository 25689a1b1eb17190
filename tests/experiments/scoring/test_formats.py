"""Logs that the tools themselves wrote, and what versions, cuts and other lines make of them."""

from __future__ import annotations

import copy
import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andes_opt.readers import reading
from experiments.client.log import Outcome
from experiments.runs.columns import frame
from experiments.scoring.bounds import possible_times
from experiments.scoring.formats import read_log
from experiments.scoring.scored import by_arrival, score
from experiments.scoring.targets import population_targets

LOGS = Path(__file__).parent / "logs"
#: File, tool, requests, those that failed.
REAL = [
    ("vllm.json", "vllm bench serve", 8, 1),
    ("vllm_chunks.json", "vllm bench serve", 8, 0),
    ("aiperf.jsonl", "AIPerf", 10, 2),
    ("aiperf_chunks.jsonl", "AIPerf", 10, 0),
    ("guidellm.json.gz", "GuideLLM", 8, 1),
    ("guidellm_chunks.json.gz", "GuideLLM", 8, 0),
    ("inference_perf.json", "inference-perf", 8, 2),
    ("inference_perf_chunks.json", "inference-perf", 8, 0),
]
TEXTS = {
    name: (gzip.decompress if name.endswith(".gz") else bytes)((LOGS / name).read_bytes())
    for name, *_ in REAL
}


def written(folder, content, name="log.json"):
    """A file with some content: bytes, text, or a value to be written as JSON."""
    path = folder / name
    if not isinstance(content, str | bytes):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(("name", "tool", "requests", "failed"), REAL)
def test_a_log_of_each_tool_is_recognised(name, tool, requests, failed):
    """By what is in it; every request is there, those that failed without tokens."""
    (run,) = read_log(LOGS / name)
    assert run.tool == tool
    assert not run.unread
    assert len(run.replies) == requests
    broken = [reply for reply in run.replies if reply.outcome is not Outcome.COMPLETED]
    assert len(broken) == failed
    assert all("503" in r.error or "overload" in r.error or "Unavail" in r.error for r in broken)
    for reply in run.replies:
        assert reply.start_s is not None
        if reply.outcome is Outcome.COMPLETED:
            assert reply.tokens == 8
            assert possible_times(reply)[-1].latest_s.size == 8


@pytest.mark.parametrize(
    ("name", "exact"),
    [
        ("vllm.json", True),
        ("vllm_chunks.json", False),
        ("aiperf.jsonl", True),
        ("aiperf_chunks.jsonl", False),
        ("guidellm.json.gz", False),
        ("guidellm_chunks.json.gz", False),
        ("inference_perf.json", True),
        ("inference_perf_chunks.json", True),  # the tool counted the tokens of each chunk
    ],
)
def test_what_is_known_of_token_times(name, exact):
    """All of it, or those of chunks, or the first and the last: the servers' long gap is there."""
    (run,) = read_log(LOGS / name)
    for reply in run.replies:
        if reply.outcome is not Outcome.COMPLETED:
            continue
        possible = possible_times(reply)
        assert all(each.is_exact for each in possible) is exact
        if exact:
            assert np.diff(possible[0].latest_s).max() > 0.1


def test_rates_and_schedules_are_taken_over():
    """vLLM and GuideLLM say at what rate they sent; GuideLLM also when it should have."""
    (vllm,), (guide,) = read_log(LOGS / "vllm.json"), read_log(LOGS / "guidellm.json.gz")
    assert vllm.rate == guide.rate == 8.0
    assert vllm.concurrency is None
    arrivals_s = sorted(reply.start_s for reply in guide.replies)
    np.testing.assert_allclose(np.diff(arrivals_s), 1 / 8, atol=1e-3)
    assert max(reply.send_lag_s for reply in guide.replies) > 0.01


def test_a_wait_for_vllms_own_limit_counts(tmp_path):
    """``queue_times`` of a run with a rate: its reader waited; without a rate, all came at once."""
    result = json.loads(TEXTS["vllm.json"]) | {"queue_times": [0.0] * 8}
    (before,) = read_log(written(tmp_path, result))
    result["queue_times"] = [0.5] * 8
    (run,) = read_log(written(tmp_path, result))
    assert run.replies[0].pieces_s[0] == pytest.approx(before.replies[0].pieces_s[0] + 0.5)
    assert run.replies[0].start_s == pytest.approx(before.replies[0].start_s - 0.5)
    assert run.replies[0].send_lag_s == 0.5
    (run,) = read_log(written(tmp_path, result | {"request_rate": "inf"}))
    assert run.replies[0].pieces_s == before.replies[0].pieces_s
    assert run.rate is None


def test_older_results_of_vllm(tmp_path):
    """Before ``start_times`` there was no clock; all else is the same."""
    result = json.loads(TEXTS["vllm.json"])
    for name in ("start_times", "queue_times", "latencies"):
        result.pop(name, None)
    (run,) = read_log(written(tmp_path, result))
    assert [reply.start_s for reply in run.replies] == [None] * 8
    assert not run.unread


def test_results_appended_to_one_file_are_runs_of_their_own(tmp_path):
    """``--append-result`` writes a result a line."""
    one = json.loads(TEXTS["vllm.json"])
    lines = [json.dumps(one | {"request_rate": rate}) for rate in (2.0, 4.0)]
    runs = read_log(written(tmp_path, "\n".join(lines)))
    assert [run.rate for run in runs] == [2.0, 4.0]


def test_benchmarks_of_a_sweep_are_runs_of_their_own(tmp_path):
    """GuideLLM puts one rate after the other into one file."""
    report = json.loads(TEXTS["guidellm.json.gz"])
    other = copy.deepcopy(report["benchmarks"][0])
    other["config"]["strategy"] = {"type_": "concurrent", "streams": 4}
    other["requests"]["incomplete"] = other["requests"]["successful"][:2]
    report["benchmarks"].append(other)
    first, second = read_log(written(tmp_path, report))
    assert (first.rate, first.concurrency) == (8.0, None)
    assert (second.rate, second.concurrency) == (None, 4.0)
    assert second.left_out == 2


def test_older_reports_of_guidellm(tmp_path):
    """Version 0.2's names of the same, and 0.4's."""
    old = {"start_time": 10.0, "first_token_time": 10.5, "last_token_time": 12.0}
    old |= {"end_time": 12.1, "output_tokens": 4, "prompt_tokens": 7, "request_id": "a"}
    timings = {"request_start": 10.0, "first_iteration": 10.5, "last_iteration": 12.0}
    new = {"request_id": "b", "info": {"timings": timings}, "output_metrics": {"text_tokens": 4}}
    records = {"successful": [old, new], "errored": [], "incomplete": []}
    (run,) = read_log(written(tmp_path, {"benchmarks": [{"requests": records}]}))
    for reply in run.replies:
        assert list(reply.pieces_s) == [0.5, 2.0]
        assert reply.tokens == 4


def test_warmup_is_left_out_and_cancelled_requests_fail(tmp_path):
    """AIPerf's records name their phase, and whether the request was cancelled."""
    lines = TEXTS["aiperf_chunks.jsonl"].decode().splitlines()
    lines[0] = lines[0].replace('"benchmark_phase":"profiling"', '"benchmark_phase":"warmup"')
    lines[1] = lines[1].replace('"was_cancelled":false', '"was_cancelled":true')
    (run,) = read_log(written(tmp_path, "\n".join(lines)))
    assert run.left_out == 1
    assert [reply.error for reply in run.replies if reply.error] == ["cancelled."]


def test_records_without_gaps_of_chunks_have_two_times(tmp_path):
    """Other versions of AIPerf: what is left is the first token and the end."""
    records = [json.loads(line) for line in TEXTS["aiperf.jsonl"].decode().splitlines()]
    for record in records:
        record["metrics"].pop("inter_chunk_latency", None)
    (run,) = read_log(written(tmp_path, "\n".join(map(json.dumps, records))))
    assert not run.unread
    assert {len(reply.pieces_s) for reply in run.replies} == {0, 2}


def test_requests_that_did_not_stream(tmp_path):
    """Whatever is not known of inference-perf's first token is left open, not made up."""
    records = json.loads(TEXTS["inference_perf.json"])
    for record in records:
        record["info"]["response_metrics"] = {"output_tokens": 8}
    (run,) = read_log(written(tmp_path, records))
    done = [reply for reply in run.replies if reply.outcome is Outcome.COMPLETED]
    (possible,) = possible_times(done[0])
    assert possible.earliest_s[0] == 0.0
    assert (possible.latest_s == possible.latest_s[-1]).all()


PLAIN = {
    "csv of tokens": (
        "request,time_s,arrival_s\n0,0.5,1\n0,0.7,1\n1,0.25,2\n0,0.6,1\n",
        [[0.5, 0.6, 0.7], [0.25]],
    ),
    "csv with chunks": ("request,time_s,tokens\na,0.5,2\na,0.7,1\n", [[0.5, 0.5, 0.7]]),
    "lines": (
        '{"token_times_s": [0.5, 0.7]}\n{"time_s": [0.25], "tokens": [2]}\n',
        [[0.5, 0.7], [0.25, 0.25]],
    ),
    "lines with a failure": (
        '{"token_times_s": [0.5]}\n{"request": 2, "error": "busy", "arrival_s": 1}\n',
        [[0.5], []],
    ),
    "list": ('[{"token_times_s": [0.5, 0.7]}]', [[0.5, 0.7]]),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_token_times(kind, tmp_path):
    """CSV or JSON, in any order, with or without counts."""
    text, times_s = PLAIN[kind]
    (run,) = read_log(written(tmp_path, text))
    assert not run.unread
    found = [possible_times(reply)[0].latest_s.tolist() for reply in run.replies]
    assert found == times_s


def test_plain_requests_with_ends_only(tmp_path):
    """First and last token and a count; an error, an empty reply; targets of the log's own."""
    text = (
        "request,first_token_s,completion_s,output_tokens,error,ttft_s,tds\n"
        "a,0.5,2,3,,1,5\nb,,2,3,,,\nc,,,,busy,,\nd,,,0,,,\ne,1,2,,,,\n"
    )
    (run,) = read_log(written(tmp_path, text))
    assert [reply.name for reply in run.replies] == ["a", "b", "c", "d"]
    assert (run.replies[0].ttft_s, run.replies[0].tds) == (1.0, 5.0)
    assert possible_times(run.replies[0])[0].earliest_s.tolist() == [0.5, 0.5, 2.0]
    assert possible_times(run.replies[1])[0].latest_s.tolist() == [2.0, 2.0, 2.0]
    assert [reply.error for reply in run.replies[2:]] == ["busy", "no token came."]
    (why,) = run.unread
    assert why.startswith("line 6: ")


@pytest.mark.parametrize("name", TEXTS)
def test_files_that_were_cut_off(name, tmp_path):
    """What stands before the cut is scored as it is in the whole file; the cut is named."""
    text = TEXTS[name]
    (whole,) = read_log(written(tmp_path, text))
    by_index = {reply.index: reply for reply in whole.replies}
    scored = 0
    for share in (0.3, 0.5, 0.62, 0.7, 0.77, 0.85, 0.93, 0.97, 0.99):
        path = written(tmp_path, text[: int(share * len(text))])
        try:
            (run,) = read_log(path)
        except ValueError as error:
            assert str(path) in str(error)
            assert "\n" not in str(error)
            continue
        scored += len(run.replies)
        assert run.unread
        for reply in run.replies:
            known = by_index[reply.index]
            # How long vLLM's client kept a request back stands near the end of its file.
            waited_s = 0.0 if math.isnan(known.send_lag_s) else known.send_lag_s
            np.testing.assert_allclose(reply.pieces_s, known.pieces_s, atol=waited_s)
            np.testing.assert_allclose(np.diff(reply.pieces_s), np.diff(known.pieces_s), atol=1e-9)
            assert reply.tokens == known.tokens
    assert scored


def test_a_gzip_that_was_cut_off(tmp_path):
    """What can be unpacked is read."""
    lines = TEXTS["aiperf_chunks.jsonl"] * 20
    packed = gzip.compress(lines)
    (run,) = read_log(written(tmp_path, packed[: len(packed) * 3 // 4], "log.jsonl.gz"))
    assert run.replies
    assert any("unpacked" in why for why in run.unread)


def test_lines_of_other_kinds_are_named(tmp_path):
    """Text, JSON of another tool, and what is no object, between good lines."""
    lines = TEXTS["aiperf_chunks.jsonl"].decode().splitlines()
    mixed = ["starting", *lines[:3], '{"level": "info"}', "3", "", "[1]", *lines[3:]]
    (run,) = read_log(written(tmp_path, "\n".join(mixed)))
    assert len(run.replies) == 10
    named = [why.split(" is")[0] for why in sorted(run.unread)]
    assert named == ["line 1", "line 5", "line 6", "line 8"]


def test_records_in_one_list(tmp_path):
    """Lines that somebody put into a list (``jq -s``) are the same; so are lines of a list."""
    records = [json.loads(line) for line in TEXTS["aiperf.jsonl"].decode().splitlines()]
    failed = next(record for record in records if record.get("error"))
    del failed["metrics"]
    (run,) = read_log(written(tmp_path, [*records, 3]))
    assert len(run.replies) == 10
    assert list(run.unread) == ["request 10 is no JSON object."]
    lines = "\n".join(json.dumps(each) for each in json.loads(TEXTS["inference_perf.json"]))
    (run,) = read_log(written(tmp_path, lines))
    assert (len(run.replies), run.unread) == (8, ())


def test_odd_fields_leave_out_their_request_only(tmp_path):
    """Each is named with what is wrong with it."""
    result = json.loads(TEXTS["vllm_chunks.json"])
    result["ttfts"][0] = "soon"
    result["itls"][1] = [0.1, None]
    result["itls"][2] = [-5.0]
    result["output_lens"][3] = 1e300
    result["itls"][4] = {"a": 1}
    result["ttfts"][5] = math.inf
    (run,) = read_log(written(tmp_path, result))
    assert {reply.index for reply in run.replies} >= {6, 7}
    named = {int(why.split("request ")[1].split(":")[0]) for why in run.unread}
    assert named == {0, 1, 2, 4, 5}
    # A count that is none is not known: each chunk is a token then.
    assert next(reply for reply in run.replies if reply.index == 3).tokens is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("hello\nworld\n", "vllm bench serve"),
        ("a,b\n1,2\n", "inference-perf"),
        ('{"some": "thing"}', "GuideLLM"),
        ("{" * 100_000, "AIPerf"),
        ("[" * 100_000, "docs/score.md"),
        (b"\x00\x01PAR1", "zero bytes"),
        ('{"mean_ttft_ms": 3, "completed": 2}', "--save-detailed"),
        ('{"request_latency": {}, "time_to_first_token": {}}', "profile_export.jsonl"),
        ('{"load_summary": {}, "successes": {}, "failures": {}}', "per_request"),
        ('{"ttfts": [], "itls": []}', "no request that can be scored"),
        ('{"benchmarks": [{"requests": {}}]}', "no request that can be scored"),
        ("request,time_s\n1,soon\n", "line 2: a token time is no number"),
    ],
)
def test_other_files_are_refused_in_a_sentence(content, said, tmp_path):
    """It names the file, and what is known or missing."""
    path = written(tmp_path, content)
    with pytest.raises(ValueError, match=r"log\.json") as error:
        read_log(path)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_not_there(tmp_path):
    """Nothing, or a folder."""
    for path in (tmp_path, tmp_path / "no"):
        with pytest.raises(FileNotFoundError, match="there is no file"):
            read_log(path)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers(-10, 10**7)
    | st.text(max_size=5)
    | st.sampled_from([10**400, "1e5", "-1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


def _places(value, path=()):
    yield path
    if not isinstance(value, dict | list):
        return
    for key, part in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _places(part, (*path, key))


@settings(max_examples=150, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(TEXTS)))
def test_any_field_may_be_anything(data, name, tmp_path_factory):
    """A log is read or refused in a sentence, whatever stands in whichever field."""
    text = TEXTS[name].decode()
    lines = name.endswith(".jsonl")
    value = [json.loads(line) for line in text.splitlines()[:3]] if lines else json.loads(text)
    if "benchmarks" in value:
        value = {"benchmarks": [{k: value["benchmarks"][0][k] for k in ("config", "requests")}]}
        value["benchmarks"][0]["requests"]["successful"] = value["benchmarks"][0]["requests"][
            "successful"
        ][:2]
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(list(_places(value))))
        other = data.draw(_JSON)
        if not path:
            value = other
            break
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = other
    dumped = (
        "\n".join(map(json.dumps, value))
        if lines and isinstance(value, list)
        else (json.dumps(value))
    )
    _read_or_refused(tmp_path_factory.getbasetemp(), dumped)


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=60),
        st.text(max_size=60).map(str.encode),
        st.lists(
            st.lists(st.sampled_from(["1", "a", "", "0.5", "nan", '"', "-1", "1e9"]), max_size=3),
            max_size=5,
        ).map(lambda rows: ("request,time_s,tokens\n" + "\n".join(map(",".join, rows))).encode()),
        st.builds(
            lambda name, at, junk: TEXTS[name][: at % len(TEXTS[name])] + junk,
            st.sampled_from(sorted(TEXTS)),
            st.integers(0, 10**6),
            st.binary(max_size=5),
        ),
    )
)
def test_any_bytes_are_read_or_refused(tmp_path_factory, content):
    """No content of a file makes anything but replies or a sentence."""
    _read_or_refused(tmp_path_factory.getbasetemp(), content)


def _read_or_refused(folder, content):
    path = written(folder, content, "any.log")
    try:
        runs = read_log(path)
    except ValueError as error:
        assert str(path) in str(error)
        return
    for run in runs:
        assert run.replies
        replies = by_arrival(run.replies)
        for side in ("low", "high"):
            found = score(run, replies, population_targets(replies, reading(), 0), 1.0, side)
            rows = frame(found.columns())
            for name in ("qoe_area", "qoe_delay", "qoe_window"):
                assert rows[f"{name}_low"].is_between(0, 1).all()
                assert rows[f"{name}_high"].is_between(0, 1).all()
                assert ((rows[f"{name}_low"] - rows[f"{name}_high"]) <= 1e-12).all()
                assert 0 <= found.values[f"{name}_mean"] <= 1
        for reply in run.replies:
            for possible in possible_times(reply):
                for times_s in possible:
                    assert np.isfinite(times_s).all()
                    assert (np.diff(times_s) >= 0).all()
                    assert (times_s >= 0).all()
