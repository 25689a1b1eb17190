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
        assert entry.is_study == bool(nodes & {str(key) for key in config}), name
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
        (["paper_rtes"], ["study=paper_rtes", "portfolio", "did you mean paper_rates?"]),
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
    assert "\nExample: andes-opt study paper_rates\n" in text
    assert "andes-opt simulate" not in text


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
