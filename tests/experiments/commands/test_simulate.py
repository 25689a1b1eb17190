"""`andes-opt simulate`: its files, its options, its sweeps."""

from __future__ import annotations

import json
import sys

import polars as pl
import pytest

from andes_opt.versions import versions
from experiments.cli import main
from experiments.runs.columns import COLUMNS, REQUEST_COLUMNS, RUN_COLUMNS

TINY = ("workload.requests=20", "workload.rate=3", "engine.capacity_tokens=4000")

#: What users of summary.json may rely on.
METRICS = (
    "qoe_area_mean",
    "qoe_delay_mean",
    "qoe_window_mean",
    "qoe_area_share_ge_0p9",
    "qoe_window_share_0",
    "completion_delay_max_s",
    "rejected",
    "ttft_p50_s",
    "ttft_p90_s",
    "ttft_p99_s",
    "tokens_per_s",
    "preemptions_per_request",
    "iterations",
    "wall_s",
)


def test_a_run_writes_rows_summary_environment_and_configuration(run):
    """Everything needed to read and to repeat the run lies in one folder."""
    folder, summary = run("simulate", *TINY, "policy=andes", "solver=greedy", "seed=3")
    assert {path.name for path in folder.iterdir()} == {
        "rows.parquet",
        "summary.json",
        "env.json",
        ".hydra",
    }
    assert all(isinstance(summary[name], int | float) for name in METRICS)
    assert all(value is None or isinstance(value, int | float) for value in summary.values())

    rows = pl.read_parquet(folder / "rows.parquet")
    assert rows.columns == [*RUN_COLUMNS, *REQUEST_COLUMNS]
    assert rows.dtypes == [COLUMNS[name].dtype for name in rows.columns]
    assert rows.height == 20
    first = rows.row(0, named=True)
    assert (first["policy"], first["solver"], first["seed"]) == ("andes", "greedy", 3)
    assert (first["engine"], first["workload"], first["rate"]) == ("opt_66b_4xa100", "poisson", 3.0)
    assert (first["lengths"], first["readers"]) == ("sharegpt", "reading")
    assert rows["qoe_area"].mean() == pytest.approx(summary["qoe_area_mean"])

    env = json.loads((folder / "env.json").read_text())
    assert env["versions"] == versions()
    overrides = (folder / ".hydra" / "overrides.yaml").read_text()
    assert "policy=andes" in overrides


def test_a_run_that_served_nobody_says_so(run, capsys):
    """With an engine too small for any request there are no times to show, but a reason."""
    _, summary = run("simulate", "workload.requests=5", "engine.capacity_tokens=16")
    assert summary["rejected"] == 5
    assert summary["ttft_p50_s"] is None
    assert "All 5 requests were rejected: each needs more than" in capsys.readouterr().out


def test_a_seed_gives_the_same_rows_again(run):
    """Two runs of one configuration have equal rows; another seed has others."""
    arguments = (*TINY, "policy=andes", "solver=greedy")
    rows = [
        pl.read_parquet(run("simulate", *arguments, f"seed={seed}")[0] / "rows.parquet")
        for seed in (1, 1, 2)
    ]
    assert rows[0].equals(rows[1])
    assert not rows[0]["arrival_s"].equals(rows[2]["arrival_s"])


def test_fcfs_names_no_solver(run):
    """A policy that solves nothing has null in the columns of solver and objective."""
    folder, _ = run("simulate", *TINY, "policy=fcfs")
    rows = pl.read_parquet(folder / "rows.parquet")
    assert rows["solver"].null_count() == rows["objective"].null_count() == rows.height


def test_timeline_and_tokens_on_request(run):
    """timeline=true and tokens=true add a file each."""
    folder, summary = run("simulate", *TINY, "policy=fcfs", "timeline=true", "tokens=true")
    timeline = pl.read_parquet(folder / "timeline.parquet")
    assert timeline.height == summary["iterations"]
    assert timeline["kv_tokens"].max() <= 4000
    tokens = pl.read_parquet(folder / "tokens.parquet")
    rows = pl.read_parquet(folder / "rows.parquet")
    assert tokens.height == rows["output_tokens"].sum()


def test_any_trace_of_the_columns_is_replayed(run, tmp_path):
    """workload=trace takes a CSV file of the documented columns."""
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,5,7\n1.5,20,3\n")
    folder, summary = run("simulate", "workload=trace", f"workload.path={trace}", "policy=fcfs")
    assert summary["requests"] == 2
    assert pl.read_parquet(folder / "rows.parquet")["output_tokens"].to_list() == [7, 3]


def test_a_bad_row_of_a_trace_is_named(tmp_path, capsys):
    """The error for a bad trace names file, line and column."""
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,5,7\n1.5,many,3\n")
    assert main(["simulate", "workload=trace", f"workload.path={trace}"]) == 2
    error = capsys.readouterr().err
    for fragment in ("trace.csv", "3", "prompt_tokens", "many"):
        assert fragment in error


