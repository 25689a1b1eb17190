"""`andes-opt quality`, `capture` and `demo` on tiny problems, and every experiment file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from andes_opt.instance import Instance
from experiments.cli import main
from experiments.commands.registry import COMMANDS
from experiments.configuration.compose import CONF_DIR, first_comment, groups
from experiments.configuration.experiment import experiments

ENGINE = Path(__file__).parents[1] / "live" / "scripted_engine.py"
OVERLOAD = ("workload.requests=30", "workload.rate=6", "engine.capacity_tokens=4000")
#: What makes each command's experiments small.
TINY = {
    "simulate": ("workload.requests=4", "hydra/launcher=basic", "hydra.sweeper.params.seed=0"),
    "quality": ("sizes=[6]", "count=1"),
    "demo": ("requests=20", "capture=2", "rates=[3.0,6.0]", "solvers=[greedy,exact]"),
}
#: Live studies start a program in vLLM's place.
SCRIPTED = (f"live_engine.server=[{sys.executable},{ENGINE}]", "workload.requests=4", "warm_up=0")
#: Programs over several slots take a minute even in the tiny form, and some solvers seconds.
QUICKER = {
    "rolling_horizon": ("study.arms=[andes,rolling 1 slot]",),
    "portfolio": ("solvers=[greedy,exact]", "sizes=[6]"),
}


def test_quality_compares_solvers_on_captured_instances(run):
    """The default source is a simulation; the exact solver's gap is 0 and certified."""
    folder, summary = run("quality", *OVERLOAD, "capture=5", "solvers=[greedy,exact]")
    assert {path.name for path in folder.iterdir() if path.is_file()} == {
        "rows.parquet",
        "table.csv",
        "gap_vs_time.png",
        "summary.json",
        "env.json",
    }
    assert summary["instances"] == 5
    assert summary["contradictions"] == 0
    assert summary["exact_gap_max_percent"] == 0
    assert summary["exact_certified_percent"] == 100
    assert summary["greedy_gap_mean_percent"] >= 0
    rows = pl.read_parquet(folder / "rows.parquet")
    assert rows.height == 10
    assert rows["reference_certified"].all()


def test_quality_reads_what_capture_wrote(run, tmp_path):
    """A corpus goes through files: same instances, same optimum."""
    corpus = tmp_path / "corpus"
    _, summary = run("capture", *OVERLOAD, "capture=4", f"corpus={corpus}")
    paths = sorted(corpus.glob("*.npz"))
    assert len(paths) == summary["instances"] == 4
    assert Instance.load(paths[0]).num_requests > 0
    folder, summary = run("quality", f"corpus={corpus}", "solvers=[exact]")
    rows = pl.read_parquet(folder / "rows.parquet")
    assert rows["instance"].to_list() == [path.stem for path in paths]
    assert rows["certified"].all()


def test_quality_generates_families(run):
    """families= and sizes= name generated instances; the same seed makes the same."""
    arguments = ("families=[memory_only,hard]", "sizes=[5,9]", "count=2", "solvers=[brute_force]")
    values = []
    for _ in range(2):
        folder, summary = run("quality", *arguments, "seed=4")
        rows = pl.read_parquet(folder / "rows.parquet")
        assert summary["instances"] == rows.height == 8
        values.append(rows["value"].to_list())
    assert values[0] == values[1]


def test_a_solver_that_refuses_is_reported(run, capsys):
    """brute_force beyond its limit is a row with a note, not an error."""
    folder, summary = run(
        "quality", "families=[hard]", "sizes=[40]", "count=1", "solvers=[brute_force,exact]"
    )
    assert summary["brute_force_refused"] == 1
    notes = pl.read_parquet(folder / "rows.parquet").filter(pl.col("solver") == "brute_force")
    assert "40" in notes["note"][0]
    assert "brute_force" in capsys.readouterr().out


