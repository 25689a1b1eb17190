"""What was measured is kept, whatever fails afterwards: printing, drawing, a solver, the disk."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import polars as pl
import pytest

from experiments.analysis import figures
from experiments.cli import main
from experiments.runs import records
from experiments.runs.records import complete_runs
from experiments.solver_comparison import compare

SIMULATE = ("simulate", "workload.requests=4", "policy=fcfs")
QUALITY = ("quality", "solvers=[greedy,exact]", "families=[hard]", "sizes=[6]", "count=2")
BENCH = ("bench", "workload.requests=4", "workload.rate=40", "lengths.output_tokens=4")


def shell(line, folder, **environment):
    """Run the console script by a shell, with its output where the line says."""
    script = f"{sys.executable} -m experiments.cli"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), **environment}
    command = line.replace("andes-opt", script)
    return subprocess.run(
        ["sh", "-c", command], cwd=folder, env=env, capture_output=True, text=True, check=False
    )


@pytest.fixture
def scripted(monkeypatch):
    """The module of the scripted server."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "client")
    import scripted_server

    return scripted_server


def test_a_full_device_costs_the_sentence_only(tmp_path):
    """``simulate > /dev/full`` makes a complete run, and says on standard error what is lost."""
    done = shell(f"andes-opt {' '.join(SIMULATE)} hydra.run.dir=out > /dev/full", tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == (
        "andes-opt simulate: standard output can't be written: No space left on device.\n"
    )
    assert complete_runs(tmp_path / "out")
    listed = shell("andes-opt list solvers > /dev/full", tmp_path)
    assert listed.returncode == 2
    assert "No space left" in listed.stderr


@pytest.mark.parametrize("where", ["> /dev/full", ">&- 2>&-"])
def test_a_bench_that_can_print_nothing_is_kept(where, scripted, tmp_path):
    """Rows, tokens and summary are there."""
    with scripted.ScriptedServer() as server:
        line = f"andes-opt {' '.join(BENCH)} lengths=fixed endpoint.url={server.url}"
        done = shell(f"{line} hydra.run.dir=out {where}", tmp_path)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert pl.read_parquet(tmp_path / "out" / "rows.parquet").height == 4
    assert complete_runs(tmp_path / "out")


def test_an_encoding_costs_no_letters_but_its_own(scripted, tmp_path):
    """One Chinese error text on a terminal for Latin-1: all is kept, the text spelled out."""
    turn = iter(range(9))

    def script(body):
        if next(turn) == 1:
            return iter([scripted.Refusal(429, '{"error": "\\u4e2d\\u001b[2J"}')])
        return scripted.steady(body)

    with scripted.ScriptedServer(script) as server:
        line = f"andes-opt {' '.join(BENCH)} lengths=fixed endpoint.url={server.url}"
        done = shell(f"{line} hydra.run.dir=out", tmp_path, PYTHONIOENCODING="latin-1")
    assert done.returncode == 0
    assert "429: \\u4e2d\\x1b[2J" in done.stdout
    rows = pl.read_parquet(tmp_path / "out" / "rows.parquet")
    assert "429: 中\\x1b[2J" in rows["error"].to_list()


def test_sigterm_keeps_what_ctrl_c_keeps(scripted, tmp_path):
    """A bench that is terminated has its rows, and no summary."""

    def script(_body):
        yield scripted.completion("a", **scripted.usage(1, 1))
        yield 60.0

    command = [sys.executable, "-m", "experiments.cli", *BENCH, "lengths=fixed"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    with scripted.ScriptedServer(script) as server:
        options = [f"endpoint.url={server.url}", "hydra.run.dir=out"]
        process = subprocess.Popen([*command, *options], cwd=tmp_path, env=env)
        while len(server.bodies) < 4:
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    rows = pl.read_parquet(tmp_path / "out" / "rows.parquet")
    assert set(rows["outcome"]) == {"interrupted"}
    assert (tmp_path / "out" / "incomplete_summary.json").exists()
    assert not (tmp_path / "out" / "summary.json").exists()


def test_sigterm_ends_any_command_in_order(monkeypatch, capsys):
    """It counts as an interrupt, with a status of its own; afterwards it means what it did."""
    before = signal.getsignal(signal.SIGTERM)

    def run_by_hydra(*_):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("experiments.cli.run_by_hydra", run_by_hydra)
    assert main(["simulate"]) == 143
    assert capsys.readouterr().err == "andes-opt simulate: terminated.\n"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture
def small_files():
    """Let no file grow beyond some bytes, as on a full disk, but for Python's own signal."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def at_most(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))

    yield at_most
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_one_line_after_the_sentence(scripted, small_files, tmp_path, capsys):
    """A run says what came out, then what could not be written; nothing is half there."""
    with scripted.ScriptedServer() as server:
        bench = [*BENCH, "lengths=fixed", f"endpoint.url={server.url}"]
        for words, said in ((bench, "4 of 4 replies complete"), (SIMULATE, "QoE area")):
            folder = tmp_path / words[0]
            assert main([*words, f"hydra.run.dir={folder}"]) == 0
            folder = tmp_path / f"{words[0]}_full"
            capsys.readouterr()
            # What Hydra writes is smaller than rows; what a run measures is not.
            monkey = records.Run.keep

            def keep(run, rows, monkey=monkey):
                small_files(1000)
                monkey(run, rows)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(records.Run, "keep", keep)
                try:
                    assert main([*words, f"hydra.run.dir={folder}"]) == 2
                finally:
                    small_files(resource.RLIM_INFINITY)
            printed = capsys.readouterr()
            assert said in printed.out
            assert "rows.parquet can't be written" in printed.err
            assert printed.err.count("\n") == 1
            assert not [path for path in folder.rglob("*") if "partial" in path.name]
            assert not (folder / "rows.parquet").exists()
            assert not (folder / "summary.json").exists()


def broken_figure(*_):
    """A figure that can't be drawn."""
    raise RuntimeError("no LaTeX\nhere")


def test_a_figure_that_fails_is_a_remark(run, monkeypatch, capsys):
    """The run is complete, with all but the figure, and says which one is missing."""
    monkeypatch.setattr(figures, "gap_against_time", broken_figure)
    folder, summary = run(*QUALITY)
    assert summary["instances"] == 2
    assert complete_runs(folder)
    printed = capsys.readouterr()
    assert "gap_vs_time.png can't be drawn: RuntimeError: no LaTeX here" in printed.err
    assert "| exact" in printed.out


def test_a_report_goes_on_without_a_figure(run, monkeypatch, tmp_path, capsys):
    """Its tables and its page are written, and no picture that is not there is named."""
    run(*QUALITY)
    monkeypatch.setattr("experiments.report.document.save_for_print", broken_figure)
    assert main(["report", str(tmp_path / "out"), "--output", str(tmp_path / "report")]) == 0
    assert "can't be drawn" in capsys.readouterr().err
    assert "![" not in (tmp_path / "report" / "report.md").read_text()
    assert (tmp_path / "report" / "report.html").exists()


def test_figures_do_not_depend_on_the_users_settings(run, monkeypatch):
    """The same picture to the last pixel, whatever the user's matplotlibrc says."""
    folder, _ = run(*QUALITY)
    rows = pl.read_parquet(folder / "rows.parquet")
    figures.gap_against_time(rows, folder / "plain.png")
    odd = {"text.usetex": True, "axes.facecolor": "red", "savefig.bbox": "tight", "font.size": 40}
    with mpl.rc_context(odd):
        figures.gap_against_time(rows, folder / "odd.png")
        assert mpl.rcParams["text.usetex"]
    assert (folder / "plain.png").read_bytes() == (folder / "odd.png").read_bytes()


class Crashing:
    """A solver that raises something at every call."""

    def __init__(self, error):
        self.error = error

    def solve(self, _instance, *, time_limit_s=None):
        raise self.error


class Panic(BaseException):
    """What compiled extensions raise."""


@pytest.mark.parametrize(
    "error", [RuntimeError("oh\nno"), MemoryError(), KeyError("x"), SystemExit(3), Panic("oh")]
)
def test_a_solver_that_raises_is_a_row(error, monkeypatch, run, capsys):
    """Whatever it raises: the others' rows are there, and the table counts the failures."""
    build = compare.build_solvers
    monkeypatch.setattr(
        "experiments.commands.quality.build_solvers",
        lambda *arguments: {"crashing": Crashing(error), **build(*arguments)},
    )
    folder, summary = run(*QUALITY)
    rows = pl.read_parquet(folder / "rows.parquet")
    crashed = rows.filter(pl.col("solver") == "crashing")
    assert crashed["status"].to_list() == ["failed"] * 2
    assert crashed["note"].to_list()[0].startswith(type(error).__name__)
    assert rows.filter(pl.col("solver") == "exact")["certified"].all()
    assert summary["crashing_failed"] == 2
    assert "2 of 6 calls failed; the first, crashing on hard" in capsys.readouterr().err


def test_a_blank_in_tmpdir_costs_cbc_alone(tmp_path):
    """PuLP can't work in such a folder; the exact solver's rows are kept all the same."""
    pytest.importorskip("pulp")
    (tmp_path / "a b").mkdir()
    line = "andes-opt quality 'solvers=[exact,pulp_cbc]' 'families=[hard]' 'sizes=[6]' count=1"
    done = shell(f"{line} hydra.run.dir=out", tmp_path, TMPDIR=str(tmp_path / "a b"))
    assert done.returncode == 0
    rows = pl.read_parquet(tmp_path / "out" / "rows.parquet")
    assert dict(rows.select("solver", "status").iter_rows()) == {
        "exact": "optimal",
        "pulp_cbc": "failed",
    }
    assert "TMPDIR" in done.stderr


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_a_comparison_that_is_stopped_keeps_its_answers(stop, monkeypatch, tmp_path):
    """Rows so far are written, but no summary: no sweep takes the run for complete."""
    verify, calls = compare.verify, iter(range(99))

    def verified(*arguments):
        if next(calls) == 5:  # two calls before timing begins, two for the first instance
            raise stop
        verify(*arguments)

    monkeypatch.setattr(compare, "verify", verified)
    folder = tmp_path / "out"
    words = [*QUALITY, f"hydra.run.dir={folder}"]
    if stop is KeyboardInterrupt:
        assert main(words) == 130
    else:
        with pytest.raises(stop):
            main(words)
    rows = pl.read_parquet(folder / "rows.parquet")
    assert rows.height == 3
    assert not (folder / "summary.json").exists()


def test_an_error_that_can_not_be_written_is_still_told(monkeypatch, tmp_path):
    """A full disk does not hide why a run failed."""

    def full(*_arguments, **_options):
        raise OSError("no space")

    monkeypatch.setattr("experiments.runs.resume.write_json", full)
    monkeypatch.setattr("experiments.commands.simulate.run_simulation", broken_figure)
    with pytest.raises(RuntimeError, match="no LaTeX"):
        main([*SIMULATE, f"hydra.run.dir={tmp_path / 'out'}"])


def test_summaries_are_strict_json(run):
    """The summary of what was kept can be read by anybody."""
    folder, summary = run(*SIMULATE)
    assert json.loads((folder / "summary.json").read_text()) == summary
