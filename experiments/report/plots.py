"""Plots of a report for the browser: plotly, from tables and curves to a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from experiments.analysis.figures import GAP_FLOOR_PERCENT, gap_points
from experiments.report.figures import lines_of
from experiments.report.statistics import GOOD_QOE, QUANTITIES, SHARES, quantiles

if TYPE_CHECKING:
    from collections.abc import Mapping

    import polars as pl

    from experiments.analysis.figures import Look
    from experiments.report.series import Curve, Occupancy, Reading

_MARKERS = {
    "o": "circle",
    "s": "square",
    "^": "triangle-up",
    "D": "diamond",
    "v": "triangle-down",
    "P": "cross",
    "X": "x",
    "<": "triangle-left",
    ">": "triangle-right",
    "*": "star",
}
_DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}


def qoe_against_rate(table: pl.DataFrame, look: Mapping[str, Look]) -> go.Figure:
    """As :func:`experiments.report.figures.qoe_against_rate`."""
    definitions = ("area", "delay", "window")
    figure = make_subplots(
        1, 3, shared_yaxes=True, subplot_titles=definitions, horizontal_spacing=0.03
    )
    for column, definition in enumerate(definitions, start=1):
        for arm, line in lines_of(table, f"qoe_{definition}_mean", look):
            trace = go.Scatter(
                x=line["rate"].to_list(),
                y=line["mean"].to_list(),
                error_y={"array": line["ci95"].fill_null(0.0).to_list(), "thickness": 1},
                customdata=line["n"].to_list(),
                mode="lines+markers",
                **_drawn(arm, look),
                hovertemplate="%{y:.3f} at %{x:g}/s, %{customdata} seeds",
            )
            figure.add_trace(trace, row=1, col=column)
        figure.update_xaxes(title_text="request rate in 1/s", row=1, col=column)
    figure.add_hline(GOOD_QOE, line={"color": "#888", "dash": "dot", "width": 1}, row=1, col=1)
    figure.update_yaxes(title_text="mean QoE, 95 % interval", row=1, col=1)
    figure.update_yaxes(range=[0, 1.03])
    return _finished(figure, 400)


def distributions(rows: Mapping[str, pl.DataFrame], look: Mapping[str, Look]) -> go.Figure:
    """As :func:`experiments.report.figures.distributions`."""
    titles = [f"{name} in {unit}" if unit else name for name, unit in QUANTITIES.values()]
    figure = make_subplots(
        2,
        3,
        shared_yaxes=True,
        subplot_titles=titles,
        horizontal_spacing=0.03,
        vertical_spacing=0.14,
    )
    for k, quantity in enumerate(QUANTITIES):
        place = {"row": k // 3 + 1, "col": k % 3 + 1}
        for arm in look:
            values = quantiles(rows[arm], quantity) if arm in rows else None
            if values is None:
                continue
            trace = go.Scatter(
                x=values.astype("float32"),
                y=SHARES.astype("float32"),
                mode="lines",
                **_line(arm, look),
                hovertemplate="%{y:.0%} of requests up to %{x:.3g}",
            )
            figure.add_trace(trace, **place)
        if quantity == "first_token_s":
            # Plotly would write the 2 and the 5 between the decades as bare digits.
            figure.update_xaxes(type="log", dtick=1, exponentformat="none", **place)
    figure.update_yaxes(title_text="share of requests", col=1)
    figure.update_yaxes(range=[0, 1.02])
    return _finished(figure, 640)


def one_request(found: Reading, look: Mapping[str, Look]) -> go.Figure:
    """As :func:`experiments.report.figures.one_request`, in one panel: delivered is dotted."""
    figure = go.Figure()
    ideal = {"color": "black", "dash": "dash", "width": 1.5}
    figure.add_trace(
        go.Scatter(x=found.ideal.x, y=found.ideal.y, mode="lines", line=ideal, name="ideal reader")
    )
    for arm in look:
        if arm not in found.delivered:
            continue
        for curve, what, dash, width in (
            (found.delivered[arm], "delivered", "dot", 1.2),
            (found.digested[arm], "digested", "solid", 2.2),
        ):
            figure.add_trace(
                _curve(curve, arm, look)
                .update(name=f"{arm}: {what}", showlegend=True)
                .update(line={"dash": dash, "width": width})
                .update(hovertemplate="%{y:.0f} tokens at %{x:.2f} s")
            )
    figure.update_xaxes(title_text="s since arrival")
    figure.update_yaxes(title_text="tokens", rangemode="tozero")
    return _finished(figure, 460)


def occupancy(found: Occupancy, look: Mapping[str, Look]) -> go.Figure:
    """As :func:`experiments.report.figures.occupancy`."""
    titles = ("batch in requests", "waiting requests", "KV tokens")
    figure = make_subplots(3, 1, shared_xaxes=True, subplot_titles=titles, vertical_spacing=0.07)
    for row, curves in enumerate((found.batch, found.waiting, found.kv), start=1):
        for arm in look:
            if arm in curves:
                trace = _curve(curves[arm], arm, look)
                trace.update(line={"width": 1.2}, hovertemplate="%{y:.0f} at %{x:.1f} s")
                figure.add_trace(trace, row=row, col=1)
    if found.capacity_tokens is not None:
        line = {"color": "#888", "dash": "dot", "width": 1}
        figure.add_hline(found.capacity_tokens, line=line, row=3, col=1)
    figure.update_xaxes(title_text="s since the run's start", row=3, col=1)
    figure.update_yaxes(rangemode="tozero")
    return _finished(figure, 640)


def gap_against_time(answers: pl.DataFrame, look: Mapping[str, Look]) -> go.Figure:
    """As ``figures.gap_against_time`` of ``analysis``; solvers are named beside their points."""
    figure = go.Figure()
    for point in gap_points(answers).iter_rows(named=True):
        solver = point["solver"]
        spread = {"array": [point["high"] - point["ms"]], "thickness": 1}
        figure.add_trace(
            go.Scatter(
                x=[point["ms"]],
                y=[max(point["gap"], GAP_FLOOR_PERCENT)],
                error_x={**spread, "arrayminus": [point["ms"] - point["low"]]},
                customdata=[point["gap"]],
                mode="markers",
                marker={
                    "symbol": _MARKERS[look[solver].marker],
                    "size": 10,
                    "color": look[solver].colour,
                },
                name=solver,
                showlegend=True,
                hovertemplate="%{customdata:.4g} % at %{x:.3g} ms",
            )
        )
    ticks = [digit * 10.0**power for power in range(-4, 6) for digit in (1, 2, 5)]
    figure.update_xaxes(
        title_text="time of a call in ms (median, 10-90 %)",
        type="log",
        tickvals=ticks,
        ticktext=[f"{tick:g}" for tick in ticks],
    )
    title = f"mean gap in % ({GAP_FLOOR_PERCENT:g}: none)"
    figure.update_yaxes(title_text=title, type="log", dtick=1, exponentformat="power")
    return _finished(figure, 460)


def _drawn(arm: str, look: Mapping[str, Look]) -> dict[str, Any]:
    symbol = _MARKERS[look[arm].marker] + ("-open" if look[arm].hollow else "")
    return {**_line(arm, look), "marker": {"symbol": symbol, "size": 8}}


def _line(arm: str, look: Mapping[str, Look]) -> dict[str, Any]:
    return {
        "name": arm,
        "meta": {"arm": arm},  # what the page's switches look for
        "line": {"color": look[arm].colour, "dash": _DASHES[look[arm].dash], "width": 2},
        "showlegend": False,
    }


def _curve(curve: Curve, arm: str, look: Mapping[str, Look]) -> go.Scatter:
    return go.Scatter(
        x=curve.x.astype("float32"), y=curve.y.astype("float32"), mode="lines", **_line(arm, look)
    )


def _finished(figure: go.Figure, height: int) -> go.Figure:
    return figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 60, "r": 20, "t": 60, "b": 50},  # the buttons stand above the titles
        font={"size": 13},
        hovermode="closest",
    )
