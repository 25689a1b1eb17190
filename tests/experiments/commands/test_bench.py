"""`andes-opt bench`: its files, its rows, its errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from experiments.cli import main
from experiments.runs.columns import CLIENT_COLUMNS, COLUMNS, REQUEST_COLUMNS, RUN_COLUMNS

TINY = ("workload.requests=6", "workload.rate=40", "lengths=fixed", "lengths.output_tokens=4")


@pytest.fixture
def scripted(monkeypatch):
    """The module of the scripted server."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "client")
    import scripted_server

    return scripted_server


@pytest.fixture
def server(scripted):
    """A server that streams as vLLM does."""
    with scripted.ScriptedServer() as running:
        yield running


def test_a_run_writes_what_a_simulation_writes(run, server, capsys):
    """Rows, summary, environment and configuration; the same names, and the client's beside."""
    folder, summary = run("bench", *TINY, f"endpoint.url={server.url}", "seed=3")
    assert {path.name for path in folder.iterdir()} == {
        "rows.parquet",
        "tokens.parquet",
        "summary.json",
        "env.json",
        ".hydra",
    }
    assert "6 of 6 replies complete" in capsys.readouterr().out
    simulated_folder, simulated = run("simulate", *TINY, "policy=fcfs", "seed=3")
    live_only = {"iterations", "busy_s", "decisions", "solves", "decide_s", "solver_s"}
    live_only |= {"charged_s", "jit_s"}
    assert set(simulated) - live_only <= set(summary)

    simulated_rows = pl.read_parquet(simulated_folder / "rows.parquet")
    assert simulated_folder == folder
    assert simulated_rows.columns == [*RUN_COLUMNS, *REQUEST_COLUMNS]


def test_rows_hold_the_planned_workload_and_what_came_of_it(run, server):
    """Arrivals, lengths and targets are those a simulation of the seed has; tokens were counted."""
    folder, summary = run(
        "bench", *TINY, f"endpoint.url={server.url}", "seed=3", "served_by.policy=andes"
    )
    rows = pl.read_parquet(folder / "rows.parquet")
    tokens = pl.read_parquet(folder / "tokens.parquet")
    assert rows.columns == [*RUN_COLUMNS, *REQUEST_COLUMNS, *CLIENT_COLUMNS]
    assert rows.dtypes == [COLUMNS[name].dtype for name in rows.columns]
    assert rows["output_tokens"].to_list() == [4] * 6
    assert rows["outcome"].unique().to_list() == ["completed"]
    first = rows.row(0, named=True)
    assert (first["command"], first["policy"], first["solver"]) == ("bench", "andes", None)
    assert (first["workload"], first["lengths"], first["readers"]) == (
        "poisson",
        "fixed",
        "reading",
    )
    assert (first["rate"], first["seed"], first["prompt_tokens"]) == (40.0, 3, 174)
    assert tokens.height == 24
    times_s = tokens.group_by("request", maintain_order=True).agg(pl.col("time_s").first())
    assert times_s["time_s"].to_list() == pytest.approx(rows["first_token_s"].to_list())
    assert rows["qoe_area"].mean() == pytest.approx(summary["qoe_area_mean"])
    assert 0 <= summary["send_lag_p99_s"] < 5
    assert 0 <= summary["loop_lag_p99_s"] < 5

    folder, _ = run("simulate", *TINY, "policy=fcfs", "seed=3")
    planned = pl.read_parquet(folder / "rows.parquet")
    for name in ("arrival_s", "ttft_s", "tds", "prompt_tokens"):
        assert planned[name].to_list() == rows[name].to_list()


def test_any_openai_server_will_do(run, scripted):
    """endpoint=openai sends chats with words and reads chunks without counts."""

    def script(body):
        assert "vllm_xargs" not in body
        yield scripted.event(choices=[{"delta": {"role": "assistant", "content": ""}}])
        for _ in range(3):
            yield scripted.event(choices=[{"delta": {"content": "word "}}])
        yield scripted.event(choices=[{"delta": {}, "finish_reason": "stop"}])
        yield scripted.event(choices=[], **scripted.usage(9, 3))
        yield scripted.DONE

    with scripted.ScriptedServer(script) as server:
        folder, _ = run("bench", *TINY, "endpoint=openai", f"endpoint.url={server.url}")
    rows = pl.read_parquet(folder / "rows.parquet")
    assert rows["output_tokens"].to_list() == [3] * 6
    assert rows["prompt_tokens"].to_list() == [9] * 6
    assert rows["wanted_tokens"].to_list() == [4] * 6
    assert not rows["estimated"].any()


def test_failures_are_rows_and_counts(run, scripted, capsys):
    """Refused requests score 0, broken ones by what came; all stay in the record, with reasons."""
    turn = iter(range(100))

    def script(body):
        number = next(turn)
        if number % 3 == 1:
            yield scripted.Refusal(429, '{"error": {"message": "slow down"}}')
        elif number % 3 == 2:
            yield scripted.completion("a", **scripted.usage(1, 1))
            yield scripted.HangUp()
        else:
            yield from scripted.steady(body)

    with scripted.ScriptedServer(script) as server:
        folder, summary = run("bench", *TINY, f"endpoint.url={server.url}")
    assert (summary["rejected"], summary["failed"], summary["unfinished"]) == (2, 2, 2)
    assert "2 of 6 replies complete" in (text := capsys.readouterr().out)
    assert "2 refused, 2 failed; most often: 429: slow down" in text
    rows = pl.read_parquet(folder / "rows.parquet")
    refused = rows.filter(pl.col("rejected"))
    assert refused["qoe_area"].to_list() == [0.0] * 2
    broken = rows.filter(pl.col("outcome") == "failed")
    # One token, and in time: nothing was left to wait for when the stream broke off.
    assert broken["qoe_area"].to_list() == [1.0] * 2
    assert broken["error"].null_count() == 0
    assert set(rows.filter(pl.col("rejected"))["error"]) == {"429: slow down"}


