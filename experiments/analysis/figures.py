"""Figures: colour-blind-safe, legible in print, each a function from rows to a file."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import polars as pl
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from experiments.configuration.errors import one_line
from experiments.runs.files import printable, write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.container import ErrorbarContainer
    from matplotlib.figure import Figure

#: Okabe and Ito's palette (https://jfly.uni-koeln.de/color/), without its yellow, which
#: is too light for lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
DASHES = ("-", "--", "-.", ":")  # tell lines apart where there is no colour

#: matplotlib's settings for every figure.
STYLE: dict[Any, Any] = {
    "figure.dpi": 150,
    "savefig.dpi": 200,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
}

#: Where a gap of 0 is drawn, which has no logarithm, and where smaller gaps are drawn too.
GAP_FLOOR_PERCENT = 1e-5
#: Solvers at the floor are drawn above one another by this factor, to keep them apart.
_FLOOR_STEP = 1.5


@contextmanager
def style(more: Mapping[str, Any] | None = None) -> Iterator[None]:
    """
    Draw in the block as every figure is drawn, whatever the user's matplotlibrc says.

    Parameters
    ----------
    more
        More of matplotlib's settings.
    """
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE | dict(more or {}))
        yield


def drawn(path: Path, draw: Callable[[], object]) -> bool:
    """
    Draw a figure, or say on standard error why it could not be drawn: no run is lost for that.

    Parameters
    ----------
    path
        The file.
    draw
        Draws and writes it.

    Returns
    -------
    bool
        Whether it is there.
    """
    try:
        draw()
    except Exception as error:
        why = f"{type(error).__name__}: {one_line(error)}"
        print(f"{printable(path)} can't be drawn: {why}", file=sys.stderr)
        return False
    return True


@dataclass(frozen=True, slots=True)
class Look:
    """How an arm is drawn: colour, and matplotlib's names of marker and dash."""

    colour: str
    marker: str
    dash: str
    hollow: bool

    @property
    def line(self) -> dict[str, Any]:
        """Return matplotlib's options of a line without markers."""
        return {"color": self.colour, "linestyle": self.dash}

    @property
    def with_markers(self) -> dict[str, Any]:
        """Return matplotlib's options of a line with markers."""
        # Lines that coincide stay visible through the hollow markers of the one on top.
        face = "none" if self.hollow else self.colour
        return {**self.line, "marker": self.marker, "markerfacecolor": face}


def look(k: int) -> Look:
    """Return the look of the k-th arm; colour, marker and dash have different periods."""
    return Look(
        COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)], DASHES[k % len(DASHES)], k % 2 == 1
    )


def looks(names: Sequence[str]) -> dict[str, Look]:
    """Return a look for every name, in order."""
    return {name: look(k) for k, name in enumerate(names)}


def gap_against_time(rows: pl.DataFrame, path: Path) -> None:
    """
    Draw solver quality in one picture: mean gap to the optimum against median time of a call.

    Parameters
    ----------
    rows
        Of ``andes-opt quality``. Solvers without any plan are left out.
    path
        The PNG file to write.
    """
    with style():
        save(draw_gap_against_time(rows), path)


