"""Studies: arms and variants, rows, statistics, documents, and going on after a stop."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest

from andes_opt.metrics import paired_difference
from experiments.analysis.intervals import in_points
from experiments.analysis.statistics import DIFFERENCE, RATIO, against, as_rows, over_seeds
from experiments.analysis.tables import wide
from experiments.cli import main
from experiments.configuration.compose import CONF_DIR, build, first_comment, load
from experiments.configuration.errors import UsageError
from experiments.runs.columns import COLUMNS, RUN_COLUMNS, STUDY_COLUMNS
from experiments.studies import measurements
from experiments.studies.exact_vs_greedy_views import break_even_s, in_words
from experiments.studies.measurements import Measurement
from experiments.studies.points import Point, StudyRunner
from experiments.studies.settings import patched, settings_of
from experiments.studies.views import VIEWS, Page

STUDIES = sorted(
    path.stem for path in (CONF_DIR / "experiment").glob("*.yaml") if "/study: " in path.read_text()
)
TINY = ("study.tiny=true", "hydra/launcher=basic")


def rows_of(numbers, **label):
    """Rows of one metric: arm -> its numbers by seed; None where a seed is missing."""
    return as_rows(
        (
            {"variant": "v", "arm": arm, "rate": 2.0, "seed": seed, **label},
            [Measurement("m", "", value)],
        )
        for arm, values in numbers.items()
        for seed, value in enumerate(values)
        if value is not None
    )


def test_the_experiments_of_the_paper_are_there():
    """One file a question, each with its question, its views and at least five seeds."""
    assert len(STUDIES) >= 12
    for name in STUDIES:
        command = first_comment(CONF_DIR / "experiment" / f"{name}.yaml").partition(":")[0]
        config = load(command, [f"experiment={name}"])
        assert config.study.seeds >= 5
        assert config.study.question
        assert config.study.views
        assert {view.view for view in config.study.views} <= set(VIEWS)


# ------------------------------------------------------------------ settings


def test_settings_change_groups_and_options():
    """A group's name loads its file, a dotted option is set; the original stays as it was."""
    config = load("simulate", ["workload.rate=7", "workload.requests=9"])
    replaced = {}
    changed = patched(
        config, {"workload": "gamma", "workload.cv": 2.0, "engine": "kv_12k"}, replaced
    )
    workload = build(changed, "workload")
    assert (workload.rate, workload.requests, workload.cv) == (7, 9, 2.0)
    assert build(changed, "engine").name == "kv_12k"
    assert replaced == {"workload": "gamma", "engine": "kv_12k"}
    assert build(config, "engine").name == "opt_66b_4xa100"


def test_options_of_the_command_line_survive_a_setting_that_changes_nothing():
    """A variant that names the engine in use keeps engine.max_batch=9; another one does not."""
    config = load("simulate", ["engine=kv_12k", "engine.max_batch=9"])
    replaced = {"engine": "kv_12k"}
    assert patched(config, {"engine": "kv_12k"}, replaced).engine.max_batch == 9
    assert patched(config, {"engine": "opt_66b_slow"}, replaced).engine.max_batch == 256


def test_unknown_settings_are_refused():
    """An option that does not exist, and an arm that nobody knows, are told with choices."""
    config = load("simulate")
    with pytest.raises(UsageError, match=r"objective\.dt not understood.*did you mean.*dt_s"):
        patched(config, {"objective.dt": 3.0}, {})
    with pytest.raises(UsageError, match=r"anders not understood.*did you mean andes"):
        settings_of("anders", {}, ["policy"])
    assert settings_of("fcfs", {}, ["policy"]) == {"policy": "fcfs"}
    assert settings_of("fcfs", {"fcfs": {"policy": "andes"}}, ["policy"]) == {"policy": "andes"}


# ---------------------------------------------------------------- statistics


