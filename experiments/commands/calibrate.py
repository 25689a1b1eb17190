"""``andes-opt calibrate``: an engine profile from measured iterations."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, cast

import matplotlib.pyplot as plt
import polars as pl
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict

from andes_opt.calibration import COEFFICIENTS, COLUMNS, fit_latency, read_iterations
from experiments.analysis import figures
from experiments.analysis.markdown import markdown
from experiments.configuration.compose import build
from experiments.configuration.errors import UsageError
from experiments.runs.files import write_atomically, write_text
from experiments.runs.records import recorded_run
from experiments.runs.resume import said

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from andes_opt.calibration import Fit, Iterations

_MEANING = {
    "base_s": "s per iteration",
    "per_request_s": "s per decoding request",
    "per_context_token_s": "s per KV token attended to",
    "per_prefill_token_s": "s per prompt token",
    "mixed_base_s": "s more per iteration with prefill",
    "mixed_per_request_s": "s more per decoding request, with prefill",
}


def run(config: DictConfig) -> dict[str, float]:
    """Fit, write the profile and how good it is, and return the summary."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    with recorded_run(folder) as record:
        _check_name(config.name)
        if config.iterations is None:
            raise UsageError(f"iterations=FILE is needed: a CSV with {', '.join(COLUMNS)}.")
        path = Path(config.iterations).expanduser()
        if not path.exists():
            raise UsageError(
                f"iterations={config.iterations}: no such file; andes-opt live writes one with "
                "iterations=true."
            )
        iterations = read_iterations(path)
        fit = fit_latency(iterations, weighting=config.weighting, mixed=config.mixed)
        profile = folder / "engine" / f"{config.name}.yaml"
        summary = fit.summary()
        residuals = residual_table(iterations, fit)
        with said(_text(fit, config, folder), folder):
            profile.parent.mkdir(exist_ok=True)
            text = profile_text(config, fit, config.source or f"fit to {path.name}")
            write_text(profile, text)
            build(cast("DictConfig", OmegaConf.load(profile)))  # what is handed out can be made
            write_atomically(folder / "residuals.csv", residuals.write_csv)
            record.finish(None, summary)
    picture = folder / "residuals.png"
    figures.drawn(picture, lambda: draw(residuals, fit, picture))
    return summary


def _text(fit: Fit, config: DictConfig, folder: Path) -> str:
    summary = fit.summary()
    place = shlex.quote(str(folder))
    return "\n".join(
        [
            markdown(coefficient_table(fit), {}),
            f"{summary['iterations']:.0f} iterations: R2 {summary['r2']:.4f}; residuals "
            f"{1000 * summary['residual_rms_s']:.3g} ms root mean square, "
            f"{1000 * summary['residual_max_s']:.3g} ms at most; relative error "
            f"{100 * summary['relative_error_mean']:.2g} % on average, "
            f"{100 * summary['relative_error_p95']:.2g} % at the 95th percentile.",
            *(
                f"{name} is 0 because nothing was measured that tells it."
                for name in fit.undetermined
            ),
            f"Try it: andes-opt simulate --config-dir {place} engine={config.name}",
        ]
    )


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
    # Six digits: more than any measurement has, and 4.00000000001e-07 reads badly.
    rounded = {name: float(f"{getattr(fit.latency, name):.6g}") for name in COEFFICIENTS}
    # Where decoding beside a prompt costs nothing, not less than nothing for the rounding.
    least = -rounded["per_request_s"]
    rounded["mixed_per_request_s"] = max(least, rounded["mixed_per_request_s"])
    with open_dict(engine):
        engine.latency.update(rounded)
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
    with figures.style():
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
