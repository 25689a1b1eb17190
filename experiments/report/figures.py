"""Figures of a report for print: matplotlib, from tables and curves to a figure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import polars as pl

from experiments.analysis import figures
from experiments.report.statistics import GOOD_QOE, QUANTITIES, SHARES, quantiles

# After experiments.analysis.figures, which chooses the back-end.
import matplotlib.pyplot as plt  # isort: skip

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from experiments.analysis.figures import Look
    from experiments.report.series import Curve, Occupancy, Reading

#: Text in PDF files stays text.
_PRINT = {"pdf.fonttype": 42}
_WIDTH = 7.4


def save_for_print(figure: Figure, path: Path) -> None:
    """
    Write a figure as PNG and PDF, and close it.

    Parameters
    ----------
    figure
        The figure.
    path
        The file's path without its suffix.
    """
    with figures.style(_PRINT):
        for suffix in (".png", ".pdf"):
            figures.save(figure, path.with_name(path.name + suffix))
            figure.set_layout_engine("none")  # keeps the layout, which takes long to find


def qoe_against_rate(table: pl.DataFrame, look: Mapping[str, Look]) -> Figure:
    """
    Draw mean QoE by the three definitions against the rate, with 95 % intervals.

    Parameters
    ----------
    table
        Of :func:`experiments.report.statistics.compare`, one setting.
    look
        Arm -> how it is drawn.
    """
    with figures.style(_PRINT):
        figure, panels = plt.subplots(
            1, 3, figsize=(_WIDTH, 2.9), sharey=True, layout="constrained"
        )
        for panel, definition in zip(panels, ("area", "delay", "window"), strict=True):
            for arm, line in lines_of(table, f"qoe_{definition}_mean", look):
                panel.errorbar(
                    line["rate"].to_numpy(),
                    line["mean"].to_numpy(),
                    yerr=line["ci95"].fill_null(0.0).to_numpy(),
                    capsize=2,
                    **look[arm].with_markers,
                    label=arm,
                )
            panel.set_title(definition, loc="left")
            panel.set_xlabel("request rate in 1/s")
        panels[0].axhline(GOOD_QOE, color="0.6", linewidth=0.8, linestyle=":")
        panels[0].set_ylabel("mean QoE, 95 % interval")
        panels[0].set_ylim(0, 1.03)
        figures.legend(figure, panels[0])
    return figure


def distributions(rows: Mapping[str, pl.DataFrame], look: Mapping[str, Look]) -> Figure:
    """
    Draw the share of requests up to a value, for QoE, TTFT and speed of delivery.

    Parameters
    ----------
    rows
        Arm -> its requests.
    look
        Arm -> how it is drawn.
    """
    with figures.style(_PRINT):
        figure, panels = plt.subplots(
            2, 3, figsize=(_WIDTH, 4.6), sharey=True, layout="constrained"
        )
        places = list(panels.flat)
        for panel, (quantity, (name, unit)) in zip(places, QUANTITIES.items(), strict=False):
            for arm in look:
                values = quantiles(rows[arm], quantity) if arm in rows else None
                if values is not None:
                    panel.plot(values, SHARES, **look[arm].line, label=arm)
            panel.set_xlabel(f"{name} in {unit}" if unit else name)
            if quantity == "first_token_s":
                panel.set_xscale("log")
                panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        for row in panels:
            row[0].set_ylabel("share of requests")
        places[-1].set_axis_off()
        handles, labels = places[0].get_legend_handles_labels()
        places[-1].legend(handles, labels, loc="center", fontsize=8)
    return figure


def one_request(found: Reading, look: Mapping[str, Look]) -> Figure:
    """
    Draw ideal, delivered and digested tokens of one request, a panel per arm.

    Parameters
    ----------
    found
        The request.
    look
        Arm -> how it is drawn.
    """
    arms = [arm for arm in look if arm in found.delivered]
    columns = min(3, len(arms))
    rows = math.ceil(len(arms) / columns)
    with figures.style(_PRINT):
        figure, panels = plt.subplots(
            rows,
            columns,
            figsize=(max(3.4, _WIDTH * columns / 3), 0.5 + 2.3 * rows),
            sharex=True,
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for panel, arm in zip(panels.flat, arms, strict=False):
            _plot(panel, found.ideal, color="black", linestyle="--", linewidth=1, label="ideal")
            _plot(panel, found.delivered[arm], color="0.55", linewidth=1, label="delivered")
            _plot(panel, found.digested[arm], color=look[arm].colour, label="digested")
            panel.set_title(f"{arm}: window {found.window[arm]:.2f}", loc="left", fontsize=8)
        for panel in list(panels.flat)[len(arms) :]:
            panel.set_axis_off()
        for panel in panels[-1]:
            panel.set_xlabel("s since arrival")
        for row in panels:
            row[0].set_ylabel("tokens")
        figures.legend(figure, panels[0][0])
    return figure


def occupancy(found: Occupancy, look: Mapping[str, Look]) -> Figure:
    """
    Draw batch, waiting requests and KV tokens over time.

    Parameters
    ----------
    found
        The engine under several arms.
    look
        Arm -> how it is drawn.
    """
    with figures.style(_PRINT):
        figure, panels = plt.subplots(
            3, 1, figsize=(_WIDTH, 5.2), sharex=True, layout="constrained"
        )
        series = (found.batch, found.waiting, found.kv)
        names = ("batch in requests", "waiting requests", "KV tokens")
        for panel, curves, name in zip(panels, series, names, strict=True):
            for arm in look:
                if arm in curves:
                    _plot(panel, curves[arm], **look[arm].line, linewidth=1, label=arm)
            panel.set_ylabel(name)
            panel.set_ylim(bottom=0)
        if found.capacity_tokens is not None:
            panels[-1].axhline(found.capacity_tokens, color="0.5", linewidth=0.8, linestyle=":")
        panels[-1].set_xlabel("s since the run's start")
        figures.legend(figure, panels[0])
    return figure


def lines_of(
    table: pl.DataFrame, metric: str, look: Mapping[str, Look]
) -> list[tuple[str, pl.DataFrame]]:
    """Return each arm's line of a metric, by rate."""
    of_metric = table.filter(pl.col("metric") == metric, pl.col("rate").is_not_null()).sort("rate")
    lines = [(arm, of_metric.filter(pl.col("arm") == arm)) for arm in look]
    return [(arm, line) for arm, line in lines if line.height]


def _plot(panel: Axes, curve: Curve, **drawn: Any) -> None:
    panel.plot(curve.x, curve.y, **drawn)
