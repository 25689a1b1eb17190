"""Figures of studies: curves, bars, distributions, maps, with 95 % intervals over seeds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import polars as pl

from experiments.analysis.figures import COLOURS, legend, look, save, style

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_COLUMNS = 3
#: Arms that look the same in every figure.
_FAMILIAR = (
    "fcfs",
    "round_robin",
    "andes",
    "andes_exact",
    "andes_released",
    "least_slack",
    "least_qoe",
    "srpt_oracle",
)
_HATCHES = ("", "//", "..", "xx", "\\\\", "oo", "--")

#: How a figure writes the marks of :func:`experiments.studies.views.marked`.
_MARKS = {
    "": "",
    ">= ": "\N{GREATER-THAN OR EQUAL TO}",
    "<= ": "\N{LESS-THAN OR EQUAL TO}",
    "? ": "?",
}


def curves(
    table: pl.DataFrame, metrics: Sequence[str], path: Path, x_label: str, suffix: str = ""
) -> None:
    """
    Draw a line per arm with its interval as a band; a panel per metric and variant.

    Parameters
    ----------
    table
        Of :mod:`experiments.analysis.statistics`.
    metrics
        Metrics to draw; of several variants the first one only.
    path
        The PNG file to write.
    x_label
        What the axis is.
    suffix
        What the metric's name is followed by, " less fcfs" say.
    """
    with style():
        figure, panels = _panels(table, metrics)
        for panel, metric, rows in panels:
            for arm, k in _looks(table).items():
                line = rows.filter(pl.col("arm") == arm).sort("x")
                x, mean = line["x"].to_numpy(), line["mean"].to_numpy()
                half = line["half_width"].fill_null(0.0).to_numpy()
                drawn = look(k)
                panel.plot(x, mean, label=arm, **drawn.with_markers)
                panel.fill_between(
                    x, mean - half, mean + half, color=drawn.colour, alpha=0.15, linewidth=0
                )
            panel.set_xlabel(x_label)
            panel.set_ylabel(_labelled(metric, suffix))
            if suffix.startswith(" less"):
                panel.axhline(0, color="0.4", linewidth=0.8)
            elif not suffix and metric.startswith("qoe_"):
                panel.set_ylim(0, 1.03)  # panels are compared with each other
        _finish(figure, panels, path)


def bars(table: pl.DataFrame, metrics: Sequence[str], path: Path, suffix: str = "") -> None:
    """
    Draw a bar per arm with its interval, grouped by variant and point; a panel per metric.

    Parameters
    ----------
    table, metrics, path, suffix
        As for :func:`curves`.
    """
    groups = table.select("variant", "at").unique(maintain_order=True).rows()
    several = table["variant"].n_unique() > 1
    labels = [f"{variant}\n{at}".strip() if several else at for variant, at in groups]
    shown = [metric for metric in metrics if metric in table["metric"].to_list()]
    with style():
        looks = _looks(table)
        arms = list(looks)
        inches = min(11.0, max(4.0, 0.28 * len(arms) * len(groups) + 1.5))
        figure, axes = plt.subplots(
            len(shown),
            1,
            figsize=(inches, 2.5 * len(shown) + 0.6),
            layout="constrained",
            squeeze=False,
            sharex=True,
        )
        width = 0.8 / max(1, len(arms))
        for panel, metric in zip(axes[:, 0], shown, strict=True):
            rows = table.filter(pl.col("metric") == metric)
            for k, arm in enumerate(arms):
                found = {
                    (line["variant"], line["at"]): line
                    for line in rows.filter(pl.col("arm") == arm).iter_rows(named=True)
                }
                places = [j for j, group in enumerate(groups) if group in found]
                lines = [found[groups[j]] for j in places]
                panel.bar(
                    [j + (k - (len(arms) - 1) / 2) * width for j in places],
                    [line["mean"] for line in lines],
                    width,
                    yerr=[line["half_width"] or 0.0 for line in lines],
                    error_kw={"elinewidth": 0.8},
                    color=COLOURS[looks[arm] % len(COLOURS)],
                    hatch=_HATCHES[looks[arm] // len(COLOURS) % len(_HATCHES)],
                    edgecolor="white",
                    linewidth=0.3,
                    label=arm,
                )
                for j, line in zip(places, lines, strict=True):
                    x = j + (k - (len(arms) - 1) / 2) * width
                    panel.text(x, line["mean"], _MARKS[line.get("mark", "")], ha="center")
            panel.set_ylabel(_labelled(metric, suffix))
            panel.set_xticks(
                range(len(groups)),
                labels,
                rotation=30 if several else 0,
                ha="right" if several else "center",
            )
            panel.grid(axis="x", visible=False)
            panel.set_axisbelow(True)
        legend(figure, axes[0, 0])
        save(figure, path)


def distributions(table: pl.DataFrame, path: Path, x_label: str) -> None:
    """
    Draw the share of requests below each value: a line per arm, a panel per variant and point.

    Parameters
    ----------
    table
        Means over seeds of one metric's quantiles, the percentage in ``part``.
    path
        The PNG file to write.
    x_label
        What the quantiles are of.
    """
    shares = table.with_columns(pl.col("part").cast(pl.Float64).alias("share"))
    places = shares.select("variant", "at").unique(maintain_order=True).rows()
    with style():
        figure, axes = _axes(len(places))
        for panel, (variant, at) in zip(axes, places, strict=True):
            rows = shares.filter((pl.col("variant") == variant) & (pl.col("at") == at))
            for arm, k in _looks(shares).items():
                line = rows.filter(pl.col("arm") == arm).sort("share")
                mean, share = line["mean"].to_numpy(), line["share"].to_numpy()
                panel.plot(mean, share, label=arm, **look(k).line)
            panel.set_title(f"{variant}, {at}", loc="left", fontsize=8)
            panel.set_xlabel(x_label)
            panel.set_ylabel("% of requests")
            if x_label.endswith("_s"):
                panel.set_xscale("log")
        legend(figure, axes[0])
        save(figure, path)


def heat_maps(
    maps: Sequence[tuple[str, Any]],
    rows: Sequence[str],
    columns: Sequence[str],
    path: Path,
    *,
    labels: tuple[str, str],
    bar_label: str,
    diverging: bool,
) -> None:
    """
    Draw numbers over two regimes, a panel each, and write them into the cells.

    Parameters
    ----------
    maps
        Title and numbers, (len(rows), len(columns)), NaN where there is none.
    rows, columns
        What rows and columns stand for.
    path
        The PNG file to write.
    labels
        Names of the vertical and the horizontal axis.
    bar_label
        What the numbers are.
    diverging
        Whether they have a sign.
    """
    sizes = [float(np.nanmax(np.abs(numbers))) for _, numbers in maps if np.isfinite(numbers).any()]
    largest = max(sizes, default=1.0) or 1.0
    with style():
        figure, axes = _axes(len(maps), height=0.36 * len(rows) + 1.4)
        for panel, (title, numbers) in zip(axes, maps, strict=True):
            image = panel.imshow(
                numbers,
                # Both are safe for colour-blind readers and turn grey evenly in print.
                cmap="PuOr" if diverging else "cividis",
                vmin=-largest if diverging else 0.0,
                vmax=largest,
                aspect="auto",
            )
            for (i, j), value in np.ndenumerate(numbers):
                if math.isfinite(value):
                    dark = value < 0.5 * largest if not diverging else abs(value) > 0.7 * largest
                    panel.text(
                        j,
                        i,
                        _short(value),
                        ha="center",
                        va="center",
                        fontsize=7,
                        color="white" if dark else "black",
                    )
            panel.grid(visible=False)
            panel.set_xticks(range(len(columns)), columns)
            panel.set_yticks(range(len(rows)), rows)
            panel.set_ylabel(labels[0])
            panel.set_xlabel(labels[1])
            panel.set_title(title, loc="left", fontsize=8)
        figure.colorbar(image, ax=list(axes), label=bar_label, shrink=0.8)
        save(figure, path)


def _short(value: float) -> str:
    """A number as a cell of a map has room for it."""
    size = abs(value)
    return f"{value:.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def _labelled(metric: str, suffix: str) -> str:
    """A metric for an axis; names say their units, except those of capacities."""
    unit = " in requests/s" if metric.startswith("capacity_") and "over" not in suffix else ""
    return f"{metric}{suffix}{unit}"


def _panels(
    table: pl.DataFrame, metrics: Sequence[str]
) -> tuple[Figure, list[tuple[Axes, str, pl.DataFrame]]]:
    variants = table["variant"].unique(maintain_order=True).to_list()
    if len(variants) > 1:
        wanted = [(variant, metrics[0]) for variant in variants]
    else:
        wanted = [(variants[0], metric) for metric in metrics]
    figure, axes = _axes(len(wanted))
    panels = []
    for panel, (variant, metric) in zip(axes, wanted, strict=True):
        if len(variants) > 1:
            panel.set_title(variant, loc="left", fontsize=8)
        rows = table.filter((pl.col("variant") == variant) & (pl.col("metric") == metric))
        panels.append((panel, metric, rows))
    return figure, panels


def _axes(count: int, height: float = 2.5) -> tuple[Figure, list[Axes]]:
    columns = min(_MOST_COLUMNS, count)
    lines = -(-count // columns)
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(max(4.2, 2.9 * columns), height * lines + 0.6),
        layout="constrained",
        squeeze=False,
    )
    for panel in axes.flat[count:]:
        panel.set_axis_off()
    return figure, list(axes.flat[:count])


def _looks(table: pl.DataFrame) -> dict[str, int]:
    """Arm -> number of its colour, marker and dashes; familiar arms keep theirs."""
    arms = table["arm"].unique(maintain_order=True).to_list()
    familiar = set(arms) <= set(_FAMILIAR)
    return {arm: _FAMILIAR.index(arm) if familiar else k for k, arm in enumerate(arms)}


def _finish(figure: Figure, panels: Sequence[tuple[Axes, str, Any]], path: Path) -> None:
    legend(figure, panels[0][0])
    save(figure, path)
