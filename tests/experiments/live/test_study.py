"""Live studies with a program in vLLM's place: which runs, in which order, what comes out."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from andes_opt.engine import EngineProfile
from andes_opt.latency import LatencyModel
from experiments.cli import main
from experiments.configuration.compose import groups, load
from experiments.configuration.errors import UsageError
from experiments.live import document, figures, run_store, study
from experiments.live.fidelity import CalibrationSweep, comparison, hit_share
from experiments.live.saturation import load_unit, steady_rate
from experiments.live.study import planned, shrunk, unresolved
from experiments.runs.code_closure import closure

pytestmark = pytest.mark.usefixtures("own_lock")

PROGRAM = Path(__file__).parent / "scripted_engine.py"
SCRIPTED = (
    f"live_engine.server=[{sys.executable},{PROGRAM}]",
    "workload.requests=4",
    "warm_up=0",
    "lengths=fixed",
    "lengths.output_tokens=6",
)


def results(differences):
    """Runs of two arms at load 1.1, a pair for each difference of QoE."""
    lines = []
    for seed, difference in enumerate(differences):
        for arm, qoe in (("stock", 0.9), ("andes", 0.9 + difference)):
            lines.append(
                {
                    "part": "p",
                    "arm": arm,
                    "load": 1.1,
                    "seed": seed,
                    "qoe_area_mean": qoe,
                    "qoe_window_mean": qoe,
                    "tokens_per_s": 100.0 if arm == "stock" else 98.0,
                    "tokens_per_s_arriving": 100.0 if arm == "stock" else 101.0,
                }
            )
    return pl.DataFrame(lines)


def test_neighbours_in_time_share_seed_and_load_in_alternating_order():
    """Arms of a seed and a load follow each other, forwards and backwards in turn."""
    options = {"engine": "opt_tiny", "arms": ["a", "b"], "loads": [0.8, 1.6]}
    arms = {"a": ["stock=true"], "b": ["policy=andes", "solver=greedy"]}
    runs = list(planned("p", options, arms, 300.0, [0, 1]))
    assert [(r.seed, r.load, r.arm) for r in runs] == [
        (0, 0.8, "a"),
        (0, 0.8, "b"),
        (0, 1.6, "b"),
        (0, 1.6, "a"),
        (1, 0.8, "b"),
        (1, 0.8, "a"),
        (1, 1.6, "a"),
        (1, 1.6, "b"),
    ]
    assert "load=1.6" in runs[2].overrides
    assert "live_engine.saturated_tokens_per_s=300.0" in runs[2].overrides
    with pytest.raises(UsageError, match="did you mean"):
        list(planned("p", {**options, "arms": ["aa"]}, {"aaa": []}, 300.0, [0]))


def test_every_run_of_the_experiment_is_a_run_of_the_command():
    """Each arm's overrides compose, build, and name the scheduler and solver that the arm says."""
    from experiments.configuration.compose import build
    from experiments.live.run import settings_of

    study = load("live", ["experiment=live_overload"]).live_study
    seen = set()
    for part, options in study.parts.items():
        for item in planned(part, options, study.arms, 300.0, [0]):
            if item.arm in seen:
                continue
            seen.add(item.arm)
            config = load("live", list(item.overrides))
            assert config.live_engine.name == options.engine
            if item.arm == "stock":
                assert config.stock
                continue
            name = item.arm.partition("_")[2] or "greedy"
            if name == "background":
                assert config.live.background is not None
                name = "greedy"
            if name == "dp_torch":
                continue  # not built without PyTorch
            settings = settings_of(config)
            policy = (settings["background"] or settings)["policy"]
            assert policy["_target_"] == config.policy._target_
            assert policy["solver"] == load("live", [f"solver={name}"]).solver
            build(config, "live_engine")
    assert seen == set(study.arms)


def test_every_exact_solver_serves_live():
    """The experiment has an arm for each exact solver that takes instances so large."""
    from experiments.configuration.compose import build

    arms = load("live", ["experiment=live_overload"]).live_study.parts.solvers.arms
    for name in groups()["solver"]:
        if name in ("brute_force", "dp_torch"):
            continue  # 20 requests at most; needs PyTorch
        solver = build(load("live", [f"solver={name}"]), "solver")
        assert (f"andes_{name}" in arms) == solver.exact
    assert "andes_dp_torch" in arms


