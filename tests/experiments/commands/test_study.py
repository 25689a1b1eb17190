"""`andes-opt study`: names, the aliases of before, own studies, and what has no study in it."""

from __future__ import annotations

import polars as pl
import pytest

from experiments.cli import main
from experiments.commands.completion import candidates
from experiments.configuration.compose import load
from experiments.configuration.experiment import experiments, studies

TINY = ("study.tiny=true", "hydra/launcher=basic", "study.rates=[6.0]", "study.cells=cells")
#: A study of one's own, built on one of ours.
OWN = "# @package _global_\ndefaults:\n  - paper_rates\n  - _self_\nworkload:\n  requests: 8\n"


def test_a_file_with_a_study_s_node_is_a_study():
    """Every composed experiment has such a node just if its file counts as a study."""
    nodes = {"study", "portfolio", "live_study", "live_fidelity"}
    for name, entry in experiments().items():
        config = load(entry.command, [f"experiment={name}"])
        assert {entry.node} - {""} == nodes & {str(key) for key in config}, name
        assert entry.meaning


@pytest.mark.parametrize("arguments", [["study"], ["study", "--help"], ["list", "studies"]])
def test_studies_are_listed_with_their_line(arguments, capsys):
    """Without a name, and in help, each study has a line; what is no study has none."""
    assert main(arguments) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    for name, meaning in studies().items():
        assert [line for line in lines if line.startswith(f"{name} ")] == [
            next(line for line in lines if line.endswith(f" {meaning}"))
        ]
    assert not any(line.startswith(("rates ", "families ", "objectives ")) for line in lines)


def test_an_alias_says_so_and_does_the_same(run, capsys):
    """`simulate experiment=STUDY` gives the rows and the document of `study STUDY`."""
    folder, _ = run("study paper_rates", *TINY, "study.docs=null")
    rows = pl.read_parquet(folder / "rows.parquet")
    document = (folder / "paper_rates.md").read_text()
    assert capsys.readouterr().err == ""
    folder, summary = run("simulate", *TINY, "experiment=paper_rates", "study.docs=null")
    said = "andes-opt simulate experiment=paper_rates is now andes-opt study paper_rates.\n"
    assert capsys.readouterr().err == said
    assert summary["computed"] == 0
    again = pl.read_parquet(folder / "rows.parquet")
    assert again.drop("overrides").equals(rows.drop("overrides"))
    assert set(rows["command"]) == {"study"}
    tables = [
        text.partition("## ")[2] for text in (document, (folder / "paper_rates.md").read_text())
    ]
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["paper_rtes"], ["study paper_rtes", "portfolio", "did you mean paper_rates?"]),
        (["experiment=paper_rates"], ["did you mean paper_rates?"]),
        (["rates"], ["rates is no study: andes-opt simulate experiment=rates runs it."]),
        (["families"], ["families is no study: andes-opt quality experiment=families runs it."]),
        (["paper_rates", "study.tny=true"], ["did you mean study.tiny?"]),
        (["paper_rates", "--multrun"], ["--multrun"]),
        (["live_overload", "hydra/launcher=joblib"], ["live are never parallel"]),
        (["live_fidelity,paper_rates", "--multirun"], ["different options"]),
    ],
)
def test_user_errors(arguments, said, capsys, in_an_empty_folder):
    """A wrong name, option or launcher is told in one line, and nothing is written."""
    assert main(["study", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("andes-opt study: ")
    assert len(error.splitlines()) == 1
    assert all(fragment in error for fragment in said), error
    assert not list(in_an_empty_folder.iterdir())


def test_a_study_s_own_help_names_it_and_its_options(capsys):
    """`andes-opt study NAME --help` is about the study, not about the command below it."""
    try:
        assert main(["study", "paper_rates", "seed=3", "--help"]) == 0
    except SystemExit as exit_info:
        assert not exit_info.code
    text = capsys.readouterr().out
    assert text.startswith("andes-opt study paper_rates: average QoE against request rate")
    assert "Average QoE against request rate" in text
    assert "\n  andes-opt study paper_rates study.tiny=true\n" in text
    assert "andes-opt simulate" not in text


def test_every_study_has_a_tiny_form_under_one_name():
    """`study.tiny=true` is one option for all (a bug once: live ones had another, one had none)."""
    for name, entry in experiments().items():
        if entry.is_study:
            assert load(entry.command, [f"experiment={name}"])[entry.node].tiny is False, name
    assert main(["study", "live_overload", "study.tiny=perhaps"]) == 2


def test_the_name_of_a_live_study_s_node_is_not_needed(capsys):
    """What stands after `study.` is an option of the study's node, whatever that is called."""
    assert main(["study", "live_overload", "study.tny=true"]) == 2
    assert "did you mean live_study.tiny?" in capsys.readouterr().err


def test_the_tiny_portfolio(run, tmp_path):
    """It has the form of the whole, says so, and leaves docs/ alone."""
    folder, summary = run("study portfolio", "study.tiny=true", "solvers=[greedy,exact]")
    text = (folder / "solvers.md").read_text()
    assert "Tiny form" in text
    assert summary["calls"] > 20
    assert summary["contradictions"] == 0
    assert not (tmp_path / "docs").exists()


@pytest.mark.parametrize(
    ("words", "instead"),
    [
        ("paper_capacity engine=kv_12k", "'study.variants=[kv_12k]'"),
        ("paper_rates policy=thrift", "'study.arms=[thrift]'"),
        ("paper_rates solver=cp_sat", "'+study.settings.mine={policy: andes, solver: cp_sat}'"),
        ("paper_rates workload.rate=5", "'study.rates=[5]'"),
        ("paper_rates study.variants=[kv_12k] engine.max_batch=64", "engine.max_batch: 64}'"),
        ("paper_rates study.capacity.start=5", "rates are given"),
        ("paper_capacity study.rates=[5]", "capacities are searched"),
        ("exact_vs_greedy engine=kv_12k", "'study.regimes.engines=[kv_12k]'"),
        ("exact_vs_greedy study.arms=[fcfs]", "greedy and exact"),
        ("hindsight rates=[5]", "'study.rates=[5]'"),
        ("paper_rates timeline=true", "keeps no such file"),
        ("live_overload policy=thrift", "live_study.arms"),
        ("live_overload seed=4", "live_study.seeds"),
        ("live_overload live_engine=smollm2", "live_study.engine"),
        ("live_fidelity seed=4", "live_fidelity.seeds"),
        ("portfolio engine=kv_12k", "portfolio.captured"),
    ],
)
def test_an_option_without_effect_is_refused(words, instead, capsys, in_an_empty_folder):
    """
    What every variant, arm or run sets itself can't be set from outside.

    A regression test: the document named `engine=kv_12k` above numbers of other engines.
    """
    assert main(["study", *words.split(), "hydra/launcher=basic"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"andes-opt study: {words.split()[-1].split('=')[0]}")
    assert "has no effect" in error
    assert instead in error
    assert len(error.splitlines()) == 1
    assert not [path for path in in_an_empty_folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("quality", ["families=[hard]", "engine=kv_12k"]),
        ("quality", ["families=[hard]", "workload.rate=2"]),
        ("quality", ["sizes=[10]"]),
        ("demo", ["workload.rate=2"]),
        ("hindsight", ["policy=thrift"]),
        ("hindsight", ["rates=[1,2]", "workload.rate=3"]),
    ],
)
def test_other_commands_refuse_it_too(command, words, capsys):
    """The same holds where an option replaces what others say."""
    assert main([command, *words]) == 2
    assert f"{words[-1]} has no effect: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ["workload.requests=9", "engine.max_batch=64"],
        ["engine=opt_66b_4xa100", "objective.dt_s=20"],
        ["engine=kv_12k", "study.variants=[poisson]"],
        ["study.arms=[fcfs,mine]", "+study.settings.mine={policy: andes, solver: cp_sat}"],
        ["study.variants=[mine]", "+study.settings.mine={engine: kv_12k, engine.max_batch: 64}"],
    ],
)
def test_options_with_effect_pass(options, run):
    """Some variant or arm depends on them, or they say what is so anyway; the advice works."""
    _, summary = run("study paper_rates", *TINY, *options)
    assert summary["cells"] == 4 if "mine" not in options[0] else summary["cells"] in (2, 4)


