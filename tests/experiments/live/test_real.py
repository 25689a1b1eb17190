"""`andes-opt live` on real engines: the experiment's tiny form, and the server's metrics."""

from __future__ import annotations

import json

import polars as pl
import pytest

from experiments.cli import main
from experiments.live import run

pytestmark = [pytest.mark.live, pytest.mark.slow]


def test_the_experiment_in_small(monkeypatch, tmp_path):
    """
    Three engines, one after the other: the saturated rate, stock vLLM, and ours.

    All replies complete, the adapter planned, vLLM's plug-in shows what it counted, and no lock,
    process or counters of an engine are left.
    """
    seen = []
    original = run.read_counters

    def counters(config, server):
        found = original(config, server)
        seen.append({**found, "stock": config.stock, "process": server.process})
        return found

    monkeypatch.setattr(run, "read_counters", counters)
    command = [
        "study",
        "live_overload",
        "live_study.tiny=true",
        "live_study.docs=docs",
        "live_engine.model.hidden=64",
        "live_engine.model.layers=1",
        "live_engine.flags.num-gpu-blocks-override=33",
        "live_engine.profile.capacity_tokens=1024",
        "workload.requests=24",
        "warm_up=2",
    ]
    assert main(command) == 0
    assert (tmp_path / "docs" / "results" / "live_overload.md").exists()

    runs = sorted((tmp_path / "outputs/live_runs").iterdir())
    assert len(runs) == 3
    summaries = {}
    for folder in runs:
        rows = pl.read_parquet(folder / "rows.parquet")
        assert rows["outcome"].unique().to_list() == ["completed"]
        assert rows["output_tokens"].to_list() == rows["wanted_tokens"].to_list()
        policy = rows["policy"][0]
        summaries[policy] = json.loads((folder / "summary.json").read_text())
    ours = summaries["andes"]
    assert ours["adapter_plans"] > 0
    assert ours["adapter_fallbacks"] == 0
    assert 0 < ours["planning_share"] < ours["adapter_share"] < 1
    assert ours["preemptions"] >= ours["adapter_evicted"] + ours["adapter_engine_preemptions"]

    shown = [item["vllm"] for item in seen if not item["stock"]][-1]
    counted = [item["adapter"] for item in seen if not item["stock"]][-1]
    # The file is at most a second old; nothing was served since.
    assert shown["andes_opt_qoe_count"] == counted["finished"] > 24
    assert shown["andes_opt_qoe_sum"] == pytest.approx(counted["qoe_area_sum"])
    assert shown["andes_opt_plans_total"] == counted["plans"]
    assert shown["andes_opt_evictions_total"] == counted["evicted"]
    assert shown["andes_opt_adapter_seconds_total"] == pytest.approx(counted["adapter_s"])
    assert "andes_opt_fallbacks_total" not in shown  # there were none
    assert all("andes_opt_plans_total" not in item["vllm"] for item in seen if item["stock"])
    assert all(item["process"].poll() is not None for item in seen)