def test_seeds_are_added_until_a_difference_is_resolved():
    """A pair is open while its interval is wide, and is not looked at where nobody asks."""
    assert unresolved(results([0.0, 0.1]), "stock", [1.1], 0.01) == {("andes", 1.1)}
    assert unresolved(results([0.0, 0.1]), "stock", [0.8], 0.01) == set()
    assert unresolved(results([0.01, 0.011, 0.012]), "stock", [1.1], 0.01) == set()


def test_the_steady_rate_leaves_ramps_out():
    """Slow beginnings and ends of a run do not lower its token rate."""
    steady = 10 + np.arange(1000) / 50
    times_s = np.concatenate([np.linspace(0, 10, 50), steady, np.linspace(31, 90, 50)])
    assert steady_rate(np.random.default_rng(0).permutation(times_s)) == pytest.approx(50, rel=0.01)


def test_differences_are_paired_and_have_intervals():
    """Ratio, difference with interval, and loss of tokens/s, as computed by hand."""
    line = document.difference_table(results([0.09, 0.09]), "stock", 0.01).row(0, named=True)
    assert line["ratio"] == "1.10"
    assert line["difference"] == "0.090 ± 0.000"
    assert line["over the makespan %"] == "2.0 ± 0.0"
    assert line["tokens/s lost while requests arrive %"] == "-1.0 ± 0.0"


@pytest.mark.parametrize(
    ("differences", "narrow", "differs"),
    [
        ([0.09, 0.09], "yes", "yes"),
        ([0.4, 0.45, 0.5], "no", "yes"),
        ([0.0, 0.0], "yes", "no"),
        ([0.0, 0.1], "no", "no"),
        ([-0.4, -0.45, -0.5], "no", "yes"),
    ],
)
def test_a_wide_interval_may_leave_0_out(differences, narrow, differs):
    """Whether an interval is narrow enough and whether it leaves 0 out are told apart."""
    line = document.difference_table(results(differences), "stock", 0.01).row(0, named=True)
    assert (line["± ≤ 0.01"], line["differs from 0"]) == (narrow, differs)


def test_one_seed_has_no_interval():
    """A single pair has a difference, but neither a half-width nor a word about one."""
    table = document.difference_table(results([0.09]), "stock", 0.01)
    assert table.row(0, named=True)["difference"] == "0.090"
    assert not {"± ≤ 0.01", "differs from 0"} & set(table.columns)
    assert "±" not in str(table.to_dicts())


def test_a_pair_beside_several_has_no_word():
    """Where only some arms have an interval, the others' cells are empty."""
    several = results([0.4, 0.45, 0.5])
    single = several.filter(pl.col("arm") == "andes", pl.col("seed") == 0)
    rows = pl.concat([several, single.with_columns(pl.lit("thrift").alias("arm"))])
    lines = {
        line["arm"]: line
        for line in document.difference_table(rows, "stock", 0.01).iter_rows(named=True)
    }
    assert lines["andes"]["differs from 0"] == "yes"
    assert lines["thrift"]["differs from 0"] is lines["thrift"]["± ≤ 0.01"] is None


def test_qoe_has_intervals_where_there_are_seeds():
    """Half-widths of the three definitions stand beside their means, as Student's t has them."""
    rows = results([0.0, 0.02, 0.04]).with_columns(
        pl.col("qoe_area_mean").alias("qoe_delay_mean"),
        *(
            pl.lit(1.0).alias(name)
            for name in (
                *("qoe_window_share_0", "ttft_p90_s", "ttft_p99_s", "completion_delay_max_s"),
                *("preemptions_per_request", "rejected", "unfinished"),
            )
        ),
    )
    lines = {line["arm"]: line for line in document.qoe_table(rows).iter_rows(named=True)}
    # 4.303 (two degrees of freedom) * 0.02 / sqrt(3)
    for name in ("area", "delay", "window"):
        assert lines["andes"][name] == "0.920 ± 0.050"
        assert lines["stock"][name] == "0.900 ± 0.000"
    assert lines["andes"]["tokens/s"] == 98.0
    table = document.qoe_table(rows.filter(pl.col("seed") == 0))
    assert table.filter(pl.col("arm") == "andes")["area"].to_list() == [0.9]


def test_a_part_has_its_own_baselines():
    """Solvers are compared with stock and with greedy; a part that names none with the study's."""
    study = load("live", ["experiment=live_overload"]).live_study
    assert document.baselines(study, "overload") == ["stock", "andes"]
    assert document.baselines(study, "background") == ["andes", "andes_background"]
    del study.parts.overload.against
    assert document.baselines(study, "overload") == ["stock"]
    for part, options in study.parts.items():
        assert set(document.baselines(study, part)) <= set(options.arms)
        assert options.title