def test_ctrl_c_keeps_what_was_logged(scripted, tmp_path, capsys):
    """A stopped run has rows and tokens but no summary, so that no sweep takes it for done."""
    turn = iter(range(100))

    def script(body):
        if next(turn) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        yield from scripted.steady(body, gap_s=0.02)

    with scripted.ScriptedServer(script) as server:
        arguments = ("workload.requests=50", "workload.rate=10", "lengths=fixed")
        url = f"endpoint.url={server.url}"
        assert main(["bench", "hydra.run.dir=out", url, *arguments]) == 130
    folder = tmp_path / "out"
    assert not (folder / "summary.json").exists()
    rows = pl.read_parquet(folder / "rows.parquet")
    assert 0 < rows.height < 50
    assert "interrupted" in rows["outcome"].to_list()
    values = json.loads((folder / "incomplete_summary.json").read_text())
    assert values["interrupted"] > 0
    assert capsys.readouterr().err.endswith("interrupted.\n")


def test_no_two_runs_send_the_same_prompts(run, server):
    """A prefix cache that a run has filled does not help the next; a prompt seed repeats one."""
    sent = []
    for options in ((), (), ("prompt_seed=7",), ("prompt_seed=7",)):
        folder, _ = run("bench", *TINY, f"endpoint.url={server.url}", *options)
        sent.append(sorted(body["prompt"] for body in server.bodies))
        server.bodies.clear()
        assert isinstance(json.loads((folder / "env.json").read_text())["prompt_seed"], int)
    lengths = [[len(prompt) for prompt in prompts] for prompts in sent]
    assert lengths[0] == lengths[1]
    assert sent[0] != sent[1]
    assert sent[2] == sent[3]


@pytest.mark.parametrize(
    ("steps", "fragments"),
    [
        ("refuse", ["no request was completed", "404: no such model"]),
        ("die", ["the server is gone", "ClientPayloadError"]),
    ],
)
def test_a_run_without_a_server_is_not_complete(scripted, tmp_path, capsys, steps, fragments):
    """Refusing everybody, or dying on the way, is an error that says why; the rows are kept."""
    turn = iter(range(100))

    def script(body):
        if steps == "refuse":
            yield scripted.Refusal(404, '{"error": {"message": "no such model"}}')
        if next(turn) < 3:
            yield from scripted.steady(body)
        # Without a word, as a process that is killed.
        yield from (scripted.completion("a"), 0.05, scripted.HangUp())

    with scripted.ScriptedServer(script) as server:

        def last_words(body):
            if steps == "die" and len(server.bodies) == 6:
                server.deaf = True
            yield from script(body)

        server.script = last_words
        url = f"endpoint.url={server.url}"
        assert main(["bench", "hydra.run.dir=out", url, *TINY]) == 2
    folder = tmp_path / "out"
    assert not (folder / "summary.json").exists()
    assert pl.read_parquet(folder / "rows.parquet").height == 6
    assert (folder / "incomplete_summary.json").exists()
    error = capsys.readouterr().err
    assert all(fragment in error for fragment in fragments), error


def test_an_old_runs_files_do_not_stay_beside_a_new_one(run, server):
    """A run into a used folder leaves no tokens and no partial summary of the former."""
    folder, _ = run("bench", *TINY, f"endpoint.url={server.url}")
    (folder / "incomplete_summary.json").write_text("{}")
    again, _ = run("bench", *TINY, f"endpoint.url={server.url}", "tokens=false")
    assert again == folder
    assert not (folder / "tokens.parquet").exists()
    assert not (folder / "incomplete_summary.json").exists()


def test_no_bar_where_nobody_looks(run, server, capsys):
    """Standard error stays empty unless it is a terminal."""
    run("bench", *TINY, f"endpoint.url={server.url}")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["endpoint.url=http://127.0.0.1:9/v1"], ["no server answers", "127.0.0.1:9"]),
        (["endpoint.api=images"], ["endpoint", "images", "completions"]),
        (["endpoint.rul=x"], ["endpoint.rul", "did you mean endpoint.url?"]),
        (["endpoint=vlm"], ["vlm", "did you mean vllm?"]),
        (["timeout_s=soon"], ["timeout_s=soon", "number"]),
    ],
)
def test_user_errors_take_one_line(arguments, fragments, capsys, tmp_path):
    """A wrong name or value, or no server, gives one sentence and leaves no files."""
    assert main(["bench", *TINY, *arguments]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert all(fragment in error for fragment in fragments)
    assert not list(tmp_path.iterdir())


def test_without_the_http_client_the_extra_is_named():
    """Where aiohttp is not installed, one sentence says how to get it."""
    code = (
        "import sys; sys.modules['aiohttp'] = None; from experiments.cli import main; "
        "sys.exit(main(['bench', 'workload.requests=1']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert ".[live]" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
