"""Sweeps on every launcher: all cores, one thread each, rows the same wherever they are made."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from experiments import ROOT
from experiments.cli import main
from experiments.configuration.compose import CONF_DIR, first_comment
from experiments.configuration.launchers import LAUNCHERS, enter_worker
from experiments.runs.files import ENVIRONMENT, ERROR, SUMMARY
from experiments.runs.records import read_rows

SEEDS = 4
SWEEP = (
    "simulate",
    "--multirun",
    f"seed=range({SEEDS})",
    "workload.requests=4",
    "policy=fcfs",
    "policy._target_=probe_policy.Probe",
    "+policy.seed=${seed}",
    "sweep.resume=true",
)


def sweep(*arguments, environment=None, expected=0, folder="sweep"):
    """Run the sweep in a process of its own, without any of the variables that limit threads."""
    inherited = {
        key: value
        for key, value in os.environ.items()
        if not key.endswith(("_NUM_THREADS", "MAX_THREADS"))
    }
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-m", "experiments.cli", *SWEEP, f"hydra.sweep.dir={folder}", *arguments],
        env={**inherited, "PYTHONPATH": path, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == expected, done.stderr[-3000:]
    return done


def probes():
    """What the policies of the sweep saw of their processes."""
    return [json.loads(path.read_text()) for path in sorted(Path("threads").glob("*.json"))]


def check(processes, folder="sweep"):
    """Every run is complete and had one thread for everything; so many processes made them."""
    seen = probes()
    assert len(seen) == SEEDS
    for probe in seen:
        assert set(probe["pools"]) == {1}
        assert (probe["numba"], probe["polars"]) == (1, 1)
        assert probe["folder"] == str(Path.cwd())
    assert len({probe["process"] for probe in seen}) >= processes
    rows = read_rows(Path(folder))
    assert sorted(rows["seed"].unique()) == list(range(SEEDS))
    assert rows.height == SEEDS * 4
    for path in Path(folder).glob(f"*/{ENVIRONMENT}"):
        assert set(json.loads(path.read_text())["threads"].values()) == {"1"}
    return rows.sort("seed", "request").drop("overrides")


@pytest.fixture(scope="module")
def usual_rows(tmp_path_factory):
    """The rows of the sweep by the launcher that simulate has by default."""
    folder = tmp_path_factory.mktemp("joblib")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = sweep()
        assert "Joblib.Parallel(n_jobs=-1" in done.stdout + done.stderr
        return check(processes=min(2, os.cpu_count() or 1))


def test_simulate_sweeps_on_all_cores_with_one_thread_each(usual_rows):
    """--multirun uses joblib on all cores, and BLAS, numba and polars one thread in each."""
    assert usual_rows.height == SEEDS * 4


@pytest.mark.launchers
def test_submitit_makes_the_same_rows(usual_rows):
    """The slurm extra's executor for one machine: processes of their own, the same rows."""
    sweep("hydra/launcher=submitit_local")
    assert check(processes=SEEDS).equals(usual_rows)


@pytest.mark.launchers
def test_a_failed_run_stops_no_other_on_submitit():
    """Its error is recorded, the others are complete, the status says so."""
    done = sweep("hydra/launcher=submitit_local", "engine.max_batch=-4,8", "seed=1", expected=1)
    assert "1 run failed" in done.stderr
    assert len(list(Path("sweep").rglob(ERROR))) == 1
    assert len(list(Path("sweep").rglob(SUMMARY))) == 1


@pytest.mark.launchers
def test_slurm_gets_an_array_job_of_one_core_a_run(usual_rows, tmp_path):
    """With stand-ins for Slurm's commands: what sbatch is given runs, and gives the same rows."""
    commands = Path(__file__).with_name("slurm_commands.py").read_text()
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "srun", "sacct", "scancel", "scontrol"):
        (folder / name).write_text(f"#!{sys.executable}\n{commands}")
        (folder / name).chmod(0o755)
    path = os.pathsep.join([str(folder), os.environ["PATH"]])
    options = ("hydra.launcher.partition=some", "hydra.launcher.array_parallelism=2")
    sweep("hydra/launcher=slurm", *options, environment={"PATH": path})
    assert check(processes=SEEDS).equals(usual_rows)
    script = (tmp_path / "bin" / "submitted.sh").read_text()
    for line in ("--cpus-per-task=1", "--array=0-3%2", "--partition=some", "--time=120"):
        assert f"#SBATCH {line}\n" in script
    assert "OMP_NUM_THREADS=1" in script


