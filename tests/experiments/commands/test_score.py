"""andes-opt score: other tools' logs become runs like any other's, or a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from andes_opt import qoe
from andes_opt.qoe import QoETarget
from andes_opt.readers import reading
from andes_opt.workload import Requests, streams
from experiments import ROOT
from experiments.cli import main
from experiments.client.log import ClientLog, Outcome, Reply
from experiments.client.measured import measure, summary
from experiments.runs.columns import CLIENT_COLUMNS, REQUEST_COLUMNS, RUN_COLUMNS, SCORE_COLUMNS
from experiments.runs.records import read_rows

LOGS = Path(__file__).parents[1] / "scoring" / "logs"
VLLM, CHUNKS = LOGS / "vllm.json", LOGS / "vllm_chunks.json"
STRICT = ("readers=fixed", "readers.ttft_s=0.03", "readers.tds=60")
DEFINITIONS = ("area", "delay", "window")


def refusal(capsys, *words):
    """The sentence with which a command line is refused."""
    assert main(["score", *map(str, words)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("andes-opt score: ")
    assert told.count("\n") == 1
    return told


def test_a_log_becomes_a_run_like_benchs(run):
    """All columns of the client, the log's own beside them, tokens, and the same summary."""
    folder, summary = run("score", str(VLLM), *STRICT)
    rows = pl.read_parquet(folder / "rows.parquet")
    columns = {**RUN_COLUMNS, **REQUEST_COLUMNS, **CLIENT_COLUMNS, **SCORE_COLUMNS}
    assert set(rows.columns) == set(columns)
    assert rows["policy"].unique().to_list() == ["vllm"]
    assert rows["rate"].unique().to_list() == [8.0]
    assert rows["outcome"].value_counts(sort=True)["outcome"].to_list() == ["completed", "failed"]
    failed = rows.filter(pl.col("outcome") == "failed")
    assert failed.select(f"qoe_{name}" for name in DEFINITIONS).row(0) == (0.0, 0.0, 0.0)
    assert failed["error"].item() == "Service Unavailable"
    assert (summary["requests"], summary["failed"], summary["bounds_only"]) == (8.0, 1.0, 0.0)

    result, target = json.loads(VLLM.read_text()), QoETarget(0.03, 60.0)
    tokens = pl.read_parquet(folder / "tokens.parquet")
    for k in (0, 7):
        times_s = np.cumsum([result["ttfts"][k], *result["itls"][k]]) + result["queue_times"][k]
        own = tokens.filter(pl.col("request") == k)["time_s"].to_numpy()
        np.testing.assert_allclose(own, times_s, atol=1e-9)
        for name in DEFINITIONS:
            truth = getattr(qoe, name)(times_s, target)
            assert rows[f"qoe_{name}"][k] == pytest.approx(truth, abs=1e-6)
            assert (
                rows[f"qoe_{name}_low"][k] == rows[f"qoe_{name}_high"][k] == rows[f"qoe_{name}"][k]
            )
    log = json.loads((folder / "env.json").read_text())["log"]
    assert log == {"tool": "vllm bench serve", "file": str(VLLM)}


def test_a_scored_log_of_tokens_agrees_with_the_run_that_made_it(run, tmp_path):
    """The simulator's own token times, written as CSV: the same QoE, TTFT and counts."""
    folder, before = run(
        "simulate", "workload.requests=12", "workload.rate=2", "policy=fcfs", "tokens=true"
    )
    rows = pl.read_parquet(folder / "rows.parquet")
    tokens = pl.read_parquet(folder / "tokens.parquet")
    arrivals = rows.select(pl.col("request").cast(tokens["request"].dtype), "arrival_s")
    tokens.join(arrivals, on="request").write_csv(tmp_path / "log.csv")
    rows.select("request", "ttft_s", "tds").write_csv(tmp_path / "targets.csv")
    _, after = run("score", "log.csv", "targets=targets.csv")
    for name, value in before.items():
        if name.startswith(("qoe_", "ttft_", "tds_", "completion_")):
            assert after[name] == pytest.approx(value, abs=1e-9), name


def test_chunks_with_several_tokens_give_bounds(run, capsys):
    """Rows say which, the summary has both ends, ``bound`` says which one counts."""
    folder, low = run("score", str(CHUNKS), *STRICT)
    assert "area 0." in (told := capsys.readouterr().out)
    assert " to 0." in told
    assert "QoE has bounds only" in told
    rows = pl.read_parquet(folder / "rows.parquet")
    assert rows["bounds_only"].all()
    assert rows["itl_max_s"].null_count() == rows["fluidity"].null_count() == rows.height
    assert low["fluidity_mean"] is None
    _, high = run("score", str(CHUNKS), *STRICT, "bound=high")
    for name in DEFINITIONS:
        ends = (low[f"qoe_{name}_mean_low"], low[f"qoe_{name}_mean_high"])
        assert ends == (low[f"qoe_{name}_mean"], high[f"qoe_{name}_mean"])
        assert ends[0] < ends[1]
    assert low["ttft_p50_s"] == high["ttft_p50_s"]


