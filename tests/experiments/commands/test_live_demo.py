"""`andes-opt live-demo`: what it starts, shows and writes, and that nothing outlives it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import fake_vllm
import numpy as np
import polars as pl
import pytest

from engine_adapter.settings import KEY
from experiments.commands import live_demo
from experiments.commands.live_demo import Roles, roles, saturated_tokens_per_s
from experiments.configuration.compose import load
from experiments.configuration.errors import UsageError
from experiments.live.server import free_port
from experiments.live.smollm import convert, packaged_gguf

HERE = Path(__file__).parent
#: A demo of a second or two with the fake server.
SMALL = (
    "model=some/model",
    "saturating=4",
    "arrivals_s=0.1",
    "lengths.output_tokens=[3,9]",
    "answer_tokens=5",
    "hydra.run.dir=out",
)


@pytest.fixture
def fake(tmp_path):
    """Environment in which vLLM's server is the fake one; reads what its starts said."""
    fake_vllm.install(tmp_path / "packages", HERE / "fake_vllm_server.py")
    said = tmp_path / "said.jsonl"
    path = os.pathsep.join([str(tmp_path / "packages"), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": path, "FAKE_OUT": str(said)}
    environment["TMPDIR"] = str(tmp_path)  # a lock of its own
    return environment, lambda: [json.loads(line) for line in said.read_text().splitlines()]


def command(*arguments):
    """The demo as a command line."""
    return [sys.executable, "-m", "experiments.cli", "live-demo", *SMALL, *arguments]


def alive(pid):
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def is_free(port):
    """Whether a server could listen on a port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def nothing_is_left(starts, seconds=30.0):
    """Wait until every server, its worker and its port are gone."""
    until_s = time.monotonic() + seconds
    while any(alive(s["pid"]) or alive(s["worker"]) or not is_free(s["port"]) for s in starts):
        assert time.monotonic() < until_s, "something is left"
        time.sleep(0.05)


def test_an_answer_and_a_table(fake, tmp_path):
    """Each arm's server gets its scheduler; the table, the rows and the logs are there."""
    environment, said = fake
    done = subprocess.run(
        command(), env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "word word word word word" in done.stdout
    # Who did what: ours answered, after vLLM's own scheduler had said what the load is.
    assert "scheduled by us (andes)" in done.stdout.split("Starting vLLM: andes.")[1]
    assert "Under vLLM's own scheduler the engine saturates" in done.stdout
    assert "one seed of" in done.stdout and "docs/results/live.md" in done.stdout
    out = tmp_path / "out"
    rows = pl.read_parquet(out / "rows.parquet")
    assert rows["policy"].unique(maintain_order=True).to_list() == ["vllm", "andes", "thrift"]
    assert set(rows["outcome"]) == {"completed"}
    # The same requests for everybody.
    arms = [rows.filter(pl.col("policy") == p) for p in ("andes", "vllm", "thrift")]
    for name in ("prompt_tokens", "output_tokens", "arrival_s"):
        assert arms[0][name].to_list() == arms[1][name].to_list() == arms[2][name].to_list()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["saturated_tokens_per_s"] > 0
    for name in ("andes", "vllm", "thrift"):
        assert 0 < summary[f"{name}_qoe_area_mean"] <= 1
        assert summary[f"{name}_failed"] == 0
        assert f"| {name} " in done.stdout
        assert (out / f"server_{name}.log").exists()
    starts = said()
    policies = []
    for start in starts:
        words = start["arguments"]
        assert words[:2] == ["serve", "some/model"] and "--max-num-seqs=16" in words
        config = (
            json.loads(words[words.index("--additional-config") + 1])
            if ("--additional-config" in words)
            else None
        )
        policies.append(config and config[KEY]["policy"]["_target_"].rsplit(".", 1)[1])
    assert policies == [None, "Andes", "Thrift"]
    nothing_is_left(starts)


def test_vllms_own_scheduler_sets_the_load_wherever_it_stands():
    """Its saturation is the unit and the answer is ours; either does both if there is no other."""
    ours = ["policy=andes"]
    assert roles({"vllm": [], "andes": ours, "late": []}) == Roles("vllm", "andes")
    assert roles({"andes": ours, "thrift": ours, "vllm": []}) == Roles("vllm", "andes")
    assert roles({"thrift": ours, "andes": ours}) == Roles("thrift", "thrift")
    assert roles({"vllm": []}) == Roles("vllm", "vllm")


@pytest.mark.parametrize(
    ("arms", "order", "fragments"),
    [
        ('[[a,"policy=fcfs"],[b]]', "ba", ["Under vLLM's own scheduler", "by us (a)"]),
        ('[[a,"policy=fcfs"]]', "a", ["Under a, as no arm is vLLM's own", "by us (a)"]),
        ("[[b]]", "b", ["Under vLLM's own scheduler", "by vLLM."]),
    ],
)
def test_it_says_whose_saturation_the_load_is_a_multiple_of(fake, tmp_path, arms, order, fragments):
    """With other arms than the file's, too, and it never claims vLLM's answer as ours."""
    environment, _ = fake
    done = subprocess.run(
        command(f"arms={arms}"),
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert all(fragment in done.stdout for fragment in fragments), done.stdout
    assert re.findall("Starting vLLM: (.)", done.stdout) == list(order)


def test_a_full_batch_counts_and_not_its_ramps(monkeypatch):
    """Three waves of an engine of 16 places at 10 tokens/s each: what it makes when full."""
    times_s = [(request // 16) * 7.0 + 2.0 + np.arange(50) / 10.0 for request in range(48)]
    log = SimpleNamespace(replies=[SimpleNamespace(token_times_s=times) for times in times_s])
    monkeypatch.setattr(live_demo, "send", lambda *_: log)
    config = load("live-demo")
    # Each wave of 800 tokens takes 5 s, after 2 s that go to its prompts.
    assert saturated_tokens_per_s(config, None) == pytest.approx(800 / 7, rel=0.1)


def test_too_few_tokens_are_no_rate(monkeypatch):
    """A saturated rate of three tokens would be a number without a meaning."""
    log = SimpleNamespace(replies=[SimpleNamespace(token_times_s=np.array([0.1, 0.2, 0.3]))])
    monkeypatch.setattr(live_demo, "send", lambda *_: log)
    with pytest.raises(UsageError, match="saturating=1 made 3 tokens"):
        saturated_tokens_per_s(load("live-demo", ["saturating=1"]), None)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_whatever_ends_it_no_process_is_left(fake, tmp_path, number, status):
    """Ctrl-C to the whole group in the middle of the overload: servers end, ports are free."""
    environment, said = fake
    errors = tmp_path / "stderr.txt"
    with open(errors, "w") as file:
        demo = subprocess.Popen(
            command("saturating=2", "arrivals_s=60"),
            env=environment,
            cwd=tmp_path,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        )
        for line in demo.stdout:
            if "requests come at" in line:
                break
        time.sleep(0.3)
        starts = said()
        assert len(starts) == 1 and alive(starts[0]["worker"])
        os.killpg(demo.pid, number)
        demo.stdout.read()
        assert demo.wait(60) == status
    nothing_is_left(starts)
    if number == signal.SIGINT:
        assert errors.read_text().strip() == "andes-opt live-demo: interrupted."
    assert not (tmp_path / "out" / "summary.json").exists()


@pytest.mark.parametrize(
    ("arguments", "variables", "fragments"),
    [
        ((), {"FAKE_FAILS": "1"}, ["has ended", "server_vllm.log", "no KV cache"]),
        (('arms=[[a,"solver=gredy"]]',), {}, ["gredy", "did you mean greedy?"]),
        (("arms=[]",), {}, ["arms must not be empty"]),
        (("overlod=2",), {}, ["overlod", "did you mean overload?"]),
    ],
)
def test_errors_take_one_line(fake, tmp_path, arguments, variables, fragments):
    """A server that does not start, or a wrong option, is told in a sentence."""
    environment, _ = fake
    done = subprocess.run(
        command(*arguments),
        env={**environment, **variables},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert all(fragment in done.stderr for fragment in fragments), done.stderr


def descendants(pid):
    """Process ids of everything that a process started, directly or not."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rsplit(")", 1)[1].split()[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


@pytest.mark.live
def test_the_real_engine_answers_and_ends_with_ctrl_c(tmp_path):
    """A real model answers in English over HTTP; Ctrl-C in the overload ends engine and port."""
    convert(packaged_gguf(), tmp_path / "smollm")
    port = free_port()
    with open(tmp_path / "stderr.txt", "w") as file:
        demo = subprocess.Popen(
            [
                *(sys.executable, "-m", "experiments.cli", "live-demo"),
                *("model=smollm", 'arms=[[ours,"policy=thrift","solver=greedy"]]'),
                *("question='The capital of France is which city?'", "answer_tokens=12"),
                *("saturating=2", "arrivals_s=60", f"port={port}", "hydra.run.dir=out"),
            ],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        )
        printed = ""
        for line in demo.stdout:
            printed += line
            if "requests come at" in line:
                break
        assert "Paris" in printed, printed + (tmp_path / "stderr.txt").read_text()
        time.sleep(2.0)
        started = descendants(demo.pid)
        assert len(started) >= 2 and not is_free(port)
        os.killpg(demo.pid, signal.SIGINT)
        demo.stdout.read()
        assert demo.wait(60) == 130
    until_s = time.monotonic() + 30
    while any(map(alive, started)) or not is_free(port):
        assert time.monotonic() < until_s, [pid for pid in started if alive(pid)]
        time.sleep(0.1)
    assert (tmp_path / "stderr.txt").read_text().strip().endswith("live-demo: interrupted.")
