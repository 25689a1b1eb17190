"""The figure of a part of a live study: mean QoE by arm and load."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import polars as pl

from experiments.analysis.figures import COLOURS, MARKERS, legend, save, style
from experiments.analysis.statistics import means

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.figure import Figure

#: Definitions of QoE in the figures.
_DRAWN = ("area", "window")
#: With more arms than these, lines over the load would hide each other.
_MOST_LINES = 6


def draw(rows: pl.DataFrame, path: Path) -> None:
    """
    Mean QoE of each arm at each load, with 95 % intervals over seeds.

    A line over the loads per arm; with many arms, or at a single load, a row per arm and a panel
    per load.

    Parameters
    ----------
    rows
        The runs of one part.
    path
        The PNG file to write.
    """
    arms = rows["arm"].unique(maintain_order=True).to_list()
    as_lines = len(arms) <= _MOST_LINES and rows["load"].n_unique() > 1
    with style():
        save(_lines(rows, arms) if as_lines else _dots(rows, arms), path)


def _lines(rows: pl.DataFrame, arms: Sequence[str]) -> Figure:
    figure, panels = plt.subplots(1, 2, figsize=(7.4, 3.2), sharey=True, layout="constrained")
    for panel, definition in zip(panels, _DRAWN, strict=True):
        for k, arm in enumerate(arms):
            loads, means, widths = _line(rows, arm, f"qoe_{definition}_mean")
            panel.errorbar(
                loads,
                means,
                yerr=widths if np.isfinite(widths).any() else None,
                color=COLOURS[k % len(COLOURS)],
                marker=MARKERS[k % len(MARKERS)],
                capsize=2,
                label=arm,
            )
        panel.set_title(definition, loc="left")
        panel.set_xlabel("load in multiples of the saturated token rate")
    panels[0].set_ylabel("mean QoE")
    panels[0].set_ylim(0, 1.03)
    legend(figure, panels[0])
    return figure


def _dots(rows: pl.DataFrame, arms: Sequence[str]) -> Figure:
    loads = sorted(rows["load"].unique())
    height = 1.1 + 0.24 * len(arms)
    figure, panels = plt.subplots(
        1, len(loads), figsize=(7.4, height), sharey=True, squeeze=False, layout="constrained"
    )
    for k, definition in enumerate(_DRAWN):
        for arm_place, arm in enumerate(arms):
            at, means, widths = _line(rows, arm, f"qoe_{definition}_mean")
            for load, mean, width in zip(at, means, widths, strict=True):
                panels[0, loads.index(load)].errorbar(
                    mean,
                    arm_place + 0.22 * (k - 0.5),
                    xerr=width if np.isfinite(width) else None,
                    color=COLOURS[k],
                    marker=MARKERS[k],
                    linestyle="none",
                    capsize=2,
                    label=definition if arm_place == 0 else None,
                )
    for panel, load in zip(panels[0], loads, strict=True):
        panel.set_title(f"load {load:g}", loc="left")
        panel.set_xlabel("mean QoE")
        panel.set_xlim(0, 1.03)
        panel.grid(visible=True, axis="y", alpha=0.3)
    panels[0, 0].set_yticks(range(len(arms)), arms)
    panels[0, 0].invert_yaxis()
    legend(figure, panels[0, 0], columns=None)
    return figure


def _line(rows: pl.DataFrame, arm: str, metric: str) -> tuple[list[float], Any, Any]:
    """Loads, means and half-widths of an arm; NaN for a single seed, which has no bar."""
    found = means(rows.filter(pl.col("arm") == arm), ["load"], metric).sort("load")
    widths = found["half_width"].fill_null(math.nan)
    return found["load"].to_list(), found["mean"].to_numpy(), widths.to_numpy()