def test_paired_statistics_by_hand():
    """Means, differences and ratios are over seeds that both arms have."""
    rows = rows_of({"base": [1.0, 2.0, 4.0], "arm": [2.0, 2.0, 8.0, 100.0]})
    mean = over_seeds(rows).filter(pl.col("arm") == "base").row(0, named=True)
    assert mean["mean"] == pytest.approx(7 / 3)
    assert mean["seeds"] == 3
    difference = against(rows, "base", DIFFERENCE).row(0, named=True)
    expected = paired_difference([2, 2, 8], [1, 2, 4])
    assert (difference["mean"], difference["half_width"]) == pytest.approx(tuple(expected))
    assert difference["arm"] == "arm"
    ratio = against(rows, "base", RATIO).row(0, named=True)
    assert ratio["mean"] == pytest.approx(5 / 3)


def test_each_seed_counts_once_whatever_its_rows():
    """A regression test: rows that stood twice were more seeds, and paired crosswise."""
    rows = rows_of({"base": [1.0, 2.0, 4.0], "arm": [2.0, 2.0, 8.0]})
    twice = pl.concat([rows, rows])
    assert over_seeds(twice).equals(over_seeds(rows))
    for kind in (DIFFERENCE, RATIO):
        assert against(twice, "base", kind).equals(against(rows, "base", kind))
    assert against(twice, "base", DIFFERENCE)["seeds"].to_list() == [3]


def test_seeds_where_the_baseline_is_zero_have_no_ratio():
    """Division by zero is left out rather than infinite."""
    rows = rows_of({"base": [0.0, 2.0], "arm": [1.0, 3.0]})
    ratio = against(rows, "base", RATIO).row(0, named=True)
    assert (ratio["mean"], ratio["half_width"], ratio["seeds"]) == (1.5, None, 1)


def test_points_are_kept_apart():
    """Numbers at different rates, loads or jitters are not averaged."""
    rows = pl.concat(
        [
            rows_of({"a": [1.0, 1.0]}),
            rows_of({"a": [2.0, 2.0]}, relative_load=1.25),
            rows_of({"a": [3.0, 3.0]}, relative_load=1.25, jitter_s=0.5),
        ]
    )
    table = over_seeds(rows)
    assert table["at"].to_list() == ["2.0/s", "1.25 x", "0.5 s"]
    assert table["mean"].to_list() == [1.0, 2.0, 3.0]


def test_rows_follow_the_documented_schema():
    """Rows have the run's columns and the study's, with their types."""
    rows = rows_of({"a": [1.0, math.nan]})
    assert rows.columns == [*RUN_COLUMNS, *STUDY_COLUMNS]
    assert rows.dtypes == [COLUMNS[name].dtype for name in rows.columns]
    assert rows["number"].to_list() == [1.0, None]


def test_tables_show_means_with_intervals():
    """A line per point and arm, a column per metric; QoE differences are in points."""
    rows = rows_of({"a": [1.0, 3.0], "b": [2.0, 2.0]})
    table = wide(over_seeds(rows), None)
    assert table.columns == ["arm", "m"]
    assert table.row(0) == ("a", "2 ± 13")
    renamed = rows.with_columns(pl.lit("qoe_area_mean").alias("metric"))
    points = in_points(against(renamed, "b", DIFFERENCE)).row(0, named=True)
    assert points["mean"] == pytest.approx(0)
    assert points["half_width"] == pytest.approx(100 * 12.706, rel=1e-3)


@pytest.mark.parametrize(
    ("baseline", "reason"),
    [("fcfs", "fcfs is not among study.arms."), ("a", "the study has one arm only.")],
)
@pytest.mark.parametrize("view", ["differences", "ratios"])
def test_a_view_says_why_there_is_nothing_to_compare(view, baseline, reason, tmp_path):
    """A regression test: a baseline that was not run was told as a study of one arm."""
    page = Page(rows_of({"a": [1.0, 2.0]}), baseline, tmp_path, "study")
    assert f"Nothing to compare: {reason}" in VIEWS[view](page, metrics=["m"])