@pytest.mark.launchers
def test_ray_makes_the_same_rows_on_a_cluster_that_it_starts(usual_rows):
    """ray_cluster without an address: a cluster on this machine, gone afterwards."""
    done = sweep("hydra/launcher=ray_cluster", "+hydra.launcher.ray.init.num_cpus=2")
    assert check(processes=1).equals(usual_rows)
    assert "Traceback" not in done.stderr


@pytest.fixture
def cluster():
    """A Ray cluster started in another folder; its address."""
    # Paths of its sockets must be short; and Ray's usual folder keeps a dead cluster's address.
    home = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray = Path(sys.executable).with_name("ray")
    head = subprocess.Popen(
        [
            *(ray, "start", "--head", "--block", f"--port={port}", "--node-ip-address=127.0.0.1"),
            *("--num-cpus=2", "--include-dashboard=false", "--disable-usage-stats"),
            *("--object-store-memory=80000000", f"--temp-dir={home}"),
        ],
        cwd="/",
        env={
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)]),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        for line in head.stdout:
            if "Ray runtime started" in line:
                break
        else:
            pytest.fail("ray start ended without a cluster")
        yield f"127.0.0.1:{port}"
    finally:
        os.killpg(head.pid, signal.SIGKILL)  # ending in peace takes half a minute
        head.communicate(timeout=60)
        shutil.rmtree(home, ignore_errors=True)


@pytest.mark.launchers
def test_ray_joins_a_cluster_that_is_running(usual_rows, cluster):
    """Workers of a cluster get the sweep's folder and one thread, though they inherit neither."""
    sweep(
        "hydra/launcher=ray_cluster",
        f"hydra.launcher.ray.init.address={cluster}",
        environment={"RAY_AUTH_MODE": "token"},
    )
    assert check(processes=2).equals(usual_rows)


def test_a_dead_process_ends_a_sweep_in_one_sentence():
    """A run whose process is killed costs runs in flight; the message says how to go on."""
    Path("kill").touch()
    done = sweep(expected=1)
    said = [line for line in done.stderr.splitlines() if "the process of a run died" in line]
    assert len(said) == 1
    assert "sweep.resume=true" in said[0]
    assert "Traceback" not in done.stderr
    sweep()
    check(processes=1)


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["simulate", "hydra/launcher=slrm"], ["hydra/launcher=slrm", "did you mean slurm?"]),
        (["bench", "hydra/launcher=joblib"], ["bench", "never parallel", "basic"]),
        (["live", "hydra/launcher=joblib"], ["live", "never parallel", "basic"]),
    ],
)
def test_a_launcher_is_refused_in_one_line(arguments, fragments, capsys):
    """No such launcher, or one that would run live runs side by side."""
    assert main([*arguments, "--multirun", "seed=0,1"]) == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1
    for fragment in fragments:
        assert fragment in message


@pytest.mark.parametrize("name", ["slurm", "ray_cluster"])
def test_a_missing_extra_is_named(name, capsys, monkeypatch):
    """Without the plug-in the message names the extra."""
    monkeypatch.setattr("experiments.configuration.launchers.find_spec", lambda _: None)
    assert main(["simulate", "--multirun", f"hydra/launcher={name}", "seed=0,1"]) == 2
    assert f".[{LAUNCHERS[name].extra}]" in capsys.readouterr().err


def test_a_worker_enters_the_folder_of_the_sweep(tmp_path, monkeypatch):
    """Elsewhere, paths would count from wherever the worker was started."""
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("ANDES_OPT_FOLDER", str(tmp_path / "here"))
    enter_worker()
    assert Path.cwd() == tmp_path / "here"


def test_every_launcher_file_is_listed(capsys):
    """Files of conf/hydra/launcher are among the launchers, with their first line."""
    for path in (CONF_DIR / "hydra" / "launcher").glob("*.yaml"):
        assert path.stem in LAUNCHERS
        assert first_comment(path)
    assert main(["list", "launchers"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(LAUNCHERS)
