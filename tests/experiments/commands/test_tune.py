"""`andes-opt tune`: a search that resumes to the same trials, and reports on other seeds."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import polars as pl
import pytest
from omegaconf import OmegaConf

from experiments.cli import main
from experiments.commands.tune import Goal, _space
from experiments.configuration.compose import CONF_DIR, first_comment, groups, load
from experiments.configuration.errors import UsageError
from experiments.runs.files import SUMMARY
from experiments.runs.records import read_rows
from experiments.studies.tune_search import Search, TrialOutcome, distributions

TINY = (
    "tune",
    "hydra/launcher=basic",
    "workload.requests=16",
    "workload.rate=50",
    "lengths.max_prompt_tokens=100",
    "lengths.max_output_tokens=80",
    "engine.capacity_tokens=800",
    "tuning.search.seeds=[0]",
    "tuning.report.seeds=[7,8]",
)
TRIALS = 12  # the sampler models what it saw from the eleventh on


def trials(folder):
    """The finished trials of a search, without their numbers in the study."""
    return pl.read_csv(Path(folder) / "trials.csv").drop("trial")


def rows_of(folder):
    """A report's rows without how long things took on this machine."""
    timed = pl.col("metric").is_in(["wall_s", "solve_us", "decide_s", "solver_s"])
    return read_rows(Path(folder)).drop("overrides").filter(~timed)


def killed_at(replacements, *arguments):
    """Run a command in a child process that dies at the k-th file it moves into place."""
    pid = os.fork()
    if pid == 0:
        replace, count = Path.replace, 0

        def replace_or_die(path, target):
            nonlocal count
            count += 1
            if count == replacements:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(path, target)

        Path.replace = replace_or_die
        os._exit(main(list(arguments)))
    return os.waitpid(pid, 0)[1]


def test_a_killed_search_ends_with_the_same_trials(capsys):
    """SIGKILL in the first trials, and a longer search: trials and report are the same."""
    whole = [*TINY, f"tuning.trials={TRIALS}"]
    assert main([*whole, "hydra.run.dir=whole"]) == 0
    text = capsys.readouterr().out
    for word in ("objective.dt_s", "importance", "untuned", "experiment=tuned"):
        assert word in text
    assert trials("whole").height == TRIALS
    assert trials("whole")["value"].n_unique() > TRIALS // 2

    resumed = [*TINY, "hydra.run.dir=resumed"]
    for replacements in (3, 2):  # in the third trial and in the fourth
        assert os.WIFSIGNALED(killed_at(replacements, *resumed, "tuning.trials=5"))
        assert not (Path("resumed") / SUMMARY).exists()
    assert main([*resumed, f"tuning.trials={TRIALS}"]) == 0
    assert trials("resumed").equals(trials("whole"))
    assert rows_of("resumed").equals(rows_of("whole"))
    summary = json.loads((Path("whole") / SUMMARY).read_text())
    assert summary["trials"] == TRIALS
    assert summary["tuned_qoe_window_mean"] <= 1

    # A report on other seeds is the same search.
    assert main([*whole, "hydra.run.dir=whole", "tuning.report.seeds=[9]"]) == 0
    assert read_rows(Path("whole"))["seed"].unique().to_list() == [9]
    assert trials("resumed").equals(trials("whole"))
    capsys.readouterr()
    assert main([*whole, "hydra.run.dir=whole", "workload.rate=10"]) == 2
    assert "another configuration" in capsys.readouterr().err

    # What it found can be used by name.
    best = OmegaConf.load(Path("whole") / "experiment" / "tuned.yaml")
    tuned = ["simulate", "--config-dir", "whole", "experiment=tuned", "workload.requests=4"]
    assert main([*tuned, "hydra.run.dir=use"]) == 0
    used = OmegaConf.load(Path("use") / ".hydra" / "config.yaml")
    assert used.objective.dt_s == best.objective.dt_s