def test_lengths_and_readers_are_groups(run):
    """`lengths=` and `readers=` exchange a part of the workload, and rows say so."""
    folder, _ = run("simulate", *TINY, "policy=fcfs", "lengths=fixed", "readers=speaking")
    rows = pl.read_parquet(folder / "rows.parquet")
    assert rows["output_tokens"].n_unique() == 1
    assert rows["lengths"][0] == "fixed"
    assert rows["readers"][0] == "speaking"


def test_a_class_of_ones_own_serves(run, tmp_path, monkeypatch):
    """`solver._target_=my.module.Class` uses a solver outside the package, and rows name it."""
    (tmp_path / "mine.py").write_text(
        "from solvers.greedy import Greedy\n\n\nclass Mine(Greedy):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    folder, _ = run("simulate", *TINY, "solver=greedy", "solver._target_=mine.Mine")
    assert pl.read_parquet(folder / "rows.parquet")["solver"][0] == "mine.Mine"
    sys.modules.pop("mine")


OWN = """
import numpy as np

from andes_opt import Decision, make_plan


class Lightest:
    exact = False

    def __init__(self, most: int = 1000) -> None:
        self.most = most

    def solve(self, instance, *, time_limit_s=None):
        order = np.argsort(instance.weights, kind="stable")
        fits = np.cumsum(instance.weights[order]) <= instance.capacity
        serve = np.zeros(instance.num_requests, dtype=bool)
        serve[order[: min(fits.sum(), instance.max_batch, self.most)]] = True
        return make_plan(instance, serve, max(instance.min_batch, int(serve.sum())))


class NewestFirst:
    def decide(self, snapshot):
        order = np.arange(snapshot.num_requests)[::-1]
        fits = np.cumsum(snapshot.need_tokens[order]) <= snapshot.capacity_tokens
        action = np.zeros(order.size, dtype=np.int8)
        action[order[fits]] = 1
        return Decision(action, order)

    def finished(self, request_id):
        pass


class HoldsAll(NewestFirst):
    def decide(self, snapshot):
        n = snapshot.num_requests
        return Decision(np.full(n, 2, dtype=np.int8), np.arange(n))
"""


@pytest.mark.parametrize(
    ("overrides", "column", "name"),
    [
        (["solver._target_=own.Lightest"], "solver", "own.Lightest"),
        (["solver=cp_sat", "solver._target_=own.Lightest"], "solver", "own.Lightest"),
        (["solver._target_=own.Lightest", "solver.most=3"], "solver", "own.Lightest"),
        (["policy._target_=own.NewestFirst"], "policy", "own.NewestFirst"),
        (["policy=fcfs", "policy._target_=own.NewestFirst"], "policy", "own.NewestFirst"),
    ],
)
def test_a_class_of_ones_own_does_not_inherit_options(
    run, tmp_path, monkeypatch, overrides, column, name
):
    """It gets no options of the file's class, and its own need no plus sign."""
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    busy = ["workload.rate=50", "engine=kv_12k", "workload.requests=20"]
    folder, _ = run("simulate", *TINY, *busy, *overrides)
    assert pl.read_parquet(folder / "rows.parquet")[column][0] == name
    sys.modules.pop("own")


def test_a_wrong_option_of_ones_own_class_is_refused(tmp_path, monkeypatch, capsys):
    """What neither the file nor the class knows is an unknown option, as ever."""
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["simulate", *TINY, "solver._target_=own.Lightest", "solver.mst=3"]) == 2
    assert "solver.mst" in capsys.readouterr().err
    assert main(["simulate", *TINY, "solver._target_=own.Lightest", "solver.warm_start=true"]) == 2
    assert "warm_start" in capsys.readouterr().err
    sys.modules.pop("own")


def test_a_policy_that_serves_nobody_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    """A policy of one's own that starves the engine gets a sentence, not a traceback."""
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["simulate", *TINY, "policy._target_=own.HoldsAll"]) == 2
    error = capsys.readouterr().err.strip()
    assert "HoldsAll served nobody" in error
    assert len(error.splitlines()) == 1
    sys.modules.pop("own")


def test_a_rerun_in_the_same_folder_is_not_complete_before_its_end(run, monkeypatch):
    """The old summary goes when a run starts, so that old and new files never mix."""
    folder, _ = run("simulate", *TINY, "policy=fcfs")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.commands.simulate.run_simulation", interrupted)
    assert main(["simulate", f"hydra.run.dir={folder}", *TINY, "policy=fcfs"]) == 130
    assert not (folder / "summary.json").exists()


def test_a_sweep_writes_a_folder_for_each_run(tmp_path):
    """--multirun runs every combination in parallel processes, a complete folder each."""
    arguments = ["policy=fcfs,round_robin", "workload.rate=2,3", "workload.requests=6"]
    assert main(["simulate", "--multirun", "hydra.sweep.dir=sweep", *arguments]) == 0
    summaries = sorted((tmp_path / "sweep").glob("*/summary.json"))
    assert len(summaries) == 4
    policies = [pl.read_parquet(p.parent / "rows.parquet")["policy"][0] for p in summaries]
    assert sorted(policies) == ["fcfs", "fcfs", "round_robin", "round_robin"]
    threads = json.loads((summaries[0].parent / "env.json").read_text())["threads"]
    assert set(threads.values()) == {"1"}
