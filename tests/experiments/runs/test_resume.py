"""Sweeps that resume, and sweeps with runs that fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from omegaconf import OmegaConf

from experiments.cli import main
from experiments.configuration.compose import load
from experiments.runs.files import ENVIRONMENT, ERROR, SUMMARY
from experiments.runs.identity import configuration_hash, contents, current, identified, identity
from experiments.runs.records import read_rows, recorded_run
from experiments.runs.resume import finished

SWEEP = (
    "simulate",
    "--multirun",
    "hydra/launcher=basic",
    "hydra.sweep.dir=sweep",
    "sweep.resume=true",
    "policy=fcfs",
    "workload.requests=4",
)
RUN = {"configuration": "a", "code": "b"}

#: Metrics that say how long the run took on this machine.
TIMINGS = ("wall_s", "jit_s", "decide_s", "solver_s")


@pytest.fixture(scope="module")
def default_hash():
    """The hash of `andes-opt simulate` without any override."""
    return configuration_hash("simulate", load("simulate"))


def results(folder):
    """Rows of a sweep, and the summaries of its runs without timings."""
    rows = read_rows(folder)
    summaries = {
        path.parent.name: {
            name: value
            for name, value in json.loads(path.read_text()).items()
            if name not in TIMINGS
        }
        for path in folder.glob(f"*/{SUMMARY}")
    }
    return rows, summaries


def written(folder):
    """When each complete run below a folder was completed."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob(f"*/{SUMMARY}")}


