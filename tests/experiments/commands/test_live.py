"""`andes-opt live` with a program in vLLM's place: engines, loads, sweeps, what goes wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from experiments.cli import main
from experiments.configuration.compose import load
from experiments.configuration.errors import UsageError
from experiments.live.engine import only_engine
from experiments.live.run import engine_numbers, request_rate, settings_of
from experiments.live.server import parse_metrics
from experiments.runs.columns import CLIENT_COLUMNS, REQUEST_COLUMNS, RUN_COLUMNS

pytestmark = pytest.mark.usefixtures("own_lock")

PROGRAM = Path(__file__).parents[1] / "live" / "scripted_engine.py"
#: Tells this process's engines from those of tests that run beside it.
MARK = f"by-{os.getpid()}"
TINY = (
    f"live_engine.server=[{sys.executable},{PROGRAM},{MARK}]",
    "live_engine.start_s=30",
    "workload.requests=5",
    "workload.rate=50",
    "lengths=fixed",
    "lengths.output_tokens=4",
    "warm_up=2",
)


def left_behind():
    """Processes of the scripted engine that run now."""
    command = ["ps", "-ww", "-eo", "args"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True)
    # The command that is tested has the mark in its own arguments, too.
    lines = listed.stdout.splitlines()
    return [line for line in lines if f"{PROGRAM} {MARK}" in line]


def test_a_run_writes_what_a_simulation_writes(run, capsys):
    """Rows and summary under the simulator's names, and what engine and adapter counted."""
    folder, summary = run("live", *TINY, "policy=thrift", "solver=exact", "seed=3", "tokens=true")
    assert {path.name for path in folder.iterdir()} == {
        "rows.parquet",
        "tokens.parquet",
        "summary.json",
        "env.json",
        "adapter.json",
        "server.log",
        ".hydra",
    }
    rows = pl.read_parquet(folder / "rows.parquet")
    assert rows.columns == [*RUN_COLUMNS, *REQUEST_COLUMNS, *CLIENT_COLUMNS]
    first = rows.row(0, named=True)
    assert (first["command"], first["policy"], first["solver"]) == ("live", "thrift", "exact")
    assert (first["engine"], first["rate"], first["seed"]) == ("opt_tiny", 50.0, 3)
    assert rows["output_tokens"].to_list() == [4] * 5
    # What was counted before the run is not in it: 5 requests, and the one that asks for counters.
    assert summary["preemptions"] == 2 * 6
    assert summary["preemptions_per_request"] == pytest.approx(12 / 5)
    assert summary["adapter_plans"] == 6
    assert summary["adapter_share"] == summary["adapter_planner_share"] == pytest.approx(0.001)
    assert summary["adapter_resumed_cached_share"] == pytest.approx(0.4)
    assert summary["adapter_fallbacks"] == 0
    text = capsys.readouterr().out
    assert "5 of 5 replies complete" in text
    assert "6 plans" in text
    assert left_behind() == []


def test_a_proxy_is_not_asked_for_the_engine(run, monkeypatch):
    """The engine is on this machine, whatever proxy the environment names."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    _, summary = run("live", *TINY, "stock=true")
    assert summary["preemptions"] == 2 * 5


def test_ctrl_c_while_warming_up_ends_the_run(monkeypatch, tmp_path):
    """The run does not go on to be recorded as complete."""
    from experiments.client import open_loop

    replay = open_loop.replay

    def interrupted(requests, *arguments, **options):
        return replace(replay(requests, *arguments, **options), interrupted=True)

    monkeypatch.setattr(open_loop, "replay", interrupted)
    assert main(["live", "hydra.run.dir=out", *TINY]) == 130
    assert not (tmp_path / "out" / "summary.json").exists()
    assert left_behind() == []


def test_stock_is_vllms_own_scheduler(run):
    """stock=true names no scheduler and no adapter; rows say stock, the summary has no adapter."""
    folder, summary = run("live", *TINY, "stock=true")
    assert pl.read_parquet(folder / "rows.parquet")["policy"].unique().to_list() == ["stock"]
    assert not (folder / "adapter.json").exists()
    assert not any(name.startswith("adapter_") for name in summary)
    assert summary["preemptions"] == 2 * 5

    engine = load("live", ["stock=true"])
    assert settings_of(engine) is None


def test_the_command_has_the_engines_flags_and_the_chosen_scheduler():
    """Flags come from conf/live_engine; our scheduler and its settings only if not stock."""
    from experiments.configuration.compose import build

    config = load("live", ["live_engine.server=[engine]", "solver=exact"])
    engine = build(config, "live_engine")
    command = engine.command(settings_of(config), 8123)
    assert command[:3] == ["engine", "--model", "opt_tiny"]
    assert command[command.index("--port") + 1] == "8123"
    assert command[command.index("--num-gpu-blocks-override") + 1] == "161"
    assert "--enforce-eager" in command
    assert command[command.index("--scheduler-cls") + 1].endswith("AndesScheduler")
    settings = json.loads(command[command.index("--additional-config") + 1])["andes_opt"]
    assert settings["policy"]["solver"]["_target_"] == "solvers.exact.Exact"
    assert settings["latency"]["base_s"] == engine.profile.latency.base_s
    assert "--scheduler-cls" not in engine.command(None, 8123)


def test_a_load_is_a_multiple_of_the_saturated_token_rate():
    """load=1.6 asks for 1.6 times the tokens/s that the engine can make."""
    config = load("live", ["load=1.6", "live_engine.saturated_tokens_per_s=300"])
    rate = request_rate(config)
    assert rate == pytest.approx(1.6 * 300 / 150, rel=0.01)
    with pytest.raises(UsageError, match="saturated_tokens_per_s"):
        request_rate(load("live", ["load=1.6", "live_engine.saturated_tokens_per_s=null"]))
    with pytest.raises(UsageError, match="load=0"):
        request_rate(load("live", ["load=0", "live_engine.saturated_tokens_per_s=300"]))
    with pytest.raises(UsageError, match="workload with a rate"):
        request_rate(load("live", ["load=1", "workload=trace"]))


def test_live_engines_ship_in_order():
    """Every file of conf/live_engine can be built and fits its own simulated profile."""
    from experiments.configuration.compose import build, groups

    for name in groups()["live_engine"]:
        engine = build(load("live", [f"live_engine={name}"]), "live_engine")
        assert engine.name == engine.profile.name == name
        blocks = engine.flags["num-gpu-blocks-override"] - 1  # one is vLLM's null block
        assert engine.profile.num_blocks == blocks
        assert engine.profile.block_tokens == engine.flags["block-size"]
        assert engine.profile.max_batch == engine.flags["max-num-seqs"]
        assert engine.profile.token_budget == engine.flags["max-num-batched-tokens"]


@pytest.mark.parametrize(
    ("mode", "fragment"), [("refuses", "no such model"), ("dies", "out of luck")]
)
def test_an_engine_that_fails_is_a_failed_run(mode, fragment, monkeypatch, tmp_path, capsys):
    """A crash at the start or later is recorded with the log's reason; the sweep goes on."""
    monkeypatch.setenv("SCRIPTED_ENGINE", mode)
    sweep = ["--multirun", "hydra.sweep.dir=out", "seed=0,1"]
    assert main(["live", *sweep, *TINY]) == 1
    errors = sorted((tmp_path / "out").rglob("error.json"))
    assert len(errors) == 2
    for path in errors:
        record = json.loads(path.read_text())
        assert record["error"] == "EngineFailed"
        assert fragment in record["message"]
        assert not (path.parent / "summary.json").exists()
    assert "2 runs failed" in capsys.readouterr().err
    assert left_behind() == []

    # What failed is made again when the sweep resumes, and what is complete is not.
    monkeypatch.setenv("SCRIPTED_ENGINE", "works")
    assert main(["live", *sweep, *TINY, "sweep.resume=true"]) == 0
    assert "is complete" not in capsys.readouterr().out
    assert main(["live", *sweep, *TINY, "sweep.resume=true"]) == 0
    assert capsys.readouterr().out.count("is complete") == 2


