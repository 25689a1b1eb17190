"""``andes-opt calibrate``: an engine profile from measured iterations."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, cast

import matplotlib.pyplot as plt
import polars as pl
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from andes_opt.calibration import COEFFICIENTS, COLUMNS, fit_latency, read_iterations
from experiments.analysis import figures
from experiments.analysis.markdown import markdown
from experiments.configuration.compose import build
from experiments.configuration.errors import UsageError
from experiments.runs.files import printable, write_atomically, write_text
from experiments.runs.records import recorded_run

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from andes_opt.calibration import Fit, Iterations

_MEANING = {
    "base_s": "s per iteration",
    "per_request_s": "s per decoding request",
    "per_context_token_s": "s per KV token attended to",
    "per_prefill_token_s": "s per prompt token",
}


def run(config: DictConfig) -> dict[str, float]:
    """Fit, write the profile and how good it is, and return the summary."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    with recorded_run(folder) as record:
        _check_name(config.name)
        if config.iterations is None:
            raise UsageError(f"iterations=FILE is needed: a CSV with {', '.join(COLUMNS)}.")
        path = Path(config.iterations)
        if not path.is_file():
            raise UsageError(
                f"iterations={config.iterations}: no such file; andes-opt live writes one with "
                "iterations=true."
            )
        iterations = read_iterations(path)
        fit = fit_latency(iterations, weighting=config.weighting)
        profile = folder / "engine" / f"{config.name}.yaml"
        profile.parent.mkdir(exist_ok=True)
        text = profile_text(config, fit, config.source or f"fit to {path.name}")
        write_text(profile, text)
        build(cast("DictConfig", OmegaConf.load(profile)))  # what is handed out can be made
        residuals = residual_table(iterations, fit)
        write_atomically(folder / "residuals.csv", residuals.write_csv)
        draw(residuals, fit, folder / "residuals.png")
        summary = fit.summary()
        record.finish(None, summary)
    print(markdown(coefficient_table(fit), {}))
    print(
        f"{iterations.count} iterations: R2 {summary['r2']:.4f}; residuals "
        f"{1000 * summary['residual_rms_s']:.3g} ms root mean square, "
        f"{1000 * summary['residual_max_s']:.3g} ms at most; relative error "
        f"{100 * summary['relative_error_mean']:.2g} % on average, "
        f"{100 * summary['relative_error_p95']:.2g} % at the 95th percentile."
    )
    for name in fit.undetermined:
        print(f"{name} is 0 because nothing was measured that it multiplies.")
    place = shlex.quote(str(folder))
    print(f"Try it: andes-opt simulate --config-dir {place} engine={config.name}")
    print(printable(folder))
    return summary


def profile_text(config: DictConfig, fit: Fit, source: str) -> str:
    """
    Return the YAML text of the fitted profile.

    Parameters
    ----------
    config
        With ``engine``, from which all but name, latency and source are taken, and ``name``.
    fit
        The fit.
    source
        Where the measurements come from.
    """
    engine = config.engine.copy()
    engine.name = config.name
    engine.source = source
    for name in COEFFICIENTS:
        # Six digits: more than any measurement has, and 4.00000000001e-07 reads badly.
        engine.latency[name] = float(f"{getattr(fit.latency, name):.6g}")
    numbers = fit.summary()
    lines = [
        f"# {config.name}: latency fitted to {int(numbers['iterations'])} measured iterations",
        f"# {config.weighting.capitalize()} least squares, R2 {numbers['r2']:.4f}, mean relative "
        f"error {100 * numbers['relative_error_mean']:.2g} %.",
        "# All but the latency comes from the profile that calibrate was given as engine=.",
    ]
    lines += [f"# {name} is 0 for want of measurements." for name in fit.undetermined]
    return "\n".join(lines) + "\n" + OmegaConf.to_yaml(engine)


def coefficient_table(fit: Fit) -> pl.DataFrame:
    """Return the coefficients with their standard errors."""
    return pl.DataFrame(
        {
            "coefficient": COEFFICIENTS,
            "value": [f"{getattr(fit.latency, name):.4g}" for name in COEFFICIENTS],
            "standard error": [f"{fit.standard_error[name]:.1g}" for name in COEFFICIENTS],
            "unit": [_MEANING[name] for name in COEFFICIENTS],
        }
    )


def residual_table(iterations: Iterations, fit: Fit) -> pl.DataFrame:
    """Return a row per iteration: measured and fitted seconds, and their difference."""
    measured = {name: getattr(iterations, name) for name in COLUMNS}
    return pl.DataFrame({**measured, "fitted_s": fit.fitted_s, "residual_s": fit.residual_s})


def draw(residuals: pl.DataFrame, fit: Fit, path: Path) -> None:
    """
    Draw measured against fitted times, and residuals against the batch.

    Parameters
    ----------
    residuals
        Of :func:`residual_table`.
    fit
        The fit.
    path
        The PNG file to write.
    """
    milliseconds = residuals.with_columns(
        pl.col("seconds") * 1000, pl.col("fitted_s") * 1000, pl.col("residual_s") * 1000
    )
    kinds = {
        "decode only": milliseconds.filter(pl.col("prefill_tokens") == 0),
        "with prefill": milliseconds.filter(pl.col("prefill_tokens") > 0),
    }
    with plt.rc_context(figures.STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(7.4, 3.1), layout="constrained")
        for k, (label, rows) in enumerate(kinds.items()):
            look = {"s": 12, "color": figures.COLOURS[k], "marker": figures.MARKERS[k]}
            fitted, measured = rows["fitted_s"].to_numpy(), rows["seconds"].to_numpy()
            left.scatter(fitted, measured, label=label, **look)
            right.scatter(rows["batch"].to_numpy(), rows["residual_s"].to_numpy(), **look)
        most = float(milliseconds["seconds"].to_numpy().max())
        left.plot([0, most], [0, most], color="0.5", linewidth=1)
        right.axhline(0, color="0.5", linewidth=1)
        left.set_xlabel("fitted time in ms")
        left.set_ylabel("measured time in ms")
        left.set_title(f"R2 {fit.r2:.4f}", loc="left")
        left.legend()
        right.set_xlabel("batch in requests")
        right.set_ylabel("measured less fitted in ms")
        figures.save(figure, path)


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_]+", str(name)):
        raise UsageError(f"name={name} not understood: need letters, digits and _ only.")
