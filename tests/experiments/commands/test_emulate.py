"""`andes-opt emulate`: its files, the keys that others rely upon, its sweeps, its refusals."""

from __future__ import annotations

import json
import sys

import polars as pl
import pytest

from experiments.cli import main
from experiments.configuration.compose import load, open_nodes
from experiments.runs.columns import COLUMNS, REQUEST_COLUMNS, RUN_COLUMNS
from experiments.runs.identity import identity

TINY = ("workload.requests=20", "workload.rate=3", "engine.capacity_tokens=4000", "solver=greedy")

#: What is relied upon from outside.
KEYS = (
    "ttft_p50_s",
    "ttft_p95_s",
    "tpot_p50_s",
    "tpot_p95_s",
    "tokens_per_s",
    "requests_per_s",
    "preemptions",
    "iterations",
    "rescues",
)


def test_without_vllm_one_sentence_says_how_to_get_it(monkeypatch, capsys):
    """In an environment without vLLM the command says what is missing, and nothing else."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert main(["emulate", *TINY]) == 2
    message = capsys.readouterr().err
    assert message.startswith("andes-opt emulate: vLLM is not installed: pip install")
    assert message.count("\n") == 1


def test_vllms_options_may_have_any_name():
    """They are checked by vLLM; other options are checked as always, with a hint."""
    assert open_nodes("emulate") == ["vllm"]
    config = load("emulate", ["vllm.max-num-seqs=64", "vllm.watermark=0.01", "seed=3"])
    assert dict(config.vllm) == {"max-num-seqs": 64, "watermark": 0.01}


def test_an_unknown_option_is_refused(capsys):
    """No node but vllm takes whatever comes."""
    assert main(["emulate", "vlm.watermark=0.01"]) == 2
    assert "vlm" in capsys.readouterr().err


def test_a_scheduler_of_ones_own_counts_by_its_file(tmp_path, monkeypatch):
    """A changed class is another run, as of solvers and policies."""
    monkeypatch.syspath_prepend(tmp_path)
    codes = []
    for text in ("A = 1\n", "A = 2\n"):
        (tmp_path / "my_scheduler_module.py").write_text(text)
        config = load("emulate", ["scheduler_cls=my_scheduler_module.Class"])
        codes.append(identity("emulate", config)["code"])
    assert codes[0] != codes[1]


@pytest.mark.live
def test_a_run_writes_what_a_simulation_writes(run):
    """The same columns and metrics, a word on the engine, and the adapter's counters beside."""
    arguments = (*TINY, "policy=andes", "seed=3", "vllm.max-num-seqs=8", "timeline=true")
    folder, summary = run("emulate", *arguments, "tokens=true")
    assert {path.name for path in folder.iterdir()} == {
        "rows.parquet",
        "tokens.parquet",
        "timeline.parquet",
        "summary.json",
        "adapter.json",
        "env.json",
        ".hydra",
    }
    rows = pl.read_parquet(folder / "rows.parquet")
    assert rows.columns == [*RUN_COLUMNS, *REQUEST_COLUMNS]
    assert rows.dtypes == [COLUMNS[name].dtype for name in rows.columns]
    first = rows.row(0, named=True)
    assert (first["command"], first["engine_kind"]) == ("emulate", "emulator")
    assert (first["policy"], first["solver"], first["rate"]) == ("andes", "greedy", 3.0)
    assert first["engine"] == "opt_66b_recompute"
    assert rows["qoe_area"].mean() == pytest.approx(summary["qoe_area_mean"])
    assert pl.read_parquet(folder / "timeline.parquet")["decoding"].max() <= 8
    assert pl.read_parquet(folder / "tokens.parquet").height == rows["output_tokens"].sum()
    assert json.loads((folder / "adapter.json").read_text())["iterations"] >= summary["iterations"]

    _, simulated = run("simulate", *TINY, "policy=andes", "seed=3")
    assert set(simulated) <= set(summary)
    assert set(summary) - set(simulated) == {"rescues", "cached_tokens"}


