"""`andes-opt report`: what it prints and writes, its errors, and runs of the real commands."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl
import pytest

from experiments.analysis.figures import looks
from experiments.cli import main
from tests.experiments.report.runs_by_hand import write_answers, write_everything, write_run

FIGURES = {
    "qoe_against_rate",
    "distributions",
    "one_request",
    "occupancy",
    "gap_against_time",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A report on everything, and what it printed."""
    folder = tmp_path_factory.mktemp("report")
    write_everything(folder / "runs")
    output = folder / "out"
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr(
            "builtins.print", lambda *words, **_: printed.append(" ".join(map(str, words)))
        )
        assert main(["report", str(folder / "runs"), "--output", str(output)]) == 0
    return output, "\n".join(printed)


def test_every_file_is_written(whole):
    """Markdown, CSV, a page, and each figure as PNG and PDF."""
    output, _ = whole
    names = {path.name for path in output.iterdir() if path.is_file()}
    assert names == {
        "report.md",
        "report.html",
        "runs.csv",
        "comparison.csv",
        "solvers.csv",
    }
    for suffix, start in ((".png", b"\x89PNG"), (".pdf", b"%PDF")):
        figures = list((output / "figures").glob(f"*{suffix}"))
        assert {path.stem for path in figures} == FIGURES
        assert all(path.read_bytes().startswith(start) for path in figures)


def test_the_comparison_is_printed_and_written(whole):
    """Tables of levels, differences and solvers, with the baseline first."""
    output, printed = whole
    text = (output / "report.md").read_text()
    for heading in ("QoE: small", "Difference to fcfs: small", "Solvers"):
        assert heading in printed
        assert f"## {heading}" in text
    assert re.search(r"\| +1\.0 \| fcfs +\| +3 \| \d\.\d{3} ± ", printed)
    assert "compared with fcfs, paired over 3 seeds" in printed
    assert "![QoE against rate" in text
    assert "Left out" not in text
    for target in re.findall(r"\]\((\S+)\)", text):
        assert (output / target).exists()


def test_the_csv_files_hold_what_the_tables_show(whole):
    """Every metric of every arm and rate, with interval, difference and p."""
    output, _ = whole
    table = pl.read_csv(output / "comparison.csv")
    assert table.select("rate", "arm").n_unique() == 9
    area = table.filter(pl.col("metric") == "qoe_area_mean", pl.col("rate") == 3.0)
    runs = pl.read_csv(output / "runs.csv").filter(pl.col("rate") == 3.0)
    for arm in ("fcfs", "andes (exact)", "round_robin"):
        mean = runs.filter(pl.col("arm") == arm)["qoe_area_mean"].mean()
        assert area.filter(pl.col("arm") == arm)["mean"].item() == pytest.approx(mean)
    assert area.filter(pl.col("arm") == "andes (exact)")["difference"].item() > 0
    gaps = pl.read_csv(output / "solvers.csv").filter(pl.col("metric") == "gap_percent")
    assert gaps.filter(pl.col("arm") == "exact")["difference"].item() == pytest.approx(-1.2)


def test_the_page_is_one_file(whole):
    """Nothing is loaded from elsewhere, and every section has its place."""
    output, _ = whole
    page = (output / "report.html").read_text()
    own = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)  # the library and the data
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", own)
    assert "default-src 'none'" in page
    for key in FIGURES:
        assert f'id="plot-{key}"' in page
    assert page.count('type="checkbox"') >= 3


def test_sections_without_data_are_left_out_with_a_hint(tmp_path, capsys):
    """One rate, one seed, no details: the report says what to record, and shows the rest."""
    write_run(tmp_path / "run", policy="andes <b>", detail=False)
    assert main(["report", "run"]) == 0
    assert "One seed" in capsys.readouterr().out
    text = Path("report/report.md").read_text()
    for hint in ("workload.rate=", "tokens=true", "timeline=true", "andes-opt quality"):
        assert hint in text
    assert {path.stem for path in Path("report/figures").iterdir()} == {"distributions"}
    assert "andes &lt;b&gt;" in Path("report/report.html").read_text()
    assert not Path("report/solvers.csv").exists()