def draw_gap_against_time(rows: pl.DataFrame) -> Figure:
    """Return the figure of :func:`gap_against_time`."""
    points = gap_points(rows)
    instances = rows.select("source", "instance").n_unique()
    with style():
        figure, axes = plt.subplots(figsize=(6.0, 3.8), layout="constrained")
        optimal = 0
        for k, point in enumerate(points.iter_rows(named=True)):
            height = point["gap"]
            if height <= GAP_FLOOR_PERCENT:
                height = GAP_FLOOR_PERCENT * _FLOOR_STEP**optimal
                optimal += 1
            drawn = look(k)
            gap_point(
                axes, point, height, fmt=drawn.marker, color=drawn.colour, label=point["solver"]
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        label_decades(axes.xaxis)
        if optimal:
            top = GAP_FLOOR_PERCENT * _FLOOR_STEP ** (optimal - 1)
            axes.axhspan(GAP_FLOOR_PERCENT / 1.4, top * 1.4, color="0.92", label="optimal")
        axes.set_xlabel("time of a call in ms (median, 10-90 %)")
        axes.set_ylabel("mean gap to the optimum in %")
        axes.set_title(f"{instances} instances", loc="left")
        if points.height:
            figure.legend(loc="outside right upper")
    return figure


def gap_point(
    panel: Axes, point: Mapping[str, Any], height: float, **drawn: Any
) -> ErrorbarContainer:
    """
    Draw a solver's mean gap at its median time, with the 10 and 90 % quantiles of the time.

    Parameters
    ----------
    panel
        Where.
    point
        A line of :func:`gap_points`.
    height
        The gap in %, or what stands for it on a logarithmic axis.
    **drawn
        As for matplotlib's ``errorbar``.
    """
    spread = [[point["ms"] - point["low"]], [point["high"] - point["ms"]]]
    return panel.errorbar(point["ms"], height, xerr=spread, capsize=2, **drawn)


def label_decades(axis: Axis) -> None:
    """Label 1, 2 and 5 of each decade of a logarithmic axis with plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def gap_points(rows: pl.DataFrame) -> pl.DataFrame:
    """
    Return a point per solver: quantiles of the time of a call (50, 10 and 90 %), and mean gap.

    Parameters
    ----------
    rows
        Of ``andes-opt quality``.

    Returns
    -------
    polars.DataFrame
        ``solver``, ``ms``, ``low``, ``high`` (ms), ``gap`` (%), fastest first; solvers
        without any plan are left out.
    """
    return (
        rows.filter(pl.col("wall_s").is_not_null())
        .group_by("solver", maintain_order=True)
        .agg(
            (1000 * pl.col("wall_s").median()).alias("ms"),
            (1000 * pl.col("wall_s").quantile(0.1)).alias("low"),
            (1000 * pl.col("wall_s").quantile(0.9)).alias("high"),
            pl.col("gap_percent").mean().alias("gap"),
        )
        .sort("ms")
    )


def qoe_against_rate(rows: pl.DataFrame, path: Path) -> None:
    """
    Draw mean QoE by the three definitions against request rate, a line per policy and solver.

    Parameters
    ----------
    rows
        Of ``andes-opt simulate`` or ``demo``.
    path
        The PNG file to write.
    """
    definitions = ("qoe_area", "qoe_delay", "qoe_window")
    means = (
        rows.with_columns(arm())
        .group_by("arm", "rate", maintain_order=True)
        .agg(pl.col(*definitions).mean())
        .sort("rate", maintain_order=True)
    )
    with style():
        figure, panels = plt.subplots(1, 3, figsize=(7.4, 2.9), sharey=True, layout="constrained")
        for panel, definition in zip(panels, definitions, strict=True):
            _lines(panel, means, definition)
            panel.set_title(definition.removeprefix("qoe_"), loc="left")
            panel.set_xlabel("request rate in 1/s")
        panels[0].set_ylabel("mean QoE")
        panels[0].set_ylim(0, 1.03)
        legend(figure, panels[0], columns=None)
        save(figure, path)


def arm() -> pl.Expr:
    """Return column ``arm``: the policy, with its solver in brackets if it uses one."""
    with_solver = pl.format("{} ({})", "policy", "solver")
    return pl.when(pl.col("solver").is_null()).then("policy").otherwise(with_solver).alias("arm")


def _lines(panel: Axes, means: pl.DataFrame, column: str) -> None:
    for k, name in enumerate(means["arm"].unique(maintain_order=True)):
        line = means.filter(pl.col("arm") == name)
        panel.plot(
            line["rate"].to_numpy(), line[column].to_numpy(), label=name, **look(k).with_markers
        )


def legend(figure: Figure, panel: Axes, columns: int | None = 4) -> None:
    """
    Put the legend of a panel below a figure.

    Parameters
    ----------
    figure, panel
        The figure, and the panel that has everything in it.
    columns
        Columns at most; None for a single line.
    """
    handles, labels = panel.get_legend_handles_labels()
    most = len(labels) if columns is None else min(columns, len(labels))
    figure.legend(handles, labels, loc="outside lower center", ncols=max(1, most))


def save(figure: Figure, path: Path) -> None:
    """Write a figure to a file, whole or not at all, and close it."""
    try:
        write_atomically(path, lambda partial: figure.savefig(partial))
    finally:
        plt.close(figure)