@pytest.mark.parametrize(
    ("points", "seconds", "words"),
    [
        ([(0.0, 2.0), (0.01, 1.0), (0.03, -1.0)], 0.02, "20 ms"),
        ([(0.0, -0.1), (0.01, 1.0)], math.nan, "never better"),
        ([(0.0, 1.0), (0.2, 0.5)], math.inf, "beyond"),
        ([(0.0, 0.0), (0.01, -1.0)], 0.0, "0 ms"),
    ],
)
def test_break_even_by_hand(points, seconds, words):
    """Where the difference crosses 0, by linear interpolation."""
    assert break_even_s(points) == pytest.approx(seconds, nan_ok=True)
    assert in_words(seconds) == words


# ----------------------------------------------------------------- the whole


def test_a_capacity_at_the_search_s_limit_is_a_bound(tmp_path):
    """Tables and figures write it with >=, ratios to it with <=, and with no interval."""
    numbers = {"fcfs": [4.0, 5.0], "andes": [100.0, 100.0], "thrift": [50.0, 100.0]}
    rows = rows_of(numbers).with_columns(pl.lit("capacity_area").alias("metric"))
    page = Page(rows, "fcfs", tmp_path, "x", 100.0)
    means = VIEWS["means"](page, metrics=["capacity_area"], figure="bars")
    assert ">= 100.00" in means
    assert ">= 75.00  " in means
    assert "4.50 ± " in means
    assert (tmp_path / "x_means.png").stat().st_size > 0
    assert ">= 22.50 " in VIEWS["ratios"](page, metrics=["capacity_area"])
    assert "<= 0.04" in VIEWS["ratios"](page, metrics=["capacity_area"], baseline="andes")
    assert "? 0.75" in VIEWS["ratios"](page, metrics=["capacity_area"], baseline="andes")
    assert ">= -" not in VIEWS["differences"](page, metrics=["capacity_area"], baseline="andes")


def test_a_short_capacity_study_says_so(run, tmp_path):
    """
    Five requests are served at any rate, which is no capacity.

    A regression test: `100.00 ± 0.00` stood there as a result.
    """
    small = ["workload.requests=5", "study.seeds=2", "study.arms=[fcfs,andes]"]
    small += ["study.variants=[opt_66b_4xa100]", "hydra/launcher=basic"]
    folder, _ = run("study paper_capacity", *small)
    text = (folder / "paper_capacity.md").read_text()
    assert text.count(">= 100.00") == 4
    assert "100.00 ±" not in text
    assert main(["study", "paper_horizon", "workload.requests=5", "study.seeds=1"]) == 2


def test_a_study_writes_rows_tables_figures_and_its_document(run, tmp_path):
    """The numbers of the document are those of the rows, and those of the simulation."""
    options = (*TINY, "study.rates=[6.0]", "study.docs=pages")
    folder, summary = run("study paper_rates", *options)
    files = {path.name for path in folder.iterdir()}
    assert {"rows.parquet", "table.csv", "paper_rates.md", "summary.json", "env.json"} <= files
    assert "paper_rates_means.png" in files
    for name in ("results/paper_rates.md", "figures/paper_rates_means.png"):
        assert (tmp_path / "pages" / name).stat().st_size > 0
    text = (tmp_path / "pages" / "results" / "paper_rates.md").read_text()
    assert "](../figures/paper_rates_means.png)" in text
    assert "`andes-opt study paper_rates" in text
    assert "Tiny form" in text

    rows = pl.read_parquet(folder / "rows.parquet")
    assert rows["seed"].unique().sort().to_list() == [0, 1]
    assert rows["arm"].unique().sort().to_list() == ["fcfs", "round_robin"]
    config = load("simulate", ["policy=fcfs", "workload.rate=6", "workload.requests=10"])
    config.engine.capacity_tokens = 2000
    nodes = measurements.with_rate(Point("variant", "arm", config, {}).run, 6.0)
    means = [float(measurements.simulated(nodes, seed).qoe_area.mean()) for seed in (0, 1)]
    assert summary["fcfs_on_opt_66b_4xa100_at_6.0/s_qoe_area_mean"] == pytest.approx(
        np.mean(means), rel=1e-6
    )
    csv = pl.read_csv(folder / "table.csv", infer_schema_length=None)
    line = csv.filter(
        (pl.col("arm") == "fcfs")
        & (pl.col("metric") == "qoe_area_mean")
        & (pl.col("kind") == "mean")
    )
    assert line["mean"].item() == pytest.approx(np.mean(means), rel=1e-6)