def test_the_report_is_on_seeds_and_engines_of_its_own():
    """Rows tell engine, rate and seed of the report; a search on another engine is its own."""
    places = (
        "tuning.search.engines={opt_66b_slow: [20]}",
        "tuning.report.engines={kv_12k: [15, 20]}",
        "tuning.baselines=[]",
    )
    assert main([*TINY, *places, "tuning.trials=1", "hydra.run.dir=out"]) == 0
    rows = read_rows(Path("out"))
    found = rows.select("engine", "rate", "seed", "arm").unique().sort(pl.all())
    assert found.height == 8
    assert set(found["engine"]) == {"kv_12k"}
    assert set(found["arm"]) == {"untuned", "tuned"}
    assert set(found["rate"]) == {15.0, 20.0}


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["tuning.report.seeds=[0,9]"], ["seed 0", "both"]),
        (["tuning.search.seeds=[]"], ["tuning.search.seeds=[]"]),
        (["tuning.metric=qoe_windw_mean"], ["qoe_windw_mean", "did you mean qoe_window_mean?"]),
        (["tuning.direction=up"], ["tuning.direction=up", "maximize"]),
        (["tuning.trials=0"], ["tuning.trials = 0"]),
        (["tuning=ands"], ["tuning=ands", "did you mean andes?"]),
        (["+tuning.space.policy.nothing={low: 0, high: 1}"], ["tuning.space.policy"]),
        (["policy=fcfs"], ["policy.preemption_cap"]),
        (["tuning.search.engines={kv_12k: []}"], ["tuning.search.engines.kv_12k"]),
        (["tuning.guards={ttft_p99_s: 0.0}", "tuning.trials=1"], ["none of 1 trials"]),
    ],
)
def test_user_errors_take_one_line(arguments, fragments, capsys):
    """What cannot be searched is said in one sentence."""
    assert main([*TINY, *arguments, "hydra.run.dir=out"]) == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1, message
    for fragment in fragments:
        assert fragment in message


def test_what_a_constructor_refuses_is_a_trial_without_value(capsys):
    """
    A draw out of an option's range is a refused trial, and the search goes on.

    A regression test: it ended the search, and the same draw ended it again each time.
    """
    space = "tuning.space={policy.kv_pressure: {low: 0.5, high: 40.0}}"
    assert main([*TINY, space, "tuning.trials=3", "hydra.run.dir=out"]) == 0
    trials = pl.read_csv("out/trials.csv")
    assert trials.height == 3
    assert trials["refused"].drop_nulls().str.contains("kv_pressure").any()
    assert "Best of 3 trials" in capsys.readouterr().out


@pytest.mark.parametrize("name", groups()["tuning"])
def test_every_space_names_options_that_are_there(name):
    """The file has a description, and its untuned values lie in its own space."""
    assert first_comment(CONF_DIR / "tuning" / f"{name}.yaml")
    space, first = _space(load("tune", [f"tuning={name}"]))
    assert space
    assert space.keys() == first.keys()


@pytest.mark.parametrize(
    "entry", [{"low": 1.0}, {"low": 2.0, "high": 1.0}, {"choices": []}, 3, {"lo": 1, "high": 2}]
)
def test_a_bad_space_is_refused(entry):
    """One sentence with the option's name."""
    with pytest.raises(UsageError, match=r"tuning\.space\.policy\.x"):
        distributions({"policy.x": entry})


def goal(**tuning):
    """A goal on QoE under a guard on TTFT, for untuned means of 0.8 and 2 s."""
    usual = {"metric": "qoe", "direction": "maximize", "penalty": None}
    config = OmegaConf.create({"tuning": {**usual, **tuning}})
    return Goal(config, {"qoe": 0.8, "ttft": 2.0})


def test_guards_rule_out_or_cost():
    """Without a penalty the excess is a constraint; with one it is taken off the metric."""
    means = {"qoe": 0.9, "ttft": 3.0}
    hard = goal(guards={"ttft": "defaults"}).outcome(means)
    assert hard.value == 0.9
    assert hard.excess == {"ttft": pytest.approx(0.5)}
    soft = goal(guards={"ttft": 2.5}, penalty=0.1).outcome(means)
    assert soft.value == pytest.approx(0.9 - 0.1 * 0.2)
    assert soft.excess == {}
    down = goal(guards={"ttft": 2.5}, penalty=0.1, direction="minimize").outcome(means)
    assert down.value == pytest.approx(0.9 + 0.1 * 0.2)


def test_a_search_finds_the_best_that_keeps_its_guard(tmp_path):
    """x rises and is guarded at 0.6: the best is just below; refused options are no trial."""

    def evaluate(options):
        x = options["x"]
        if x < 0.1:
            raise UsageError("too small")
        return TrialOutcome(x, {"guard": x - 0.6}, {"x": x})

    space = distributions({"x": {"low": 0.0, "high": 1.0}, "y": {"choices": [1, 2]}})
    search = Search(tmp_path / "study.db", "name", space, "maximize", {"x": 0.05}, seed=0)
    for _ in range(25):
        search.next_trial(evaluate)
    assert len(search.finished()) == 25
    assert search.finished()[0].user_attrs["error"] == "too small"
    assert 0.4 < search.best().params["x"] <= 0.6
    importances = search.importances()
    assert importances["x"] > importances["y"]