def test_a_chat_has_a_chunk_more_than_tokens(run):
    """vLLM's first names the role: the bounds hold the truth, TTFT is what it is at most."""
    result = json.loads(VLLM.read_text())
    result["itls"] = [[0.001, *gaps] if gaps else [] for gaps in result["itls"]]
    Path("chat.json").write_text(json.dumps(result))
    folder, summary = run("score", "chat.json", *STRICT)
    rows = pl.read_parquet(folder / "rows.parquet")
    assert summary["bounds_only"] == 7
    for k in (0, 7):
        truth = np.cumsum([result["ttfts"][k] + 0.001, *result["itls"][k][1:]])
        truth += result["queue_times"][k]
        assert rows["first_token_s"][k] == pytest.approx(truth[0])
        assert rows["completion_s"][k] == pytest.approx(truth[-1])
        for name in DEFINITIONS:
            value = getattr(qoe, name)(truth, QoETarget(0.03, 60.0))
            low, high = (rows[f"qoe_{name}_{side}"][k] for side in ("low", "high"))
            assert low - 1e-9 <= value <= high + 1e-9


def test_two_logs_are_compared_by_report(capsys):
    """``--baseline`` takes the name of a file; bounds are told."""
    assert main(["score", str(VLLM), str(CHUNKS), *STRICT, "hydra.run.dir=scored"]) == 0
    assert sorted(path.name for path in Path("scored").iterdir() if path.name[0] != ".") == [
        "summary.json",
        "vllm",
        "vllm_chunks",
    ]
    capsys.readouterr()
    assert main(["report", "scored", "--baseline", "vllm"]) == 0
    told = capsys.readouterr().out
    assert "Policies are compared with vllm," in told
    assert "Difference to vllm: logged, fixed" in told
    assert "token times of 8 of 8 replies are missing" in told
    assert "not complete" not in told


def test_logs_of_one_policy_are_repeats(capsys):
    """They get seeds, and each seed its readers, the same as those of a run with it."""
    words = [str(VLLM), str(CHUNKS), "served_by.policy=stock", "rate=8", "seed=3"]
    assert main(["score", *words, "hydra.run.dir=scored"]) == 0
    rows = read_rows(Path("scored"))
    assert rows["policy"].unique().to_list() == ["stock"]
    assert sorted(rows["seed"].unique()) == [3, 4]
    for seed in (3, 4):
        _, tds = reading().sample(streams(seed)[2], np.full(8, 5))
        assert rows.filter(pl.col("seed") == seed)["tds"].to_list() == tds.tolist()
    assert main(["report", "scored"]) == 0


def test_files_of_one_name_are_told_apart_by_their_folders():
    """As AIPerf's are, which are all called the same."""
    for name in ("a", "b"):
        Path(name).mkdir()
        Path(name, "result.json").write_bytes(VLLM.read_bytes())
    assert main(["score", "a/result.json", "b/result.json", "hydra.run.dir=scored"]) == 0
    assert sorted(read_rows(Path("scored"))["policy"].unique()) == ["a", "b"]


def test_several_benchmarks_of_a_file_are_runs(run):
    """By their rates, each in a folder of its own."""
    one = json.loads(VLLM.read_text())
    text = "\n".join(json.dumps(one | {"request_rate": rate}) for rate in (2.0, 4.0))
    Path("all.json").write_text(text)
    folder, summary = run("score", "all.json")
    assert summary == {"runs": 2}
    assert sorted(read_rows(folder)["rate"].unique()) == [2.0, 4.0]


