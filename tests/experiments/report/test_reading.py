"""What a report reads: labels that tell runs apart, and runs that it leaves out."""

from __future__ import annotations

import json
import shlex

import pytest

from experiments.report.reading import read
from experiments.runs.files import ENVIRONMENT, ERROR, SUMMARY
from tests.experiments.report import runs_by_hand
from tests.experiments.report.runs_by_hand import write_answers, write_run


def arms(folder):
    """Labels of the arms that are read from a folder."""
    return sorted({cell.arm for cell in read([folder]).runs})


def test_policies_with_their_solvers_are_arms(tmp_path):
    """The solver stands in brackets; what all runs share stands in the setting."""
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", policy="andes", solver="exact", objective="average_qoe")
    cells = read([tmp_path]).runs
    assert sorted(cell.arm for cell in cells) == ["andes (exact)", "fcfs"]
    assert {cell.setting for cell in cells} == {"small, poisson, fixed, reading"}
    assert all(cell.alone for cell in cells)


def test_objectives_are_told_apart_if_they_differ(tmp_path):
    """Two objectives of one policy are two arms."""
    for name in ("average_qoe", "max_min_qoe"):
        write_run(tmp_path / name, policy="andes", solver="exact", objective=name)
    assert arms(tmp_path) == ["andes (exact, average_qoe)", "andes (exact, max_min_qoe)"]


def test_options_that_differ_stand_in_the_labels(tmp_path):
    """An option of the policy makes an arm, one of the workload a setting, common ones neither."""
    common = "policy=andes seed=0 workload.rate=1 hydra.run.dir=x tokens=true solver_time=free"
    for name, more in (
        ("a", ""),
        ("b", " policy.dt_s=20"),
        ("c", " workload.requests=99"),
        ("d", " sweep.resume=true +policy.dt_s=30"),
    ):
        write_run(tmp_path / name, policy="andes", overrides=common + more)
    cells = read([tmp_path]).runs
    assert {cell.folder.name: cell.arm for cell in cells} == {
        "a": "andes",
        "b": "andes policy.dt_s=20",
        "c": "andes",
        "d": "andes +policy.dt_s=30",
    }
    settings = {cell.folder.name: cell.setting for cell in cells}
    assert settings["c"] == f"{settings['a']} workload.requests=99"


@pytest.mark.parametrize("joined", [shlex.join, " ".join])
def test_an_option_with_a_space_is_one_option(joined, tmp_path):
    """A regression test: half a path was an arm's option, and other traces were paired with it."""
    for name, day in (("a", "day 1.csv"), ("b", "day 2.csv")):
        words = [f"workload.path='{day}'", "seed=0"]
        write_run(tmp_path / name, overrides=joined(words))
    cells = read([tmp_path]).runs
    assert {cell.arm for cell in cells} == {"fcfs"}
    assert len({cell.setting for cell in cells}) == 2
    assert all(f"day {k}.csv" in cell.setting for k, cell in enumerate(cells, start=1))


def test_old_overrides_with_half_a_quote_are_read(tmp_path):
    """A regression test: what no shell would take is split at spaces, as it was written."""
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", overrides="policy.note=it's policy.dt_s=20")
    assert arms(tmp_path) == ["fcfs", "fcfs policy.note=it's policy.dt_s=20"]


def test_commands_are_settings_of_their_own(tmp_path):
    """Simulated and live runs of the same names are not averaged."""
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", 2.0, command="bench")
    assert len({cell.setting for cell in read([tmp_path]).runs}) == 2


def test_a_file_may_hold_several_arms(tmp_path):
    """Rows of one run under several policies are several cells, of which none is alone."""
    run = write_run(tmp_path / "a")
    more = write_run(tmp_path / "more" / "b", 2.0, policy="late")
    rows = runs_by_hand.pl.concat(
        [runs_by_hand.pl.read_parquet(each / "rows.parquet") for each in (run, more)]
    )
    rows.write_parquet(run / "rows.parquet")
    cells = [cell for cell in read([run]).runs]
    assert sorted(cell.arm for cell in cells) == ["fcfs", "late"]
    assert not any(cell.alone for cell in cells)


