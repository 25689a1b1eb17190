"""Sections of a report: what there is data for, and how to record what there is none for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from experiments.analysis.figures import draw_gap_against_time
from experiments.report import figures, plots
from experiments.report.series import occupancy, reading, together
from experiments.report.statistics import GOOD_QOE
from experiments.runs.files import TIMELINE, TOKENS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import plotly.graph_objects as go
    from matplotlib.figure import Figure

    from experiments.analysis.figures import Look
    from experiments.report.reading import Results, ServedRun


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """
    One picture of a section: a setting, a rate.

    Parameters
    ----------
    label
        What it shows, for the page's menu; empty if there is no choice.
    draw
        Draws it for print.
    plot
        Makes it for the browser.
    printed
        Whether it is drawn for print; the browser shows all views.
    """

    label: str
    draw: Callable[[], Figure]
    plot: Callable[[], go.Figure]
    printed: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Section:
    """
    A heading, a sentence or two, and pictures.

    Parameters
    ----------
    key
        Name of its files.
    title, text
        For readers.
    views
        At least one; the first printed one is shown first.
    """

    key: str
    title: str
    text: str
    views: Sequence[View]


@dataclass(frozen=True, slots=True, eq=False)
class SectionData:
    """
    What sections are made from.

    Parameters
    ----------
    results
        What was read.
    comparison
        Of :func:`experiments.report.statistics.compare`.
    look, solver_look
        How arms and solvers are drawn.
    baseline
        The arm that others are compared with; None if there are no arms.
    request
        The request to show; None to choose one.
    """

    results: Results
    comparison: pl.DataFrame
    look: Mapping[str, Look]
    solver_look: Mapping[str, Look]
    baseline: str | None
    request: int | None


def sections(data: SectionData) -> tuple[list[Section], list[str]]:
    """
    Return the sections that there is data for.

    Returns
    -------
    tuple
        The sections, and for each missing one a sentence on how to record its data.
    """
    made: list[Section] = []
    missing: list[str] = []
    for make, how in (
        (_rates, "QoE against rate: needs runs at two rates or more, workload.rate=3.2,4.8."),
        (_distributions, "Distributions: need runs of simulate, hindsight or bench."),
        (_one_request, "Timeline of one request: run simulate with tokens=true."),
        (_occupancy, "Batch and KV cache over time: run simulate with timeline=true."),
        (_solvers, "Solvers' gap against time: run andes-opt quality."),
    ):
        section = make(data)
        if section is None:
            missing.append(how)
        else:
            made.append(section)
    return made, missing


def _rates(data: SectionData) -> Section | None:
    views = []
    for setting in _settings(data):
        table = data.comparison.filter(pl.col("setting") == setting)
        if table["rate"].drop_nulls().n_unique() > 1:
            views.append(
                _view(
                    setting,
                    figures.qoe_against_rate,
                    plots.qoe_against_rate,
                    table,
                    data.look,
                )
            )
    text = "Mean over seeds of the mean QoE over requests; bars are 95 % intervals over seeds."
    return _section("qoe_against_rate", "QoE against rate", text, views)


def _distributions(data: SectionData) -> Section | None:
    views = []
    for (setting, rate), runs in _places(data.results.runs).items():
        rows = {
            arm: pl.concat([run.rows for run in runs if run.arm == arm], how="diagonal")
            for arm in dict.fromkeys(run.arm for run in runs)
        }
        views.append(
            _view(
                _label(setting, rate),
                figures.distributions,
                plots.distributions,
                rows,
                data.look,
                printed=rate == _overloaded(data, setting),
            )
        )
    text = (
        "Share of requests with a value of at most x, over all seeds. Print shows the lowest rate "
        f"at which the baseline's mean area QoE is below {GOOD_QOE}."
    )
    return _section("distributions", "QoE, TTFT and speed of delivery", text, views)


def _one_request(data: SectionData) -> Section | None:
    views = []
    groups = together(data.results.runs, TOKENS)
    for runs in groups:
        found = reading(runs, data.request)
        if found is None:
            continue
        label = f"{_label(runs[0].setting, runs[0].rate)}: request {found.request}"
        views.append(
            _view(
                label,
                figures.one_request,
                plots.one_request,
                found,
                data.look,
                printed=_is_printed(data, runs, groups),
            )
        )
    how = (
        "chosen by --request."
        if data.request is not None
        else "the one whose window QoE differs most between policies, so not a typical one."
    )
    text = (
        f"Tokens an ideal reader takes in, tokens delivered, tokens digested; the request is {how}"
    )
    return _section("one_request", "Timeline of one request", text, views)


def _occupancy(data: SectionData) -> Section | None:
    views = []
    groups = together(data.results.runs, TIMELINE)
    for runs in groups:
        found = occupancy(runs)
        views.append(
            _view(
                _label(runs[0].setting, runs[0].rate),
                figures.occupancy,
                plots.occupancy,
                found,
                data.look,
                printed=_is_printed(data, runs, groups),
            )
        )
    text = "Means over short spans of one run each; the dotted line is the KV capacity."
    return _section("occupancy", "Batch and KV cache over time", text, views)


def _solvers(data: SectionData) -> Section | None:
    answers = data.results.answers
    if not answers.height:
        return None
    sources = answers["source"].unique(maintain_order=True).to_list()
    views = []
    for source in sources:
        rows = answers.filter(pl.col("source") == source)
        if rows["wall_s"].null_count() == rows.height:
            continue
        views.append(_solver_view(source if len(sources) > 1 else "", rows, data.solver_look))
    text = "Mean gap to the optimum, or to the best proven bound, and time of a call."
    return _section("gap_against_time", "Solvers: gap against time", text, views)


def _section(key: str, title: str, text: str, views: Sequence[View]) -> Section | None:
    return Section(key, title, text, views) if views else None


def _view(
    label: str,
    draw: Callable[[Any, Mapping[str, Look]], Figure],
    plot: Callable[[Any, Mapping[str, Look]], go.Figure],
    data: object,
    look: Mapping[str, Look],
    printed: bool = True,
) -> View:
    return View(label, lambda: draw(data, look), lambda: plot(data, look), printed)


def _solver_view(label: str, rows: pl.DataFrame, look: Mapping[str, Look]) -> View:
    return View(
        label,
        lambda: draw_gap_against_time(rows),
        lambda: plots.gap_against_time(rows, look),
    )


def _settings(data: SectionData) -> list[str]:
    return list(dict.fromkeys(run.setting for run in data.results.runs))


def _places(runs: Sequence[ServedRun]) -> dict[tuple[str, float | None], list[ServedRun]]:
    """Runs by setting and rate, in ascending order of the rate."""
    places: dict[tuple[str, float | None], list[ServedRun]] = {}
    settings = list(dict.fromkeys(run.setting for run in runs))
    for run in sorted(runs, key=lambda run: (settings.index(run.setting), run.rate or 0.0)):
        places.setdefault((run.setting, run.rate), []).append(run)
    return places


def _label(setting: str, rate: float | None) -> str:
    return setting if rate is None else f"{setting} at {rate:g}/s"


def _is_printed(
    data: SectionData, runs: Sequence[ServedRun], groups: Sequence[Sequence[ServedRun]]
) -> bool:
    """Whether a group is at the rate that is printed: the overloaded one, else the nearest."""
    setting, rate = runs[0].setting, runs[0].rate
    wanted = _overloaded(data, setting)
    rates = [group[0].rate for group in groups if group[0].setting == setting]
    if wanted is None or rate is None or None in rates:
        return True
    return rate == min(rates, key=lambda other: abs((other or 0.0) - wanted))


def _overloaded(data: SectionData, setting: str) -> float | None:
    """The lowest rate that is too high for the baseline, else the highest."""
    table = data.comparison.filter(
        pl.col("setting") == setting, pl.col("metric") == "qoe_area_mean"
    )
    base = table.filter(pl.col("arm") == data.baseline, pl.col("mean") < GOOD_QOE)
    rates = base["rate"].drop_nulls()
    found = rates.min() if rates.len() else table["rate"].max()
    return None if found is None else float(found)  # type: ignore[arg-type]