@pytest.mark.parametrize("name", ["rate=2.json", "run (1).json", "umläut.json", "~/it's.json"])
def test_a_log_may_have_any_name(name, tmp_path, monkeypatch, run):
    """A word that names a file is one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / name.removeprefix("~/")).write_bytes(VLLM.read_bytes())
    _, summary = run("score", name)
    assert summary["requests"] == 8.0


def test_targets_of_a_file(run, capsys):
    """In the log's order, or by the tool's names; every request needs one."""
    lines = [f"{0.01 * (k + 1):.2f},{k + 1}" for k in range(10)]
    Path("t.csv").write_text("\n".join(["ttft_s,tds", *lines]))
    folder, _ = run("score", str(LOGS / "aiperf.jsonl"), "targets=t.csv")
    rows = pl.read_parquet(folder / "rows.parquet")
    places = rows["record"].str.strip_prefix("line ").cast(pl.Int64)
    assert rows["tds"].to_list() == places.cast(pl.Float64).to_list()
    assert rows["readers"].unique().to_list() == ["targets"]

    text = (LOGS / "aiperf.jsonl").read_text()
    names = [json.loads(line)["metadata"]["x_request_id"] for line in text.splitlines()]
    named = [f"{name},{line}" for name, line in zip(names, lines, strict=True)]
    Path("t.csv").write_text("\n".join(["request,ttft_s,tds", *reversed(named)]))
    folder, _ = run("score", str(LOGS / "aiperf.jsonl"), "targets=t.csv")
    assert pl.read_parquet(folder / "rows.parquet")["tds"].equals(rows["tds"])

    Path("t.csv").write_text("ttft_s,tds\n1,2\n")
    assert "no target for request" in refusal(capsys, VLLM, "targets=t.csv")
    Path("t.csv").write_text("ttft_s,tds\n1,fast\n")
    assert "t.csv, line 2, column tds: 'fast'" in refusal(capsys, VLLM, "targets=t.csv")
    Path("t.csv").write_text("ttft_s,tds\n1,-2\n")
    assert "t.csv, line 2: tds = -2" in refusal(capsys, VLLM, "targets=t.csv")
    assert "there is no file no.csv" in refusal(capsys, VLLM, "targets=no.csv")


def test_logs_without_a_clock(run, capsys):
    """Older results of vLLM: QoE is known, throughput is not; report takes them."""
    result = json.loads(VLLM.read_text())
    for name in ("start_times", "queue_times"):
        del result[name]
    del result["input_lens"]
    Path("old.json").write_text(json.dumps(result))
    folder, summary = run("score", "old.json", *STRICT)
    assert summary["qoe_area_mean"] > 0
    assert summary["tokens_per_s"] is None
    assert summary["makespan_s"] is None
    assert pl.read_parquet(folder / "rows.parquet")["arrival_s"].null_count() == 8
    capsys.readouterr()
    assert main(["report", str(folder)]) == 0


def test_what_can_not_be_read_is_counted_and_named(capsys):
    """The rest is scored and kept; the status is that of a failure."""
    lines = (LOGS / "aiperf_chunks.jsonl").read_text().splitlines()
    Path("mixed.jsonl").write_text("\n".join(["hello", *lines[:4], lines[5][:200]]))
    Path("other.txt").write_text("hello\n")
    words = ["mixed.jsonl", "other.txt", "none.json", "hydra.run.dir=out"]
    assert main(["score", *words]) == 1
    told = capsys.readouterr()
    assert "4 of 4 replies complete" in told.out
    assert "there is no file none.json" in told.err
    assert "other.txt not understood" in told.err
    assert "line 1 is no JSON object" in told.err
    assert "line 6" in told.err
    assert json.loads(Path("out/summary.json").read_text())["unread"] >= 2
    assert "line 1 is no JSON object." in Path("out/unread.txt").read_text().splitlines()
    assert read_rows(Path("out")).height == 4
    # What is read whole the next time leaves nothing of it.
    assert main(["score", str(VLLM), "hydra.run.dir=out"]) == 0
    assert not Path("out/unread.txt").exists()


def test_a_sweep_over_seeds(capsys):
    """Each draws other readers; what can't be read stops no run."""
    Path("log.json").write_bytes(VLLM.read_bytes())
    words = ["--multirun", "log.json", "none.json", "seed=0,1", "hydra.sweep.dir=sweep"]
    assert main(["score", *words]) == 0
    assert "there is no file none.json" in capsys.readouterr().err
    assert sorted(read_rows(Path("sweep"))["seed"].unique()) == [0, 1]


def test_bad_options_are_refused_in_a_sentence(capsys, tmp_path):
    """With the value, what is valid, and nothing left behind."""
    assert "name of a log" in refusal(capsys)
    assert "vllm bench serve" in refusal(capsys)
    assert "low, high" in refusal(capsys, VLLM, "bound=lo")
    assert "seed = -1" in refusal(capsys, VLLM, "seed=-1")
    assert "idle_cost" in refusal(capsys, VLLM, "idle_cost=-1")
    assert "did you mean reading?" in refusal(capsys, VLLM, "readers=readin")
    assert "there is no file nothing.json" in refusal(capsys, "nothing.json")
    assert not list(tmp_path.iterdir())


def test_the_page_defines_what_the_summary_has_beside_benchs(run):
    """docs/score.md has a line for each metric that neither metrics.md nor live.md has."""
    page, *others = (
        (ROOT / "docs" / name).read_text(encoding="utf-8")
        for name in ("score.md", "metrics.md", "live.md")
    )
    _, found = run("score", str(VLLM))
    own = [name for name in found if name.endswith(("_low", "_high")) or name not in _bench()]
    for name in own:
        general = name.replace("area", "{definition}").replace("delay", "{definition}")
        general = general.replace("window", "{definition}")
        assert f"| `{general}` |" in page
    assert own
    assert not [name for name in own if any(f"`{name}`" in other for other in others)]


def _bench():
    """Names of the metrics of a run of the client."""
    log = ClientLog(
        Requests(*(np.array([value]) for value in (0.0, 1, 1, 1.0, 1.0))),
        (Reply(Outcome.COMPLETED, "", 0.0, 0.0, np.array([1.0]), False, 1, 0, None),),
        np.empty(0), 1, 1.0, 1.0, False, False,
    )  # fmt: skip
    return summary(measure(log, 1.0), log)