def test_equal_copies_count_once_and_contradictions_are_refused(tmp_path):
    """The same run twice is one, its details kept; different rows under one name are an error."""
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", detail=True)
    results = read([tmp_path])
    (cell,) = results.runs
    assert cell.folder.name == "b"
    assert any("count once: 1" in note for note in results.notes)
    assert len(read([tmp_path, tmp_path / "a"]).runs) == 1
    write_run(tmp_path / "c", 3.0)
    with pytest.raises(ValueError, match=r"both hold fcfs at rate 1\.0 with seed 0, and differ"):
        read([tmp_path])


def test_failed_and_unfinished_runs_are_left_out_and_counted(tmp_path):
    """Only complete runs are read, and the report says how many were not."""
    write_run(tmp_path / "done")
    (write_run(tmp_path / "cut", detail=True, seed=1) / SUMMARY).unlink()
    (write_run(tmp_path / "failed", detail=True, seed=2) / SUMMARY).unlink()
    (tmp_path / "failed" / ERROR).write_text("{}")
    results = read([tmp_path])
    assert len(results.runs) == 1
    assert any("not complete and are left out: 1" in note for note in results.notes)
    assert any("failed and are left out: 1" in note for note in results.notes)


def test_other_code_is_said(tmp_path):
    """Runs of two versions of the code are compared, with a warning."""
    write_run(tmp_path / "a")
    assert not read([tmp_path]).notes
    other = runs_by_hand.ENVIRONMENT | {"run": {"configuration": "a", "code": "other"}}
    write_run(tmp_path / "b", seed=1, environment=other)
    assert any("2 versions of the code" in note for note in read([tmp_path]).notes)


def test_solver_rows_have_units(tmp_path):
    """Answers to one instance share a unit, other instances have others; extra files are read."""
    write_answers(tmp_path / "quality")
    demo = write_run(tmp_path / "demo")
    (demo / "solver_rows.parquet").write_bytes((tmp_path / "quality" / "rows.parquet").read_bytes())
    answers = read([demo]).answers
    assert answers.height == 10
    assert answers["unit"].n_unique() == 5
    assert read([tmp_path]).answers.height == 20


def test_instances_of_other_lengths_or_corpora_have_other_units(tmp_path):
    """A regression test: instances of one name were merged whatever lengths= or corpus= said."""
    for name, overrides in (
        ("a", "lengths=sharegpt solvers=[greedy]"),
        ("b", "lengths=azure solvers=[greedy]"),
        ("c", "+options.exact.a=1 repeats=3 time_limit_s=1 lengths=azure solvers=[exact] seed=0"),
        ("d", "corpus=a"),
        ("e", "corpus=b"),
    ):
        write_answers(tmp_path / name, overrides=overrides)
    answers = read([tmp_path]).answers
    assert answers["unit"].n_unique() == 4 * 5
    azure = read([tmp_path / "b", tmp_path / "c"]).answers
    assert azure["unit"].n_unique() == 5


def test_another_schema_is_refused(tmp_path):
    """Rows of another version of the schema, or with strange columns, are named."""
    run = write_run(tmp_path / "a", environment={"schema": 99})
    with pytest.raises(ValueError, match="schema 99, this version reads schema 1"):
        read([tmp_path])
    (run / ENVIRONMENT).write_text(json.dumps({"schema": 1}))
    rows = runs_by_hand.pl.read_parquet(run / "rows.parquet")
    rows.rename({"tds": "speed"}).write_parquet(run / "rows.parquet")
    with pytest.raises(ValueError, match=r"another schema \(column speed\)"):
        read([tmp_path])


@pytest.mark.parametrize("name", ["nowhere", "empty", "file.txt"])
def test_folders_without_results_are_named(name, tmp_path):
    """A folder that does not exist, an empty one, a file: one sentence each."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").touch()
    with pytest.raises(FileNotFoundError, match=name):
        read([tmp_path / name])