def test_the_costs_of_planning_are_told_apart():
    """What the limit bounds has a column, and what the adapter takes in all has another."""
    rows = pl.DataFrame(
        {
            **{metric: [0.0] for metric, _, _ in document.COST.values()},
            "adapter_engine_s": [100.0],
            "adapter_iterations": [2000],
            "adapter_s": [0.9],
            "planning_share": [0.004],
            "adapter_share": [0.009],
        }
        | {"part": ["p"], "arm": ["andes"], "load": [1.6], "seed": [0]}
    )
    line = document.cost_table(rows).row(0, named=True)
    assert line["planning share %"] == pytest.approx(0.4)
    assert line["adapter share %"] == pytest.approx(0.9)
    assert line["engine's iteration ms"] == pytest.approx(50.0)
    assert line["adapter ms/iteration"] == pytest.approx(0.45)


def test_a_rescue_is_a_fault():
    """A document says in which runs plans moved nothing, or that there were none."""
    rows = pl.DataFrame(
        {
            "arm": ["stock", "andes", "thrift"],
            "load": [1.6] * 3,
            "seed": [0, 0, 1],
            "adapter_rescues": [None, 0.0, 3.0],
        }
    )
    assert document.faults(rows).startswith("**Faults.**")
    assert "thrift at load 1.6, seed 1: 3 rescues" in document.faults(rows)
    assert "andes" not in document.faults(rows)
    assert document.faults(rows.head(2)).startswith("No faults")


def test_a_run_s_line_tells_both_shares():
    """The words are those of the tables: planning alone, and all that the adapter does."""
    from experiments.live.run import adapter_sentence

    values = {"adapter_plans": 7.0, "adapter_late_plans": 0.0, "adapter_fallbacks": 0.0}
    values |= {"preemptions": 3.0, "planning_share": 0.004, "adapter_share": 0.009}
    values |= {"adapter_iteration_mean_s": 0.00036, "adapter_rescues": 0.0}
    assert adapter_sentence(values) == (
        "7 plans, 3 preemptions, planning share 0.40 %, adapter share 0.90 % (0.36 ms per "
        "iteration), 0 fallbacks."
    )
    told = adapter_sentence({**values, "adapter_rescues": 2.0})
    assert "0 fallbacks; FAULT: 2 rescues" in told
    assert adapter_sentence({}) == ""


@pytest.mark.parametrize(("arms", "loads"), [(2, (1.6, 1.9)), (9, (1.6, 1.9)), (2, (1.6,))])
def test_few_arms_are_lines_and_many_are_rows(tmp_path, arms, loads, monkeypatch):
    """Every arm is drawn, at each load, whichever form the figure takes; one seed is enough."""
    saved = []
    monkeypatch.setattr(figures, "save", lambda figure, _: saved.append(figure))
    rows = pl.DataFrame(
        [
            {"arm": f"a{k}", "load": load, "seed": 0, "qoe_area_mean": 0.1 * k}
            | {"qoe_window_mean": 0.05 * k}
            for k in range(arms)
            for load in loads
        ]
    )
    figures.draw(rows, tmp_path / "x.png")
    (figure,) = saved
    if arms == 2 and len(loads) > 1:
        drawn = {container.get_label() for container in figure.axes[0].containers}
        assert drawn == {"a0", "a1"}
    else:
        assert [axis.get_title("left") for axis in figure.axes] == [
            f"load {load}" for load in loads
        ]
        names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        assert names == [f"a{k}" for k in range(arms)]
        assert all(len(axis.containers) == 2 * arms for axis in figure.axes)
    bars = [container for axis in figure.axes for container in axis.containers]
    assert not any(bar.has_xerr or bar.has_yerr for bar in bars), "one seed has no interval"


