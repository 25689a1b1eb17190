"""`andes-opt calibrate`: from a CSV of iterations to a profile that simulates."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from omegaconf import OmegaConf

from andes_opt.latency import LatencyModel
from experiments.cli import main
from experiments.configuration.compose import build

MODEL = LatencyModel(0.05, 2e-3, 4e-7, 1.5e-4)


@pytest.fixture
def measured(tmp_path):
    """A CSV of sixty iterations of a model, with 2 % noise."""
    rng = np.random.default_rng(1)
    batch = rng.integers(1, 100, 60)
    context = batch * rng.integers(50, 900, 60)
    prefill = np.where(rng.random(60) < 0.5, 0, rng.integers(1, 2048, 60))
    seconds = [MODEL.iteration_s(*row) for row in zip(batch, context, prefill, strict=True)]
    path = tmp_path / "measured.csv"
    pl.DataFrame(
        {
            "batch": batch,
            "context_tokens": context,
            "prefill_tokens": prefill,
            "seconds": seconds * (1 + 0.02 * rng.standard_normal(60)),
        }
    ).write_csv(path)
    return path


def test_the_profile_written_is_one_that_simulates(run, measured, capsys):
    """The YAML file instantiates, keeps what is not latency, and serves as engine=NAME."""
    folder, summary = run(
        "calibrate", f"iterations={measured}", "name=mine", "engine.capacity_tokens=41000"
    )
    text = capsys.readouterr().out
    assert "R2 0.9" in text
    assert "engine=mine" in text
    assert {path.name for path in folder.iterdir()} == {
        ".hydra",
        "engine",
        "residuals.csv",
        "residuals.png",
        "summary.json",
        "env.json",
    }
    path = folder / "engine" / "mine.yaml"
    assert path.read_text().startswith("# mine: latency fitted to 60 measured iterations\n")
    engine = build(OmegaConf.load(path))
    assert engine.name == "mine"
    assert engine.capacity_tokens == 41000
    assert engine.source == "fit to measured.csv"
    assert engine.latency.base_s == pytest.approx(MODEL.base_s, rel=0.1)
    assert engine.latency.base_s == pytest.approx(summary["base_s"], rel=1e-5)
    assert engine.latency.per_prefill_token_s == pytest.approx(1.5e-4, rel=0.1)

    residuals = pl.read_csv(folder / "residuals.csv")
    assert residuals.height == summary["iterations"] == 60
    np.testing.assert_allclose(
        residuals["fitted_s"] + residuals["residual_s"], residuals["seconds"]
    )
    assert 0.95 < summary["r2"] < 1
    simulation = ["hydra.run.dir=out2", "engine=mine", "policy=fcfs", "workload.requests=5"]
    assert main(["simulate", "--config-dir", str(folder), *simulation]) == 0


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ([], ["iterations=FILE", "prefill_tokens"]),
        (["iterations=none.csv"], ["none.csv"]),
        (["iterations=measured.csv", "weighting=log"], ["'log' not understood", "relative"]),
        (["iterations=measured.csv", "name=a/b"], ["name=a/b not understood"]),
    ],
)
def test_user_errors(arguments, fragments, measured, capsys):
    """What the user can mend is told in one line, and no folder is left behind."""
    assert main(["calibrate", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(fragment in error for fragment in fragments)
    assert not (measured.parent / "outputs").exists()


def test_undetermined_coefficients_are_named(run, measured, capsys):
    """Without prefill measurements the output and the YAML file say what is missing."""
    decode = pl.read_csv(measured).filter(pl.col("prefill_tokens") == 0)
    decode.write_csv(measured)
    folder, _ = run("calibrate", f"iterations={measured}")
    assert "per_prefill_token_s is 0" in capsys.readouterr().out
    assert "per_prefill_token_s is 0" in (folder / "engine" / "calibrated.yaml").read_text()


def test_a_file_that_is_not_there(capsys):
    """Iterations that nobody wrote are said in one sentence, with what writes them."""
    assert main(["calibrate", "iterations=nowhere.csv"]) == 2
    said = capsys.readouterr().err
    assert "iterations=nowhere.csv: no such file; andes-opt live writes one" in said