def test_a_sweep_killed_again_and_again_ends_with_the_same_rows(tmp_path):
    """SIGKILL at every file and at random moments loses runs in flight, and nothing else."""
    arguments = [*SWEEP, "seed=range(4)"]
    assert main([*arguments, "hydra.sweep.dir=whole"]) == 0
    script = Path(__file__).with_name("killed_sweep.py")
    done = subprocess.run(
        [sys.executable, script, "sweep", *(w for w in arguments if "launcher" not in w)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    attempts = [line.split() for line in done.stdout.splitlines()]
    counts = [int(attempt[-1]) for attempt in attempts]
    assert counts == sorted(counts)  # no attempt costs a run that was complete
    assert 0 < counts[0] < 4
    at_files = [attempt for attempt in attempts if attempt[1].lstrip("-").isdigit()]
    assert {attempt[2] for attempt in at_files} == {"killed"}
    before = written(Path("sweep"))

    assert main(arguments) == 0
    rows, summaries = results(tmp_path / "sweep")
    whole_rows, whole_summaries = results(tmp_path / "whole")
    assert rows.equals(whole_rows)
    assert summaries == whole_summaries
    assert before.items() <= written(Path("sweep")).items()
    assert not list(Path("sweep").rglob(".*.partial*"))


def test_a_sweeps_runs_are_told_apart(capsys):
    """What came out of a run stands below its overrides; a single run needs no such line."""
    assert main([*SWEEP, "seed=0,1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for seed in (0, 1):
        place = lines.index(f"policy=fcfs workload.requests=4 seed={seed}:")
        assert lines[place + 1].startswith("QoE area")
        assert lines[place + 2].startswith("sweep/")
    assert main(["simulate", "policy=fcfs", "workload.requests=4"]) == 0
    assert capsys.readouterr().out.startswith("QoE area")


def test_a_longer_sweep_makes_only_what_is_new(capsys):
    """Values added to a sweep leave its complete runs alone; without resume all run again."""
    assert main([*SWEEP, "seed=1"]) == 0
    first = written(Path("sweep"))
    capsys.readouterr()
    assert main([*SWEEP, "seed=0,1"]) == 0
    assert capsys.readouterr().out.count("is complete.") == 1
    second = written(Path("sweep"))
    assert len(second) == 2
    assert first.items() <= second.items()
    assert main([*SWEEP, "seed=1", "sweep.resume=false"]) == 0
    third = written(Path("sweep"))
    assert third.keys() == second.keys()
    assert not first.items() & third.items()


def test_a_failed_run_stops_no_other_and_sets_the_status(capsys):
    """Its error stands in error.json, the others are complete, and it is tried again."""
    for batches in ("-4,8", "-4"):
        assert main([*SWEEP, f"engine.max_batch={batches}"]) == 1
        message = capsys.readouterr().err.splitlines()[-1]
        (failed,) = Path("sweep").rglob(ERROR)
        assert "1 run failed" in message
        assert str(failed.parent) in message
        account = json.loads(failed.read_text())
        assert "max_batch = -4" in account["message"]
        assert account["user_error"]
        assert "Traceback" in account["traceback"]
        assert len(list(Path("sweep").rglob(SUMMARY))) == 1
    assert main([*SWEEP, "engine.max_batch=8"]) == 0  # an older failure is not this sweep's


def test_a_defect_in_a_sweep_is_recorded_too(monkeypatch, capsys):
    """An error that is no user's leaves its traceback in the folder, not on the screen."""

    def broken(*_, **__):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("experiments.commands.simulate.run_simulation", broken)
    assert main(list(SWEEP)) == 1
    (failed,) = Path("sweep").rglob(ERROR)
    account = json.loads(failed.read_text())
    assert (account["error"], account["user_error"]) == ("ZeroDivisionError", False)
    assert "Traceback" not in capsys.readouterr().err


def test_a_single_run_always_runs():
    """sweep.resume is about sweeps; a failure that was recorded goes when the run succeeds."""
    arguments = ["simulate", "hydra.run.dir=out", "policy=fcfs", "workload.requests=4"]
    Path("out").mkdir()
    (Path("out") / ERROR).write_text("{}")
    times = []
    for _ in range(2):
        assert main([*arguments, "sweep.resume=true"]) == 0
        times.append((Path("out") / SUMMARY).stat().st_mtime_ns)
    assert times[0] < times[1]
    assert not (Path("out") / ERROR).exists()


def test_resuming_needs_a_folder(capsys, in_an_empty_folder):
    """The default folder is a new one each time, so there is nothing to resume in it."""
    assert main([word for word in SWEEP if "sweep.dir" not in word]) == 2
    assert "hydra.sweep.dir" in capsys.readouterr().err
    assert list(in_an_empty_folder.iterdir()) == []


def test_a_run_is_finished_only_if_complete_and_of_the_same_make(tmp_path):
    """No summary, another configuration or code, an error, a broken file: all are redone."""

    def write(name, text):
        (tmp_path / name).write_text(text)

    assert finished(tmp_path, RUN) is None
    write(ENVIRONMENT, json.dumps({"run": RUN}))
    assert finished(tmp_path, RUN) is None
    write(SUMMARY, '{"requests": 4}')
    assert finished(tmp_path, RUN) == {"requests": 4}
    for other in ("configuration", "code"):
        assert finished(tmp_path, {**RUN, other: "c"}) is None
    write(ERROR, "{}")
    assert finished(tmp_path, RUN) is None
    (tmp_path / ERROR).unlink()
    write(ENVIRONMENT, '{"run": ')
    assert finished(tmp_path, RUN) is None
    write(ENVIRONMENT, "{}")  # made before runs were identified
    assert finished(tmp_path, RUN) is None


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("seed=0", True),
        ("seed=1", False),
        ("sweep.resume=true", True),
        ("workload.rate=2.9", False),
        ("solver=greedy", False),
        ("+policy.mine=1", False),
    ],
)
def test_every_value_identifies_a_run_but_those_of_the_sweep(override, same, default_hash):
    """The hash depends on what a run computes, not on how its sweep is run."""
    assert (configuration_hash("simulate", load("simulate", [override])) == default_hash) == same


def test_commands_of_equal_configuration_differ():
    """The command is a part of what identifies a run."""
    config = OmegaConf.create({"seed": 0})
    assert configuration_hash("simulate", config) != configuration_hash("quality", config)


def test_what_a_run_reads_counts_by_content(tmp_path):
    """A trace may move, but not change; so may the files of a corpus."""

    def hash_of(command, key, path):
        return configuration_hash(command, OmegaConf.create({key: str(path)}))

    for name, text in (("a.csv", "1"), ("b.csv", "1"), ("c.csv", "2")):
        (tmp_path / name).write_text(text)
    hashes = [hash_of("simulate", "path", tmp_path / f"{name}.csv") for name in "abc"]
    assert hashes[0] == hashes[1] != hashes[2]

    before = hash_of("quality", "corpus", tmp_path)
    written_to = hash_of("capture", "corpus", tmp_path)
    (tmp_path / "d.csv").write_text("3")
    assert hash_of("quality", "corpus", tmp_path) != before
    assert hash_of("capture", "corpus", tmp_path) == written_to  # where capture writes
    assert hash_of("capture", "corpus", tmp_path / "other") != written_to


def test_a_table_of_lengths_counts_by_content(tmp_path):
    """
    A file of the user's lengths may move, but not change; a name of ours is a name.

    A regression test: a sweep took results of another table.
    """
    hashes = []
    for text in ("[1]", "[1]", "[2]"):
        path = tmp_path / f"{len(hashes)}.json"
        path.write_text(text)
        config = load("simulate", ["lengths=sharegpt", f"lengths.table={path}"])
        hashes.append(configuration_hash("simulate", config))
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_table_of_ours_counts_by_content(tmp_path, monkeypatch):
    """
    Numbers that change in one of the tables that we ship are other results.

    A regression test: the cells of studies took a table by its name alone.
    """
    config = load("simulate", ["lengths=sharegpt"])
    before = configuration_hash("simulate", config)
    (tmp_path / "sharegpt.json").write_text("[1]")
    monkeypatch.setattr("experiments.runs.identity._TABLES", tmp_path)
    assert configuration_hash("simulate", config) != before
    changed = contents({"run": {"table": "sharegpt"}})
    monkeypatch.undo()
    assert contents({"run": {"table": "sharegpt"}}) != changed


def test_a_module_of_the_users_identifies_a_run(tmp_path, monkeypatch):
    """
    A policy or solver of the user's own counts by its text, wherever an option names it.

    A regression test: after a change of it, a sweep took the old results.
    """
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "mine_of_a_test.py"
    for command, override in (
        ("simulate", "policy._target_=mine_of_a_test.Mine"),
        ("quality", "solvers=[greedy,mine_of_a_test.Mine]"),
    ):
        states = []
        for text in ("class Mine: ...", "class Mine: ...  # other", "class Mine: ..."):
            module.write_text(text)
            states.append(identity(command, load(command, [override])))
        assert states[0] == states[2] != states[1]
        assert states[0]["code"] != identity(command, load(command))["code"]


def test_a_run_whose_listener_has_gone_is_made_all_the_same(monkeypatch, tmp_path):
    """
    `andes-opt simulate | head -1` ends no run.

    A regression test: it was recorded as failed, though it was complete.
    """
    command = [sys.executable, "-m", "experiments.cli", *SWEEP, "seed=0,1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, stdout=writing, stderr=subprocess.PIPE, check=False
    )
    os.close(writing)
    assert done.returncode == 0, done.stderr
    assert len(written(tmp_path / "sweep")) == 2
    assert not list((tmp_path / "sweep").rglob(ERROR))


def test_the_code_identifies_a_run(monkeypatch):
    """Other versions of what the code stands on give another hash, and so does other code."""
    config = load("simulate")
    before = identity("simulate", config)
    assert identity("simulate", config) == before
    monkeypatch.setattr("experiments.runs.code_closure.versions", lambda: {"numpy": "0"})
    identity.__globals__["code_hash"].cache_clear()
    after = identity("simulate", config)
    identity.__globals__["code_hash"].cache_clear()
    assert after["code"] != before["code"]
    assert after["configuration"] == before["configuration"]


def test_env_json_names_the_run(tmp_path):
    """recorded_run writes down what identifies the run, and null if nobody said."""
    with identified(RUN), recorded_run(tmp_path) as record:
        record.finish(None, {})
    assert json.loads((tmp_path / ENVIRONMENT).read_text())["run"] == RUN
    assert current() is None


def test_leftovers_of_dead_processes_go_and_those_of_live_ones_stay(tmp_path):
    """A killed process leaves half a file behind, which the next run removes."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    for process in (dead.pid, 1):
        (tmp_path / f".rows.{process}.partial.parquet").touch()
    with recorded_run(tmp_path) as record:
        record.finish(pl.DataFrame({"request": [0]}), {})
    assert [path.name for path in tmp_path.glob(".*")] == [".rows.1.partial.parquet"]