def test_a_tiny_form_leaves_the_real_document_alone(run, tmp_path):
    """Without a folder of its own it writes to the run's alone (a bug once: it replaced docs/)."""
    document = tmp_path / "docs" / "results" / "paper_rates.md"
    document.parent.mkdir(parents=True)
    document.write_text("the result of an hour")
    folder, _ = run("study paper_rates", *TINY, "study.rates=[6.0]")
    assert document.read_text() == "the result of an hour"
    assert "Tiny form" in (folder / "paper_rates.md").read_text()


def test_loads_are_multiples_of_one_capacity_whatever_is_compared(run, monkeypatch):
    """Not of the capacity of the arm that is compared with (a bug once: the axis said FCFS's)."""
    capacities, measured = StudyRunner.capacities, set()

    def watched(self, points):
        measured.update(point.arm for point in points)
        return capacities(self, points)

    monkeypatch.setattr(StudyRunner, "capacities", watched)
    folder, _ = run("study paper_horizon", *TINY, "study.baseline=dt 5 s")
    assert measured == {"fcfs"}
    assert "- Load 1 is the capacity of fcfs" in (folder / "paper_horizon.md").read_text()


def test_a_stopped_study_goes_on(run, monkeypatch, capsys):
    """After an interrupt the same command computes what is missing, and gives the same rows."""
    arguments = (*TINY, "study.docs=null")
    folder, summary = run("study paper_rates", *arguments, "study.cells=whole")
    whole = pl.read_parquet(folder / "rows.parquet")
    cells = summary["cells"]
    assert (summary["computed"], summary["reused"]) == (cells, 0)

    served, calls = measurements.served, 0

    def interrupted(**options):
        nonlocal calls
        calls += 1
        if calls > 3:
            raise KeyboardInterrupt
        return served(**options)

    stopped = ("hydra.run.dir=out", "study.cells=stopped")
    # A context, since undo() would leave the empty folder that the test runs in, too.
    with monkeypatch.context() as patch:
        patch.setattr(measurements, "served", interrupted)
        assert main(["study", "paper_rates", *arguments, *stopped]) == 130
    assert not (folder / "summary.json").exists()
    capsys.readouterr()
    folder, summary = run("study paper_rates", *arguments, "study.cells=stopped")
    assert (summary["computed"], summary["reused"]) == (cells - 3, 3)
    again = pl.read_parquet(folder / "rows.parquet")
    timed = ("decide_s", "solver_s", "wall_s", "solve_us")
    same = [
        rows.filter(~pl.col("metric").is_in(timed)).drop("overrides") for rows in (whole, again)
    ]
    assert same[0].equals(same[1])


@pytest.mark.parametrize(
    ("override", "fragments"),
    [
        ("study.kind=grids", ["study.kind=grids", "did you mean grid?"]),
        ("study.arms=[fcfss]", ["fcfss", "did you mean fcfs?"]),
        ("study.loads=[1.0]", ["study.rates and study.loads"]),
        ("study.seeds=0", ["study.seeds = 0"]),
        ("engine.max_batch=-1", ["engine: ", "max_batch = -1"]),
        ("study.views=[{view: mean}]", ["view=mean", "did you mean means?"]),
        ("study.views=[{view: means}]", ["view means", "metrics"]),
    ],
)
def test_user_errors(override, fragments, capsys, tmp_path):
    """What the user can mend is told in one line before anything is simulated."""
    command = ["study", "paper_rates", *TINY, "study.docs=null", "study.rates=[6]"]
    assert main([*command, override]) == 2
    error = capsys.readouterr().err
    assert all(fragment in error for fragment in fragments), error
    assert not (tmp_path / "outputs" / "cells").exists()