def test_a_study_resumes_and_survives_a_failed_run(monkeypatch, tmp_path, capsys):
    """Runs that failed are named, the document has the others, and the next call makes the rest."""
    command = ["study", "live_overload", "live_study.tiny=true", "live_study.docs=docs", *SCRIPTED]
    original = run_store.serve
    calls = []

    def flaky(config, *arguments):
        calls.append(config.stock)
        if len(calls) == 3:
            raise run_store.EngineFailed("the engine ended")
        return original(config, *arguments)

    monkeypatch.setattr(run_store, "serve", flaky)
    assert main(command) == 1
    assert "1 failed" in capsys.readouterr().err
    document = tmp_path / "docs" / "results" / "live_overload.md"
    assert document.read_text().count("| stock") == 1
    assert "| andes" not in document.read_text()
    assert "**1 runs are lacking**: 0 for lack of time, 1 failed" in document.read_text()
    assert main(command) == 0
    assert len(calls) == 4
    assert "1 runs made, 2 found complete" in capsys.readouterr().out
    text = document.read_text()
    assert "| andes" in text
    assert "Tiny form" in text
    assert "One seed, so that no number has an interval; the same requests" in text
    assert "One pair of runs has no interval" in text
    assert "±" not in text
    assert "differs from 0" not in text
    assert "live_study.tiny=true 'live_engine.server=[" in text
    assert re.search(r"4 requests a run: prompts of \d+ and replies of 6 tokens", text)
    assert "within 1 s and 4.8 tokens/s" in text
    assert "requests come at once, by a single saturation run." in text.replace("\n", " ")
    assert "lacking" not in text
    assert (tmp_path / "docs" / "figures" / "live_overload.png").stat().st_size > 0
    index = (tmp_path / "docs" / "results" / "live.md").read_text()
    assert "(live_overload.md): stock vLLM against Andes and thrift; engine opt_tiny" in index
    assert "live_solvers.md" not in index
    assert (tmp_path / "outputs/live_overload/live_overload.md").exists()
    summary = json.loads((tmp_path / "outputs/live_overload/summary.json").read_text())
    assert summary["runs"] == 2
    assert "overload_andes_at_1.9_qoe_area_mean" in summary

    assert main([*command, "live_study.part=overlod"]) == 2
    assert "did you mean overload?" in capsys.readouterr().err


def test_another_seed_is_for_all_arms_of_a_load(monkeypatch):
    """
    Where one arm's difference is open, all arms get the seed, and loads that are closed none.

    A regression test: means of arms at one load were over different requests.
    """
    from omegaconf import OmegaConf

    noise = iter([0.0, 0.1, -0.1, 0.05, 0.2, 0.0, 0.1])
    made = []

    def saturated_tokens_per_s(store, engine, runs, workload):
        assert (engine, runs, workload) == ("e", 1, ["workload.requests=7"])
        return [300.0]

    class FakeStore:
        given = ("tokens=true",)
        left, failed = 0, ()

        def result(self, overrides, name, given):
            # What the command line says counts before what the part says.
            assert given == ["workload.requests=7", "tokens=true"]
            words = dict(word.split("=") for word in overrides)
            arm, load = words["policy"], float(words["load"])
            made.append((arm, load, int(words["seed"])))
            qoe = 0.9 + (next(noise) if (arm, load) == ("loud", 1.1) else 0.0)
            return run_store.FinishedRun("folder", {"qoe_area_mean": qoe})

    monkeypatch.setattr(study, "_provenance", lambda _: {})
    monkeypatch.setattr(study, "saturated_tokens_per_s", saturated_tokens_per_s)
    options = {
        "engine": "e",
        "workload": ["workload.requests=7"],
        "arms": ["stock", "loud", "still"],
        "loads": [0.8, 1.1],
        "seeds": 2,
        "most_seeds": 4,
        "resolve_loads": [0.8, 1.1],
    }
    node = OmegaConf.create(
        {"baseline": "stock", "half_width": 0.01, "saturation_runs": 1, "parts": {"p": options}}
        | {"arms": {arm: [f"policy={arm}"] for arm in options["arms"]}}
    )
    part = study.make_part(FakeStore(), node, "p", node.parts.p)
    assert part.saturated_tokens_per_s == [300.0]
    assert len(part.lines) == len(made)
    added = {item for item in made if item[2] >= 2}
    assert added == {(arm, 1.1, seed) for arm in options["arms"] for seed in (2, 3)}


def test_a_part_on_request_is_made_only_when_it_is_named(monkeypatch):
    """What needs a GPU is left out of the whole study; named, it has its own workload."""
    made = []

    def make_part(store, node, part, *_):
        made.append(part)
        return study.MadePart([], [], [])

    monkeypatch.setattr(study, "make_part", make_part)
    command = ["study", "live_overload", *SCRIPTED]
    assert main(command) == 1
    assert "overload" in made and "gpu" not in made
    made.clear()
    assert main([*command, "live_study.part=gpu"]) == 1
    assert made == ["gpu"]
    options = load("live", ["experiment=live_overload"]).live_study.parts.gpu
    config = load("live", [f"live_engine={options.engine}", *options.workload])
    assert config.workload.requests == 1000
    assert config.lengths.table == "sharegpt"