def test_an_engine_that_completes_nothing_is_a_failed_run(monkeypatch, tmp_path):
    """
    Refusing every request is no result, and nothing is kept as one.

    A regression test: such a run counted as complete, and was used again.
    """
    monkeypatch.setenv("SCRIPTED_ENGINE", "rejects")
    assert main(["live", "--multirun", "hydra.sweep.dir=out", *TINY, "stock=true"]) == 1
    (path,) = (tmp_path / "out").rglob("error.json")
    record = json.loads(path.read_text())
    assert record["error"] == "EngineFailed"
    assert "no request was completed; most often: 400: too long" in record["message"]
    assert not (path.parent / "summary.json").exists()


def test_two_live_runs_of_a_user_exclude_each_other(capsys):
    """While one run holds the machine, another one is refused in a sentence."""
    with only_engine():
        assert main(["live", *TINY]) == 2
        assert "another live run is under way" in capsys.readouterr().err
    with only_engine():
        pass


@pytest.mark.parametrize(
    ("overrides", "fragments"),
    [
        (["load=1.6", "live_engine.saturated_tokens_per_s=null"], ["load=1.6"]),
        (["live_engine=opt_tny"], ["did you mean opt_tiny?"]),
        (["policy.kv_pressure=7"], ["kv_pressure", "7"]),
        (["live_engine.start_s=0"], ["start_s", "0"]),
        (["endpoint.api=chat"], ["token_ids"]),
    ],
)
def test_user_errors_take_one_line(overrides, fragments, capsys):
    """A wrong value is told in a sentence, before or without an engine."""
    assert main(["live", *TINY, *overrides]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1, error
    for fragment in fragments:
        assert fragment in error
    assert left_behind() == []


def test_counters_are_differences():
    """A run's numbers are what grew during it; shares of nothing are not numbers."""
    before = {"vllm": {"vllm:num_preemptions_total": 5.0}, "adapter": {}}
    after = {"vllm": {"vllm:num_preemptions_total": 9.0}, "adapter": {}}
    assert engine_numbers(before, after, 8)["preemptions_per_request"] == 0.5


def test_metrics_are_summed_over_labels():
    """Comments are passed over, labels do not matter, numbers in any notation count."""
    text = '# HELP a ...\n# TYPE a counter\na_total{x="1"} 1e2\na_total{x="}"} 5\n\nb 0.5\n'
    assert parse_metrics(text) == {"a_total": 105.0, "b": 0.5}


def test_ending_the_command_ends_the_engine(tmp_path):
    """SIGTERM to `andes-opt live` leaves nothing of its engine."""
    import signal
    import time

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-m", "experiments.cli", "live", *TINY, "workload.rate=0.2"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        for _ in range(1200):  # a busy machine takes its time to import
            if left_behind():
                break
            time.sleep(0.1)
        assert left_behind()
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        for _ in range(100):
            if not left_behind():
                break
            time.sleep(0.1)
        assert left_behind() == []
    finally:
        process.kill()
        process.wait()
