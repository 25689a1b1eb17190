"""
The views of a study: each turns its rows into a section of Markdown and perhaps a figure.

An experiment's file lists them under ``study.views``, each a ``view`` by name with its options.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from experiments.analysis.document import paragraphs, picture, section
from experiments.analysis.intervals import in_points
from experiments.analysis.markdown import markdown
from experiments.analysis.statistics import DIFFERENCE, RATIO, against, axis, over_seeds
from experiments.analysis.tables import readable, wide
from experiments.studies import exact_vs_greedy_views, figures

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

#: Percentages that tables of quantiles show.
_SHOWN_PERCENTAGES = (1, 5, 10, 25, 50, 75, 90, 95, 99)

#: Whether the arm's and the baseline's capacity are known -> what stands before the number.
_MARKS = {(True, True): "", (False, True): ">= ", (True, False): "<= ", (False, False): "? "}

#: Why there is nothing to compare, unless a view knows better.
_ONE_ARM = "the study has one arm only"


@dataclass(frozen=True, slots=True)
class Page:
    """
    What a view may draw on.

    Parameters
    ----------
    rows
        The study's rows.
    baseline
        The arm that others are compared with, unless a view names another.
    folder
        Where figures go.
    name
        Name of the study, with which the names of its figures begin.
    highest
        Rate at which searches for capacities end; a capacity of so much is only known to be
        no less. None where nothing was searched.
    """

    rows: pl.DataFrame
    baseline: str
    folder: Path
    name: str
    highest: float | None = None

    def figure(self, name: str) -> tuple[Path, str]:
        """Return where a figure goes, and the Markdown that shows it."""
        path = self.folder / f"{self.name}_{name}.png"
        return path, picture(name.replace("_", " "), path)


def marked(page: Page, table: pl.DataFrame, baseline: str | None = None) -> pl.DataFrame:
    """
    Return a table with a column ``mark`` for capacities that reached the search's limit.

    Parameters
    ----------
    page
        With ``highest``.
    table
        Means, or what is relative to a baseline.
    baseline
        The arm of the latter.

    Returns
    -------
    polars.DataFrame
        ``mark`` is ">= " where the arm reached it, "<= " where the baseline did, "? " for both,
        and such numbers have no half-width.
    """
    reached: set[tuple[str, str, str]] = set()
    if page.highest is not None:
        capacities = pl.col("metric").str.starts_with("capacity_")
        found = page.rows.filter(capacities & (pl.col("number") >= page.highest))
        reached = set(found.select("variant", "arm", "metric").iter_rows())
    marks = []
    for variant, arm, metric in table.select("variant", "arm", "metric").iter_rows():
        known = (variant, arm, metric) not in reached, (variant, baseline, metric) not in reached
        marks.append(_MARKS[known])
    table = table.with_columns(pl.Series("mark", marks, pl.String))
    return table.with_columns(pl.when(pl.col("mark") == "").then("half_width").alias("half_width"))


def means(
    page: Page,
    *,
    metrics: Sequence[str],
    title: str = "Means",
    figure: str | None = None,
    note: str = "",
) -> str:
    """
    Show mean and 95 % interval of some metrics at every point.

    ``figure``: ``curves`` against rate or load, ``bars``, or none.
    """
    table = marked(page, over_seeds(page.rows, metrics).filter(pl.col("part") == ""))
    return paragraphs(
        _section(title, note, wide(table, metrics)),
        _figure(page, table, metrics, figure, "means", ""),
    )


def differences(
    page: Page,
    *,
    metrics: Sequence[str],
    baseline: str | None = None,
    title: str | None = None,
    figure: str | None = None,
    note: str = "",
) -> str:
    """Show the paired difference to a baseline at every point; QoE in points (0.01)."""
    baseline = baseline or page.baseline
    table = in_points(against(page.rows, baseline, DIFFERENCE, metrics))
    table = marked(page, table.filter(pl.col("part") == ""), baseline)
    title = title or f"Difference to {baseline}"
    note = f"{note} Paired by seed, 95 % intervals; QoE in points (0.01).".strip()
    return paragraphs(
        _section(title, note, wide(table, metrics), _why_none(page, baseline)),
        _figure(page, table, metrics, figure, f"less_{baseline}", f" less {baseline}"),
    )


def ratios(
    page: Page,
    *,
    metrics: Sequence[str],
    baseline: str | None = None,
    title: str | None = None,
    figure: str | None = None,
    note: str = "",
) -> str:
    """Show the paired ratio to a baseline at every point."""
    baseline = baseline or page.baseline
    table = against(page.rows, baseline, RATIO, metrics).filter(pl.col("part") == "")
    table = marked(page, table, baseline)
    title = title or f"Ratio to {baseline}"
    note = f"{note} Paired by seed, 95 % intervals.".strip()
    return paragraphs(
        _section(title, note, wide(table, metrics), _why_none(page, baseline)),
        _figure(page, table, metrics, figure, f"over_{baseline}", f" over {baseline}"),
    )


def parts(page: Page, *, metric: str, by: str, title: str, note: str = "") -> str:
    """Show the mean of a metric for parts of the requests: those whose name begins with ``by``."""
    table = over_seeds(page.rows, [metric]).filter(pl.col("part").str.starts_with(f"{by} "))
    table = table.with_columns(pl.col("part").str.strip_prefix(f"{by} "))
    return _section(title, note, wide(table, None, columns="part"))


def quantiles(
    page: Page, *, metrics: Sequence[str], title: str = "Distributions", note: str = ""
) -> str:
    """Show quantiles over requests, mean over seeds, and a figure for each metric."""
    shown = [str(percentage) for percentage in _SHOWN_PERCENTAGES]
    pieces = [note]
    for metric in metrics:
        table = over_seeds(page.rows, [metric])
        some = table.filter(pl.col("part").is_in(shown))
        path, link = page.figure(metric)
        figures.distributions(table, path, readable(metric))
        pieces += [f"{readable(metric)}, by percentage of requests:", link]
        pieces.append(markdown(wide(some, None, columns="part", intervals=False), {}))
    return section(title, *pieces)


def _section(title: str, note: str, table: pl.DataFrame, why_none: str = _ONE_ARM) -> str:
    if table.is_empty():
        return section(title, f"Nothing to compare: {why_none}.")
    return section(title, note, markdown(table, {}))


def _why_none(page: Page, baseline: str) -> str:
    return _ONE_ARM if baseline in page.rows["arm"] else f"{baseline} is not among study.arms"


def _figure(
    page: Page,
    table: pl.DataFrame,
    metrics: Sequence[str],
    kind: str | None,
    name: str,
    suffix: str,
) -> str:
    if kind is None or table.is_empty():
        return ""
    path, link = page.figure(name.replace(" ", "_"))
    if kind == "curves":
        figures.curves(table, metrics, path, axis(page.rows), suffix)
    else:
        figures.bars(table, metrics, path, suffix)
    return link


#: Name -> view.
VIEWS: dict[str, Callable[..., str]] = {
    "means": means,
    "differences": differences,
    "ratios": ratios,
    "parts": parts,
    "quantiles": quantiles,
    "regime_map": exact_vs_greedy_views.regime_map,
    "break_even": exact_vs_greedy_views.break_even,
}