@pytest.mark.live
def test_what_is_relied_upon(run):
    """The command line and the keys of summary.json that other programs use."""
    folder, summary = run(
        "emulate",
        "stock=true",
        "engine=qwen32b_h200",
        "workload.rate=2",
        "workload.requests=200",
        "lengths=fixed",
        "lengths.prompt_tokens=108",
        "lengths.output_tokens=132",
        "seed=1",
        "skip_s=60",
    )
    assert all(isinstance(summary[name], float) for name in KEYS)
    rows = pl.read_parquet(folder / "rows.parquet")
    assert rows.height == 200
    assert rows["policy"].unique().to_list() == ["stock"]
    late = rows.filter(pl.col("arrival_s") >= 60)
    assert summary["requests"] == late.height < 200
    span_s = (late["arrival_s"] + late["completion_s"]).max() - late["arrival_s"].min()
    assert summary["requests_per_s"] == pytest.approx(late.height / span_s)
    assert summary["tokens_per_s"] == pytest.approx(132 * late.height / span_s)
    tpot_s = (late["completion_s"] - late["first_token_s"]) / 131
    assert summary["tpot_p95_s"] == pytest.approx(tpot_s.quantile(0.95, "linear"))
    assert summary["ttft_p95_s"] == pytest.approx(late["first_token_s"].quantile(0.95, "linear"))


@pytest.mark.live
def test_a_sweep_resumes_and_a_report_serves_both(tmp_path, capsys):
    """Stock and ours beside a simulation: made once, in one report."""
    arguments = [
        *("emulate", "--multirun", "hydra/launcher=basic", "hydra.sweep.dir=sweep", *TINY[:3]),
        *("sweep.resume=true", "stock=true,false", "policy=fcfs", "vllm.watermark=0,0.05"),
    ]
    assert main(arguments) == 0
    summaries = sorted(tmp_path.glob("sweep/*/summary.json"))
    assert len(summaries) == 4
    written = [path.stat().st_mtime_ns for path in summaries]
    capsys.readouterr()
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("is complete.") == 4
    assert [path.stat().st_mtime_ns for path in summaries] == written

    assert main(["simulate", *TINY, "policy=fcfs", "hydra.run.dir=sweep/simulated"]) == 0
    assert main(["report", "sweep", "--output", "report"]) == 0
    text = next(tmp_path.glob("report/*.md")).read_text()
    assert "stock" in text and "emulate" in text and "simulate" in text


@pytest.mark.live
@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("vllm.nonsense=1", "need one of async-scheduling"),
        ("vllm.watermark=2", "less than 1"),
        ("scheduler_cls=nowhere.Class", "No module named 'nowhere'"),
        ("concurrency=0", "concurrency"),
        ("skip_s=1000", "leaves out all 20 requests"),
        ("solver_time=often", "solver_time"),
    ],
)
def test_a_wrong_option_is_told_in_a_sentence(override, words, tmp_path, capsys):
    """With the value and the choices, and no folder is left behind."""
    assert main(["emulate", "policy=fcfs", *TINY, override, "hydra.run.dir=out"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("andes-opt emulate: ") and message.count("\n") == 1
    assert words in message
    assert not (tmp_path / "out").exists()


@pytest.mark.live
def test_stock_and_a_class_exclude_each_other(capsys):
    """Neither wins silently."""
    assert main(["emulate", "stock=true", "scheduler_cls=my.Class", *TINY]) == 2
    assert "exclude each other" in capsys.readouterr().err


@pytest.mark.live
def test_a_closed_loop_has_no_rate(run, monkeypatch, tmp_path):
    """Arrival times are ignored, so no row says that they came at a rate; a class has its name."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_scheduler.py").write_text(
        "from vllm.v1.core.sched.async_scheduler import AsyncScheduler\n"
        "class Mine(AsyncScheduler):\n    pass\n"
    )
    folder, summary = run("emulate", *TINY, "concurrency=3", "scheduler_cls=own_scheduler.Mine")
    first = pl.read_parquet(folder / "rows.parquet").row(0, named=True)
    assert (first["rate"], first["policy"]) == (None, "own_scheduler.Mine")
    assert summary["unfinished"] == 0
    del sys.modules["own_scheduler"]
