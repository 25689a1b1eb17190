"""Views of the map of regimes: the gap of a step, the difference end to end, the break-even."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import polars as pl

from experiments.analysis.document import section
from experiments.analysis.figures import COLOURS, MARKERS, save, style
from experiments.analysis.intervals import in_points, interval
from experiments.analysis.markdown import markdown
from experiments.analysis.statistics import DIFFERENCE, against, over_seeds
from experiments.studies import figures
from experiments.studies.exact_vs_greedy import EXACT, GREEDY, charged_arm, regimes_of
from experiments.studies.settings import Regime

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from experiments.studies.views import Page

#: Variant and point of a break-even curve -> (solve time, mean, half-width) at each time.
Curves = dict[tuple[str, str], list[tuple[float, float, float]]]


def regime_map(
    page: Page, *, metric: str, title: str, difference: bool = False, note: str = ""
) -> str:
    """
    Show a metric over KV tokens and load: a table per engine and horizon, and a figure.

    With ``difference`` it is exact less greedy in points (0.01 of QoE), paired by seed, else
    that of the exact runs.
    """
    free = page.rows.filter(pl.col("charged_solve_s") == 0.0)
    if difference:
        table = in_points(against(free, GREEDY, DIFFERENCE, [metric]))
        table = table.filter(pl.col("part") == "")
    else:
        table = over_seeds(free, [metric]).filter(pl.col("part") == "")
    table = table.filter(pl.col("arm") == EXACT)
    if table.is_empty():
        return section(title, "Nothing was solved: no regime was ever under pressure.")

    regimes = regimes_of(page.rows)
    found = {(regimes[line["variant"]], line["at"]): line for line in table.iter_rows(named=True)}
    loads = table.sort("x")["at"].unique(maintain_order=True).to_list()
    kinds = list(dict.fromkeys((regime.engine, regime.dt_s) for regime, _ in found))
    tokens = sorted({regime.capacity_tokens for regime, _ in found})
    maps, lines = [], []
    for engine, dt_s in kinds:
        numbers = np.full((len(tokens), len(loads)), math.nan)
        for i, capacity in enumerate(tokens):
            cells = {}
            for j, load in enumerate(loads):
                line = found.get((Regime(engine, capacity, dt_s), load))
                cells[load] = "-"
                if line is not None:
                    numbers[i, j] = line["mean"]
                    cells[load] = interval(line["mean"], line["half_width"], 2)
            lines.append({"engine": engine, "dt s": dt_s, "KV tokens": capacity, **cells})
        maps.append((f"{engine}, dt {dt_s:g} s", numbers))
    path, link = page.figure(f"{metric}_{'difference' if difference else 'map'}")
    figures.heat_maps(
        maps,
        [str(capacity) for capacity in tokens],
        loads,
        path,
        labels=("KV tokens", "rate over FCFS's capacity"),
        bar_label=f"{metric}, exact less greedy, points" if difference else metric,
        diverging=difference,
    )
    return section(title, note, link, markdown(pl.DataFrame(lines), {"dt s": 0}))


def break_even(page: Page, *, metric: str, title: str, note: str = "") -> str:
    """
    Show what exact solving gains over free greedy solving, when a solve takes time.

    The break-even is the solve time at which the mean difference turns negative, by linear
    interpolation. ``measured`` charges both solvers what they take on this machine.
    """
    compared = in_points(against(page.rows, GREEDY, DIFFERENCE, [metric]))
    charged = _charged(page.rows, compared)
    measured = against(
        page.rows.filter(pl.col("charged_solve_s").is_null()),
        charged_arm(GREEDY, None),
        DIFFERENCE,
        [metric],
    )
    both = {
        (line["variant"], line["at"]): interval(line["mean"], line["half_width"], 2)
        for line in in_points(measured).iter_rows(named=True)
    }
    regimes = regimes_of(page.rows)
    lines = []
    for (variant, at), points in charged.items():
        regime = regimes[variant]
        times = {
            f"{1000 * seconds:g} ms" if seconds else "free": interval(mean, half, 2)
            for seconds, mean, half in points
        }
        lines.append(
            {
                "engine": regime.engine,
                "KV tokens": regime.capacity_tokens,
                "dt s": regime.dt_s,
                "load": at,
                **times,
                "measured": both.get((variant, at), "-"),
                "break-even": in_words(break_even_s([(s, m) for s, m, _ in points])),
            }
        )
    if not lines:
        return section(title, "No regime has charged solves.")
    path, link = page.figure(f"{metric}_break_even")
    draw_break_even(charged, regimes, path, f"{metric}, exact less greedy, points")
    return section(title, note, link, markdown(pl.DataFrame(lines), {"dt s": 0}))


def break_even_s(points: Sequence[tuple[float, float]]) -> float:
    """
    Return the solve time up to which exact solving is no worse than greedy solving.

    Parameters
    ----------
    points
        Solve time and mean difference, times ascending from 0.

    Returns
    -------
    float
        Seconds; NaN if it is worse even when free, infinity if it never is.
    """
    if points[0][1] < 0:
        return math.nan
    for (time_s, gain), (next_s, next_gain) in pairwise(points):
        if next_gain < 0:
            return time_s + (next_s - time_s) * gain / (gain - next_gain)
    return math.inf


def in_words(seconds: float) -> str:
    """Return a break-even time as tables show it."""
    if math.isnan(seconds):
        return "never better"
    return "beyond" if math.isinf(seconds) else f"{1000 * seconds:.2g} ms"


def draw_break_even(
    charged: Curves, regimes: Mapping[str, Regime], path: Path, y_label: str
) -> None:
    """
    Draw the difference against solve time: a panel per engine, a line per KV size and load.

    Parameters
    ----------
    charged
        The curves.
    regimes
        Variant -> regime.
    path
        The PNG file to write.
    y_label
        What the difference is.
    """
    engines = list(dict.fromkeys(regimes[variant].engine for variant, _ in charged))
    with style():
        figure, axes = plt.subplots(
            1,
            len(engines),
            figsize=(max(4.2, 3.2 * len(engines)), 3.2),
            layout="constrained",
            squeeze=False,
            sharey=True,
        )
        for panel, engine in zip(axes[0], engines, strict=True):
            shown = {
                key: points for key, points in charged.items() if regimes[key[0]].engine == engine
            }
            for k, ((variant, at), points) in enumerate(shown.items()):
                time_ms, mean, half = (np.array(column) for column in zip(*points, strict=True))
                panel.errorbar(
                    1000 * time_ms,
                    mean,
                    yerr=np.nan_to_num(np.array(half, dtype=np.float64)),
                    color=COLOURS[k % len(COLOURS)],
                    marker=MARKERS[k % len(MARKERS)],
                    capsize=2,
                    label=f"{regimes[variant].capacity_tokens} KV tokens, {at}",
                )
            panel.axhline(0, color="0.4", linewidth=0.8)
            panel.set_xscale("symlog", linthresh=1.0)
            panel.set_xlim(left=-0.15)
            panel.set_yscale("symlog", linthresh=1.0)
            panel.set_xlabel("charged time of a solve in ms")
            panel.set_title(engine, loc="left", fontsize=8)
            panel.legend(fontsize=6)
        axes[0, 0].set_ylabel(y_label)
        save(figure, path)


def _charged(rows: pl.DataFrame, compared: pl.DataFrame) -> Curves:
    """Curves of the exact arms whose solves have a fixed time, for points that have several."""
    times = {
        arm: seconds
        for arm, seconds in rows.select("arm", "charged_solve_s").unique().iter_rows()
        if seconds is not None and arm != GREEDY
    }
    curves: Curves = {}
    for line in compared.filter(pl.col("part") == "").iter_rows(named=True):
        if line["arm"] in times:
            key = line["variant"], line["at"]
            point = (times[line["arm"]], line["mean"], line["half_width"])
            curves.setdefault(key, []).append(point)
    return {key: sorted(points) for key, points in curves.items() if len(points) > 1}