def test_a_shape_becomes_a_folder_that_vllm_reads(tmp_path):
    """Configuration and a tokenizer of its vocabulary; another shape of the name replaces it."""
    from experiments.live.models import Shape

    config = {"architectures": ["Qwen2ForCausalLM"], "vocab_size": 50}
    folder = Path(Shape("small", config).folder(tmp_path))
    assert json.loads((folder / "config.json").read_text()) == config
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(50))
    (folder / "mark").touch()
    assert Shape("small", config).folder(tmp_path) == str(folder)
    assert (folder / "mark").exists()
    Shape("small", {**config, "hidden_size": 8}).folder(tmp_path)
    assert not (folder / "mark").exists()
    with pytest.raises(ValueError, match="need 'vocab_size'"):
        Shape("small", {"architectures": []})


def test_the_middle_saturation_run_makes_the_load():
    """The unit of load is one that was measured."""
    assert load_unit([200.0, 300.0, 310.0]) == 300.0
    assert load_unit([200.0, 300.0]) == 200.0
    assert load_unit([200.0]) == 200.0


def test_a_study_ends_when_its_code_changes(monkeypatch, tmp_path, capsys):
    """What this process imported at its start is not what a run of the new code would be."""
    states = iter("aab")
    monkeypatch.setattr(run_store, "_harness", lambda: next(states))
    command = ["study", "live_overload", "live_study.tiny=true", "live_study.docs=docs", *SCRIPTED]
    assert main(command) == 2
    assert "the code has changed since the study began" in capsys.readouterr().err
    assert len(list((tmp_path / "outputs/live_runs").rglob("summary.json"))) == 1


def test_a_model_is_written_again_by_other_code(monkeypatch, tmp_path):
    """A folder counts as complete for the code and versions that wrote it."""
    from experiments.live import models

    folder = tmp_path / "model"
    folder.mkdir()
    assert not models.is_complete(folder)
    models.mark_complete(folder)
    assert models.is_complete(folder)
    monkeypatch.setattr(models, "state_of", lambda _: "of other code")
    assert not models.is_complete(folder)


def test_out_of_time_what_is_finished_counts(tmp_path, capsys):
    """Without time no run starts; the document has those that are there and says what it lacks."""
    command = ["study", "live_overload", "live_study.tiny=true", "live_study.docs=docs", *SCRIPTED]
    assert main([*command, "live_study.minutes=0"]) == 1
    assert "no run was made; minutes = 0 left no time" in capsys.readouterr().err
    assert main(command) == 0
    (made,) = [
        path.parent
        for path in (tmp_path / "outputs/live_runs").rglob("rows.parquet")
        if pl.read_parquet(path)["policy"][0] == "andes"
    ]
    shutil.rmtree(made)
    assert main([*command, "live_study.minutes=0"]) == 0
    assert "Out of time for 1 runs" in capsys.readouterr().out
    text = (tmp_path / "docs" / "results" / "live_overload.md").read_text()
    assert "**1 runs are lacking**: 1 for lack of time, 0 failed" in text
    assert "| stock" in text
    assert "| andes" not in text


def test_no_seeds_are_added_to_nothing(monkeypatch, capsys):
    """A study that has its token rate but no time for a single run says so, and adds no seeds."""
    monkeypatch.setattr(study, "saturated_tokens_per_s", lambda *_: [300.0])
    command = ["study", "live_overload", *SCRIPTED, "live_study.minutes=0"]
    assert main([*command, "live_study.part=overload"]) == 1
    assert "no run was made; minutes = 0 left no time" in capsys.readouterr().err