def test_solvers_alone_make_a_report(tmp_path, capsys):
    """Rows of quality need no policies; the named solver is the baseline."""
    write_answers(tmp_path / "quality")
    assert main(["report", "quality", "--baseline", "exact"]) == 0
    assert "less exact's" in capsys.readouterr().out
    assert not Path("report/comparison.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ([], ["FOLDER"]),
        (["nowhere"], ["nowhere"]),
        (["."], ["complete run"]),
        (["runs", "--baseline", "exakt"], ["exakt", "greedy", "did you mean exact?"]),
        (["runs", "--request", "first"], ["--request", "first"]),
        (["runs", "--request", "3"], ["--request=3", "no run has rows per request"]),
        (["runs", "--base"], ["--base"]),
    ],
)
def test_errors_take_one_line(arguments, fragments, tmp_path, capsys):
    """A wrong folder, baseline or option gives one sentence and no report."""
    if "runs" in arguments:
        write_answers(tmp_path / "runs")
    assert main(["report", *arguments]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    for fragment in fragments:
        assert fragment in error
    assert not Path("report").exists()


@pytest.mark.parametrize(
    ("request_number", "fragments"),
    [
        ("999", ["--request=999", "runs hold requests 0 to 19"]),
        ("4", ["--request=4", "a token to it"]),
    ],
)
def test_a_request_without_a_timeline_is_refused(request_number, fragments, tmp_path, capsys):
    """A regression test: the section vanished, with the advice to record what was recorded."""
    run = write_run(tmp_path / "run", detail=True)
    rows = pl.read_parquet(run / "rows.parquet")
    refused = pl.col("request") == 4
    rows.with_columns(
        (pl.col("rejected") | refused).alias("rejected"),
        pl.when(~refused).then(pl.col("first_token_s")).alias("first_token_s"),
    ).write_parquet(run / "rows.parquet")
    assert main(["report", "run", "--request", request_number]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    for fragment in fragments:
        assert fragment in error
    assert not Path("report").exists()
    assert main(["report", "run", "--request", "5"]) == 0
    assert "request 5" in Path("report/report.md").read_text()


def test_only_seeds_that_pair_are_counted(tmp_path, capsys):
    """A regression test: seeds of one policy alone were said to be paired."""
    for policy, seeds in (("fcfs", (0, 1, 2)), ("andes", (2, 3))):
        for seed in seeds:
            write_run(tmp_path / "runs" / f"{policy}_{seed}", policy=policy, seed=seed)
    assert main(["report", "runs"]) == 0
    assert "compared with fcfs, paired over 1 seed." in capsys.readouterr().out


def test_help_has_three_examples(capsys):
    """`andes-opt report --help` explains its options."""
    with pytest.raises(SystemExit) as exit_info:
        main(["report", "--help"])
    assert not exit_info.value.code
    text = capsys.readouterr().out
    assert text.count("  andes-opt report ") >= 3
    assert "--baseline" in text


def test_runs_of_the_commands_are_read_as_one(run, tmp_path):
    """What simulate and quality write goes into one report."""
    tiny = ("workload.requests=8", "workload.rate=3", "engine.capacity_tokens=4000")
    folder, _ = run("simulate", *tiny, "policy=fcfs", "tokens=true", "timeline=true")
    folder.rename(tmp_path / "simulated")
    run("quality", "families=[hard]", "sizes=[6]", "count=2", "solvers=[greedy,exact]")
    assert main(["report", "simulated", "out"]) == 0
    names = {path.stem for path in Path("report/figures").glob("*.png")}
    assert names == {"distributions", "one_request", "occupancy", "gap_against_time"}


def test_looks_differ():
    """As many arms as a figure can take are all drawn differently."""
    found = looks([str(k) for k in range(12)])
    assert len({(look.colour, look.marker, look.dash) for look in found.values()}) == 12


def cut_off(path):
    """Leave the first half of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def pointer(path):
    """Leave what Git LFS puts in a file's place."""
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")


@pytest.mark.parametrize("name", ["rows.parquet", "tokens.parquet", "timeline.parquet", "env.json"])
@pytest.mark.parametrize("harm", [cut_off, pointer])
def test_a_run_that_can_not_be_read_is_left_out_by_name(name, harm, tmp_path, capsys):
    """The others are reported on, the file is named, and the exit code says so."""
    write_run(tmp_path / "good", detail=True)
    harm(write_run(tmp_path / "bad", detail=True, seed=1) / name)
    output = tmp_path / "out"
    assert main(["report", str(tmp_path), "--output", str(output)]) == 1
    printed = capsys.readouterr()
    assert f"bad/{name} can't be read" in printed.err
    assert ("Git LFS" in printed.err) == (harm is pointer)
    assert printed.err.count("\n") == 1
    assert "1 complete run." in printed.out
    assert f"bad/{name}" in (output / "report.md").read_text()


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("rows", lambda table: table.drop("tds")),
        ("rows", lambda table: table.drop("request")),
        ("rows", lambda table: table.with_columns(tds=pl.lit(None, pl.Float64))),
        ("tokens", lambda table: table.drop("time_s")),
        ("tokens", lambda table: table.with_columns(request=pl.lit("x"))),
        ("tokens", lambda table: table.with_columns(time_s=pl.lit(None, pl.Float64))),
        ("timeline", lambda table: table.with_columns(held=pl.lit("x"))),
    ],
)
def test_tables_that_hold_something_else_are_named(name, harm, tmp_path, capsys):
    """A column that is missing, has no numbers, or lacks some: the run is left out by name."""
    write_run(tmp_path / "good", detail=True)
    path = write_run(tmp_path / "bad", detail=True, seed=1) / f"{name}.parquet"
    harm(pl.read_parquet(path)).write_parquet(path)
    assert main(["report", str(tmp_path), "--output", str(tmp_path / "out")]) == 1
    assert f"bad/{name}.parquet" in capsys.readouterr().err


def test_runs_of_which_none_can_be_read_are_no_report(tmp_path, capsys):
    """One line with the first file, and a user error."""
    pointer(write_run(tmp_path / "bad") / "rows.parquet")
    assert main(["report", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert "bad/rows.parquet can't be read" in capsys.readouterr().err


def test_names_with_bars_break_no_table(tmp_path, capsys):
    """Every line of a table has as many cells as its head."""
    write_run(tmp_path / "a", policy="a|b")
    write_run(tmp_path / "b", policy="c")
    assert main(["report", str(tmp_path), "--output", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert any("a\\|b" in line for line in tables)
    assert "a|b |" not in text
