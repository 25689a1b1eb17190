"""Solvers over many problems: performance profiles, exponents, and the figures of both."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
from scipy import stats

from experiments.analysis.figures import (
    COLOURS,
    GAP_FLOOR_PERCENT,
    MARKERS,
    gap_point,
    gap_points,
    save,
    style,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

_CONFIDENCE = 0.95
#: Fillable ones: hollow means that a limit was hit. The star is the certified solver's.
_MARKERS = (*(marker for marker in MARKERS if marker != "*"), "p", "h", "d", "8", "H")
_LINES = ("-", "--", ":", "-.")
_HEADLINE = "exact"


@dataclass(frozen=True, slots=True)
class Exponent:
    """
    Time proportional to N to the power of ``value``.

    ``low`` and ``high`` enclose it with 95 % confidence (Student's t on the residuals of the
    log-log fit); ``intercept`` is the natural logarithm of the time at N = 1.
    """

    value: float
    low: float
    high: float
    intercept: float
    first: int
    last: int
    calls: int


def fit_exponent(sizes: Sequence[float], times_s: Sequence[float]) -> Exponent | None:
    """
    Fit a least-squares line through log time against log size.

    Parameters
    ----------
    sizes
        Requests of each call, (k,).
    times_s
        Its time in seconds, (k,).

    Returns
    -------
    Exponent | None
        None for fewer than three different sizes.
    """
    if len(set(sizes)) < 3:
        return None
    fit = stats.linregress(np.log(sizes), np.log(times_s))
    half = float(stats.t.ppf(0.5 + _CONFIDENCE / 2, len(sizes) - 2)) * fit.stderr
    return Exponent(
        float(fit.slope),
        float(fit.slope - half),
        float(fit.slope + half),
        float(fit.intercept),
        int(min(sizes)),
        int(max(sizes)),
        len(sizes),
    )


def exponents(rows: pl.DataFrame, fit_from: int) -> dict[str, Exponent]:
    """
    Return exponents by solver, from the sizes at which it answered every call within its limit.

    Parameters
    ----------
    rows
        Of one family, with ``at_limit``.
    fit_from
        Smallest size that counts: below, the cost of a call as such hides the solver's.
    """
    found = {}
    for name in sorted(rows["solver"].unique()):
        mine = rows.filter((pl.col("solver") == name) & (pl.col("requests") >= fit_from))
        cut = mine.group_by("requests").agg(
            (pl.col("at_limit").any() | pl.col("wall_s").is_null().any()).alias("cut")
        )
        whole = mine.join(cut.filter(~pl.col("cut")), on="requests", how="semi")
        exponent = fit_exponent(whole["requests"].to_list(), whole["wall_s"].to_list())
        if exponent is not None:
            found[name] = exponent
    return found


def ratios(times_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """
    Return each solver's time in units of the best one's on each problem (Dolan and Moré, 2002).

    Parameters
    ----------
    times_s
        (problems, solvers); inf where a solver failed.

    Returns
    -------
    NDArray
        (problems, solvers); inf where a solver failed, also if all did.
    """
    best = times_s.min(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(times_s), times_s / best, np.inf)


def time_matrix(rows: pl.DataFrame, solved: pl.Expr) -> tuple[list[str], NDArray[np.float64]]:
    """
    Return solvers, and their times (problems, solvers), inf where unsolved or not asked.

    Parameters
    ----------
    rows
        A row per problem and solver that was asked.
    solved
        When an answer counts. Solvers that never succeed are left out.
    """
    counted = pl.when(solved & pl.col("wall_s").is_not_null()).then(pl.col("wall_s"))
    wide = (
        rows.with_columns(counted.alias("time"))
        .pivot("solver", index=["source", "instance"], values="time", aggregate_function="first")
        .drop("source", "instance")
    )
    names = [name for name in sorted(wide.columns) if wide[name].null_count() < wide.height]
    times = wide.select(names).fill_null(math.inf).to_numpy()
    return names, np.asarray(times, dtype=np.float64)


def draw_profiles(rows: pl.DataFrame, within_percent: float, path: Path) -> None:
    """
    Draw the share of problems done within a factor of the fastest solver's time.

    Left, done means a certified optimum; right, a plan close to the optimum, certified or
    not, on the problems whose optimum is known.

    Parameters
    ----------
    rows
        The core rows: every solver was to answer every problem.
    within_percent
        How close.
    path
        The PNG file to write.
    """
    close = pl.col("gap_percent") <= within_percent
    known = rows.filter(pl.col("reference_certified"))
    panels = (
        ("certified optimum", rows, pl.col("certified")),
        (f"within {within_percent:g} % of the optimum", known, close),
    )
    styles = line_styles(rows)
    with style():
        figure, axes = plt.subplots(1, 2, figsize=(8.2, 4.0), sharey=True, layout="constrained")
        drawn: dict[str, Any] = {}
        for panel, (title, taken, solved) in zip(axes, panels, strict=True):
            names, times = time_matrix(taken, solved)
            factors = ratios(times)
            finite = factors[np.isfinite(factors)]
            end = 1.5 * float(finite.max(initial=10.0))
            for column, name in enumerate(names):
                mine = np.sort(factors[:, column])
                mine = mine[np.isfinite(mine)]
                shares = np.arange(1, mine.size + 1) / factors.shape[0]
                x = np.concatenate([mine[:1], mine, [end]])
                y = np.concatenate([[0.0], shares, shares[-1:]])
                line = {k: styles[name][k] for k in ("color", "linestyle", "linewidth")}
                (drawn[name],) = panel.step(x, y, where="post", **line)
            panel.set_xscale("log")
            panel.set_xlim(0.9, end)
            panel.set_xlabel("time in units of the fastest solver's")
            panel.set_title(f"{title}: {factors.shape[0]} problems", loc="left", fontsize=9)
        axes[0].set_ylim(0.0, 1.02)
        axes[0].set_ylabel("share of problems done")
        names = sorted(drawn, key=lambda name: (name != _HEADLINE, name))
        figure.legend([drawn[name] for name in names], names, loc="outside right center")
        save(figure, path)


def draw_scaling(rows: pl.DataFrame, found: dict[str, Exponent], family: str, path: Path) -> None:
    """
    Draw the median time of a call against N, with the fitted power laws.

    Parameters
    ----------
    rows
        Of one family, with ``at_limit``. A size where some call hit the limit is drawn
        hollow: its median is too low.
    found
        From :func:`exponents`.
    family
        Its name.
    path
        The PNG file to write.
    """
    points = (
        rows.filter(pl.col("wall_s").is_not_null())
        .group_by("solver", "requests")
        .agg((1000 * pl.col("wall_s").median()).alias("ms"), pl.col("at_limit").any().alias("cut"))
        .sort("requests")
    )
    styles = line_styles(rows)
    calls = rows.filter(pl.col("wall_s").is_not_null()).height
    with style():
        figure, axes = plt.subplots(figsize=(7.4, 4.6), layout="constrained")
        for name in sorted(styles, key=lambda name: (name != _HEADLINE, name)):
            mine = points.filter(pl.col("solver") == name)
            if mine.is_empty():
                continue
            label = name
            if name in found:
                fit = found[name]
                label = f"{name}: {fit.value:.2f} [{fit.low:.2f}, {fit.high:.2f}]"
                ends = np.array([fit.first, fit.last], dtype=np.float64)
                milliseconds = 1000 * np.exp(fit.intercept) * ends**fit.value
                axes.plot(ends, milliseconds, color=styles[name]["color"], linewidth=0.7)
            axes.plot(mine["requests"], mine["ms"], label=label, **styles[name])
            cut = mine.filter("cut")
            axes.plot(
                cut["requests"],
                cut["ms"],
                linestyle="none",
                marker=styles[name]["marker"],
                color=styles[name]["color"],
                markerfacecolor="white",
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        sizes = sorted(points["requests"].unique())
        axes.set_xticks(sizes, [str(size) for size in sizes], rotation=45)
        axes.minorticks_off()
        axes.set_xlabel("requests N")
        axes.set_ylabel("median time of a call in ms")
        axes.set_title(f"{family}, {calls} calls; hollow: limit hit", loc="left")
        figure.legend(loc="outside right center", title="exponent of N [95 % interval]")
        save(figure, path)


def draw_gaps(rows: pl.DataFrame, family: str, panels: Sequence[int], path: Path) -> None:
    """
    Draw the mean gap to the optimum against the median time of a call, a panel per size.

    Parameters
    ----------
    rows
        Core rows of one family.
    family
        Its name.
    panels
        Sizes; those without rows are left out, and if none is left the largest is drawn.
    path
        The PNG file to write.
    """
    there = set(rows["requests"].unique())
    sizes = [size for size in panels if size in there] or [max(there)]
    styles = line_styles(rows)
    with style():
        figure, row = plt.subplots(
            1,
            len(sizes),
            figsize=(2.6 + 3.0 * len(sizes), 3.8),
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        drawn: dict[str, Any] = {}
        for panel, size in zip(row[0], sizes, strict=True):
            drawn |= _gap_panel(panel, rows.filter(pl.col("requests") == size), styles)
            panel.set_xscale("log")
            panel.set_yscale("log")
            panel.set_ylim(GAP_FLOOR_PERCENT / 2, 200)
            panel.axhspan(GAP_FLOOR_PERCENT / 2, 2.0 * GAP_FLOOR_PERCENT, color="0.92")
            count = rows.filter(pl.col("requests") == size).select("source", "instance").n_unique()
            panel.set_title(f"{family}, N = {size}, {count} instances", loc="left", fontsize=9)
            panel.set_xlabel("time of a call in ms (median, 10-90 %)")
        row[0][0].set_ylabel("mean gap to the optimum in %\n(grey: 0 or nearly)")
        names = sorted(drawn, key=lambda name: (name != _HEADLINE, name))
        figure.legend([drawn[name] for name in names], names, loc="outside right center")
        save(figure, path)


def _gap_panel(
    panel: Axes, rows: pl.DataFrame, styles: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    drawn = {}
    for point in gap_points(rows).sort("solver").iter_rows(named=True):
        style = styles[point["solver"]]
        height = max(point["gap"], GAP_FLOOR_PERCENT)
        drawn[point["solver"]] = gap_point(
            panel, point, height, fmt=style["marker"], color=style["color"], elinewidth=0.8
        )
    return drawn


def line_styles(rows: pl.DataFrame) -> dict[str, dict[str, Any]]:
    """Return colour, dashes and marker by solver: the certified solver black and thick."""
    *colours, black = COLOURS
    others = [name for name in sorted(rows["solver"].unique()) if name != _HEADLINE]
    styles: dict[str, dict[str, Any]] = {
        _HEADLINE: {
            "color": black,
            "linestyle": "-",
            "linewidth": 2.4,
            "marker": "*",
            "markersize": 8,
        }
    }
    for k, name in enumerate(others):
        colour = colours[k % len(colours)]
        turn = k // len(colours)
        styles[name] = {
            "color": colour,
            "linestyle": _LINES[turn % len(_LINES)],
            "linewidth": 1.3,
            "marker": _MARKERS[k % len(_MARKERS)],
            "markersize": 4.5,
        }
    return styles