def test_a_run_is_kept_while_the_code_that_it_can_run_stays(monkeypatch):
    """Another policy's file changes nothing, its own or the adapter's does; stock has neither."""
    seen = []

    def state_of(modules):
        seen.append(closure(modules))
        return "0" * 64

    monkeypatch.setattr(run_store, "state_of", state_of)
    stock = run_store.identification_of(load("live", ["stock=true"]))
    thrift = run_store.identification_of(load("live", ["policy=thrift", "solver=exact"]))
    assert stock["configuration"] != thrift["configuration"]
    for modules in seen:
        assert "experiments.client.endpoint" in modules, "it makes prompts and bodies"
        assert {"experiments.live.run", "experiments.live.engine", "andes_opt.workload"} <= modules
        assert (
            not {
                "experiments.live.run_store",
                "experiments.live.study",
                "experiments.live.document",
            }
            & modules
        )
    assert not {"engine_adapter.controller", "engine_adapter.scheduler"} & seen[0]
    assert "andes_opt.policy.thrift" not in seen[0]
    assert {"engine_adapter.controller", "andes_opt.policy.thrift", "solvers.exact"} <= seen[1]
    assert not {"andes_opt.policy.round_robin", "solvers.pulp_cbc"} & seen[1]


def test_tiny_keeps_the_form():
    """The tiny form has one part with two arms, one load, one seed."""
    study = shrunk(load("live", ["experiment=live_overload", "live_study.tiny=true"])).live_study
    assert list(study.parts) == ["overload"]
    assert list(study.parts.overload.arms) == ["stock", "andes"]
    assert (study.parts.overload.seeds, study.parts.overload.loads) == (1, [1.9])
    assert study.saturation_runs == 1


def test_the_sweep_varies_batch_and_context_and_never_fills_the_cache(tmp_path):
    """Every batch with every prompt length that fits, mixed around it, as a trace that is read."""
    engine = EngineProfile("x", LatencyModel(0.01, 0.001, 0.0, 0.0005), capacity_tokens=4000)
    sweep = CalibrationSweep([1, 4, 16], [16, 256], 24, 0.5)
    requests = sweep.requests(engine)
    bursts = {}
    for arrival_s, *lengths in requests:
        bursts.setdefault(arrival_s, []).append(lengths)
    sizes = [(len(burst), max(prompt for prompt, _ in burst) > 24) for burst in bursts.values()]
    assert sorted(sizes) == [(1, False), (1, True), (4, False), (4, True), (16, False)]
    for burst in bursts.values():
        mean = 256 if burst[0][0] > 24 else 16
        assert all(0.5 * mean <= prompt <= 1.5 * mean for prompt, _ in burst)
        assert all(12 <= reply <= 36 for _, reply in burst)
        assert len(burst) == 1 or len({reply for _, reply in burst}) > 1
    assert sweep.requests(engine) == requests
    # Prefill and mean decode of the first burst, by hand.
    (first, second), lengths = list(bursts)[:2], next(iter(bursts.values()))
    prefill_s = 0.0005 * sum(prompt for prompt, _ in lengths)
    decode_s = (0.01 + 0.001 * len(lengths)) * np.mean([reply for _, reply in lengths])
    assert second - first == pytest.approx(prefill_s + decode_s)

    sweep.write(tmp_path / "sweep.csv", engine)
    from andes_opt.trace import Trace

    read = Trace(path=str(tmp_path / "sweep.csv"), requests=None).generate(0)
    assert read.num_requests == len(requests)
    assert read.output_tokens.tolist() == [reply for _, _, reply in requests]


def test_live_and_simulated_side_by_side():
    """Differences are simulated less live, in the units of their columns; shares are pooled."""
    line = {
        "arm": "andes",
        "load": 1.6,
        "qoe_area_mean": 0.8,
        "qoe_window_mean": 0.7,
        "ttft_p90_s": 2.0,
        "tokens_per_s": 100.0,
        "preemptions_per_request": 1.0,
    }
    twin = {f"sim_{name}": value for name, value in line.items() if name not in ("arm", "load")}
    twin |= {"sim_qoe_area_mean": 0.81, "sim_ttft_p90_s": 2.2, "sim_tokens_per_s": 99.0}
    row = comparison(pl.DataFrame([{**line, **twin}])).row(0, named=True)
    assert row["area difference"] == pytest.approx(0.01)
    assert row["TTFT p90 difference %"] == pytest.approx(10)
    assert row["tokens/s difference %"] == pytest.approx(-1)

    counted = pl.DataFrame(
        {
            "arm": ["a", "a", "b"],
            "adapter_resumed_tokens": [10.0, 30.0, 0.0],
            "adapter_resumed_cached_tokens": [10.0, 0.0, 0.0],
        }
    )
    assert hit_share(counted, "a") == 0.25
    assert hit_share(counted, "b") == 0.0