def test_only_the_whole_study_replaces_its_document(run, tmp_path, capsys):
    """
    Changed options leave docs/ alone unless they name it, and each path written is printed.

    A regression test: two seeds of two rates replaced the committed document, unmentioned.
    """
    document = tmp_path / "docs" / "results" / "paper_rates.md"
    document.parent.mkdir(parents=True)
    document.write_text("the result of an hour")
    small = ["workload.requests=5", "study.seeds=2", "study.rates=[4]", "study.arms=[fcfs,thrift]"]
    folder, _ = run("study paper_rates", "hydra/launcher=basic", *small)
    assert document.read_text() == "the result of an hour"
    said = capsys.readouterr().out
    assert all(f"  out/{path.name}\n" in said for path in folder.iterdir() if path.is_file())
    run("study paper_rates", "hydra/launcher=basic", *small, "study.docs=docs")
    assert "Average QoE" in document.read_text()
    said = capsys.readouterr().out
    assert "  docs/results/paper_rates.md\n" in said
    assert "  docs/figures/paper_rates_means.png\n" in said

    mine = tmp_path / "mine" / "experiment"
    mine.mkdir(parents=True)
    (mine / "own.yaml").write_text(OWN + "study:\n  tiny: true\n  rates: [6.0]\n")
    run("study own --config-dir=mine", "hydra/launcher=basic", "study.cells=cells")
    assert (tmp_path / "docs" / "results" / "own.md").exists()


@pytest.mark.parametrize(
    "words",
    [["study", "own", "--config-dir=mine"], ["simulate", "--config-dir", "mine", "experiment=own"]],
)
def test_a_study_of_one_s_own(words, tmp_path):
    """A file in --config-dir that builds on a study is one, also where it names no command."""
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "own.yaml").write_text(OWN)
    assert main([*words, *TINY, "hydra.run.dir=out", "study.docs=null"]) == 0
    assert "`andes-opt study own" in (tmp_path / "out" / "own.md").read_text()


def test_a_swept_study_goes_on_where_it_was(tmp_path, capsys):
    """Each value of a sweep has a folder of its own; sweep.resume leaves what is complete."""
    command = ["study", "paper_rates", *TINY, "seed=0,5", "--multirun", "study.docs=null"]
    command += ["hydra.sweep.dir=sweep", "sweep.resume=true"]
    assert main(command) == 0
    assert len(list((tmp_path / "sweep").glob("*/paper_*.md"))) == 2
    capsys.readouterr()
    assert main(command) == 0
    assert capsys.readouterr().out.count("is complete.") == 2


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("andes-opt study paper_rat", ["paper_rates "]),
        ("andes-opt study paper_rates study.ti", ["study.tiny="]),
        ("andes-opt study portfolio portfolio.fast", ["portfolio.fast_call_s="]),
        ("andes-opt study live_overload hydra/launcher=", ["hydra/launcher=basic"]),
        ("andes-opt list stud", ["study ", "studies "]),
    ],
)
def test_studies_are_completed(line, found):
    """Names of studies, their options, and the launchers that they may have."""
    assert candidates(line) == found