def test_every_solver_may_refuse(run, capsys):
    """
    If nobody takes an instance there is a table that says so.

    A regression test: it ended with a traceback, and without rows.
    """
    folder, summary = run(
        "quality", "families=[hard]", "sizes=[40]", "count=2", "solvers=[brute_force]"
    )
    assert summary["brute_force_refused"] == 2
    rows = pl.read_parquet(folder / "rows.parquet")
    assert rows["status"].to_list() == ["refused", "refused"]
    assert "brute_force" in capsys.readouterr().out


def test_a_corpus_holds_one_capture(run, tmp_path):
    """A second capture into a corpus replaces the first, and touches nothing else."""
    place = tmp_path / "corpus"
    counts = []
    for count in (6, 3):
        arguments = ("workload.requests=60", "workload.rate=12", "engine=kv_12k")
        run("capture", *arguments, f"capture={count}", f"corpus={place}")
        counts.append(len(list(place.glob("*.npz"))))
        (place / "mine.npz").touch()
    assert counts == [6, 4]


def test_options_reach_the_constructor(run, capsys):
    """'options={greedy:{bound:true}}' gives greedy a proven bound."""
    arguments = ("families=[hard]", "sizes=[10]", "count=1", "solvers=[greedy]")
    folder, _ = run("quality", *arguments, "options={greedy:{bound:true}}")
    assert pl.read_parquet(folder / "rows.parquet")["bound"].null_count() == 0
    assert main(["quality", *arguments, "options={greedy:{bnd:true}}"]) == 2
    assert "bnd" in capsys.readouterr().err


def test_the_demo_prints_both_tables_and_its_files(run, capsys):
    """The demo ends with the solver table, the QoE table and the paths that it wrote."""
    folder, summary = run("demo", *TINY["demo"], "engine.capacity_tokens=4000")
    text = capsys.readouterr().out
    assert "| solver" in text
    for heading in ("rate", "policy", "area", "delay", "window", "TTFT p50 s", "tokens/s"):
        assert heading in text
    for name in (
        "rows.parquet",
        "solver_rows.parquet",
        "solver_table.csv",
        "qoe_table.csv",
        "gap_vs_time.png",
        "qoe_vs_rate.png",
    ):
        assert f"  out/{name}\n" in text
        assert (folder / name).stat().st_size > 0
    table = pl.read_csv(folder / "qoe_table.csv")
    assert table["policy"].to_list()[:4] == [
        "fcfs",
        "round_robin",
        "andes (greedy)",
        "andes (exact)",
    ]
    assert table.height == 8
    assert "the JIT compiled for" in text
    assert 0 <= summary["jit_s"] <= summary["wall_s"]
    rows = pl.read_parquet(folder / "rows.parquet")
    mean = rows.filter((pl.col("policy") == "fcfs") & (pl.col("rate") == 6))["qoe_area"].mean()
    shown = table.filter((pl.col("policy") == "fcfs") & (pl.col("rate") == 6))["area"].item()
    assert shown == pytest.approx(mean)
    assert np.isfinite(
        json.loads((folder / "summary.json").read_text())["fcfs_at_6.0_qoe_area_mean"]
    )


@pytest.mark.parametrize("experiment", groups()["experiment"])
@pytest.mark.usefixtures("own_lock")
def test_every_experiment_runs_tiny(experiment, tmp_path):
    """Each file of conf/experiment runs from end to end: studies, others by their command."""
    path = CONF_DIR / "experiment" / f"{experiment}.yaml"
    command, _, meaning = first_comment(path).partition(":")
    assert command in COMMANDS
    assert meaning
    assert path.read_text().startswith("# @package _global_\n")  # or Hydra nests it in vain
    folders = ["hydra.run.dir=out", "hydra.sweep.dir=out"]
    if experiments()[experiment].is_study:
        words = ["study", experiment, "study.tiny=true", "hydra/launcher=basic"]
        words += [*QUICKER.get(experiment, ()), *(SCRIPTED if command == "live" else ())]
    else:
        words = [command, f"experiment={experiment}", *TINY[command]]
    assert main([*words, *folders]) == 0
    summaries = list((tmp_path / "out").rglob("summary.json"))
    assert len(summaries) > 1 or "MULTIRUN" not in path.read_text()
    assert summaries
