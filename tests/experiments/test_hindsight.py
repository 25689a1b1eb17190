"""`andes-opt hindsight` on tiny problems."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from andes_opt.hindsight import bound_at_prices
from experiments.cli import main
from experiments.configuration import build, load

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
