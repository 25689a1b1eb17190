"""`andes-opt hindsight` on tiny problems."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from andes_opt.hindsight import bound_at_prices
from andes_opt.hindsight.exhaustive import optimum, tiny_problem
from experiments.cli import main
from experiments.configuration.compose import build, load
from experiments.studies import hindsight_measurements
from experiments.studies.points import Point
from experiments.studies.settings import patched, settings_of

TINY = ("workload.requests=30", "engine.latency.base_s=0.3", "engine.capacity_tokens=4000")


def test_gaps_by_load(run):
    """A row per rate and policy; no gap is negative, and the bound falls with the load."""
    folder, summary = run(
        "hindsight", *TINY, "rates=[0.1,30.0]", "policies=[fcfs,round_robin]", "bound.slot_s=4"
    )
    table = pl.read_csv(folder / "table.csv")
    assert table["policy"].to_list() == ["fcfs", "round_robin"] * 2
    assert (table["gap points"] >= 0).all()
    assert summary["bound_at_30.0_qoe_window_mean"] < summary["bound_at_0.1_qoe_window_mean"]
    rows = pl.read_parquet(folder / "rows.parquet")
    assert rows.height == 4 * 30
    by_policy = rows.filter(pl.col("rate") == 30).group_by("policy").agg(pl.mean("qoe_window"))
    assert dict(by_policy.iter_rows())["fcfs"] == pytest.approx(
        summary["fcfs_at_30.0_qoe_window_mean"]
    )


def test_certificate_proves_the_bound(run):
    """The file of prices is all it takes to recompute the bound, without HiGHS."""
    overrides = (*TINY, "workload.rate=30.0")
    folder, summary = run("hindsight", *overrides, "policies=[]", "bound.slot_s=4")
    assert not (folder / "rows.parquet").exists()
    config = load("hindsight", overrides)
    requests = build(config, "workload").generate(config.seed)
    with np.load(folder / "certificate_30.0.npz") as certificate:
        mean, _ = bound_at_prices(
            requests,
            build(config, "engine"),
            certificate["prices"],
            slot_s=float(certificate["slot_s"]),
            shares=certificate["shares"],
            cells=int(certificate["cells"]),
        )
    assert mean == summary["bound_at_30.0_qoe_window_mean"] < 0.99


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("rates=[]", "rates"),
        ("bound.slot_s=0", "slot_s"),
        ("policies=[nonsense]", "nonsense"),
    ],
)
def test_user_errors(override, complaint, capsys):
    """Options out of range end in one sentence and exit status 2."""
    assert main(["hindsight", *TINY, override]) == 2
    assert complaint in capsys.readouterr().err


def test_the_study_puts_the_bound_beside_the_policies(run):
    """Every load has a row for each policy and the bound, which none exceeds; gaps are paired."""
    folder, summary = run(
        "study hindsight",
        "study.tiny=true",
        "hydra/launcher=basic",
        "study.variants=[opt_66b_4xa100]",
        "study.loads=[1.0]",
    )
    rows = pl.read_parquet(folder / "rows.parquet").filter(pl.col("metric") == "qoe_window_mean")
    assert rows["arm"].unique(maintain_order=True).to_list() == ["fcfs", "andes", "bound"]
    by_arm = {arm: rows.filter(pl.col("arm") == arm)["number"].to_numpy() for arm in rows["arm"]}
    assert (by_arm["fcfs"] <= by_arm["bound"]).all()
    assert (by_arm["andes"] <= by_arm["bound"]).all()
    table = pl.read_csv(folder / "table.csv", infer_schema_length=None)
    assert table.filter(pl.col("metric") == "bound_cpu_s")["arm"].unique().to_list() == ["bound"]

    text = (folder / "hindsight.md").read_text()
    gap = 100 * np.mean(by_arm["fcfs"] - by_arm["bound"])
    section = text[text.index("## Gap to the bound") :]
    assert f"| fcfs  | {gap:.2f} ±" in section
    assert "`andes-opt study hindsight" in text
    assert {path.name for path in folder.glob("*.png")} == {
        "hindsight_means.png",
        "hindsight_less_bound.png",
    }
    assert summary["bound_on_opt_66b_4xa100_at_1.0 x_qoe_window_mean"] <= 1


def test_the_study_shares_simulations_with_those_of_thrift():
    """Its arms are configured as in beat_the_paper, so that their cells are the same files."""
    runs = {}
    for command, experiment in (("hindsight", "hindsight"), ("simulate", "beat_the_paper")):
        config = load(command, [f"experiment={experiment}"])
        assert config.study.variants[0] == "opt_66b_4xa100"
        for arm in ("fcfs", "andes", "thrift"):
            settings = settings_of(arm, config.study.settings, ["policy"])
            point = Point("opt_66b_4xa100", arm, patched(config, settings, {}), {})
            runs.setdefault(arm, []).append(point.run)
    for arm, (ours, theirs) in runs.items():
        assert ours == theirs, arm


def test_every_tiny_problem_can_be_served():
    """Each request of each instance fits the KV cache by itself (a bug once: seeds 14 and 36)."""
    for seed in range(100):
        requests, engine = tiny_problem(seed, "swap")
        longest = (requests.prompt_tokens + requests.output_tokens).max()
        assert 16 <= engine.capacity_tokens >= longest


def test_cells_state_what_the_bound_takes_and_how_tight_it_is():
    """The bound of a cell is the library's; tiny instances are held against their optimum."""
    config = load("hindsight", (*TINY, "workload.rate=30.0"))
    point = Point("v", "a", config, {})
    world = {name: point.run[name] for name in ("workload", "engine")}
    world["workload"]["rate"] = 30.0
    numbers = hindsight_measurements.bounded(world, seed=0, slot_s=4.0, cells=50)
    found = {metric: value for metric, _, value in numbers}
    assert set(found) <= {"qoe_window_mean", *hindsight_measurements.METRICS}
    assert found["qoe_window_mean"] < 0.99
    assert 0 < found["priced_share"] <= 1
    assert found["bound_cpu_s"] > 0

    *instances, (_, ((_, _, most),)) = hindsight_measurements.exhausted(
        "swap", instances=3, cells=50
    )
    gaps = []
    for seed, numbers in instances:
        found = {metric: value for metric, _, value in numbers}
        best = optimum(*tiny_problem(seed, "swap")).mean_window
        assert found["exhaustive_qoe_window"] == best
        assert found["exhaustive_bound_qoe_window"] >= best
        gaps.append(found["exhaustive_gap_points"])
    assert most == max(gaps) >= min(gaps) >= 0
