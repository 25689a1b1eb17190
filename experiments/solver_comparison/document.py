"""The portfolio's document: what the numbers say, as tables and figures, none typed in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from experiments.analysis.markdown import markdown
from experiments.runs.environment import commit_words
from experiments.solver_comparison import profiles, tables
from experiments.solver_comparison.tables import MS, ONE_BATCH, is_captured

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from omegaconf import DictConfig


@dataclass(frozen=True, slots=True)
class Facts:
    """
    What the document says beside the rows.

    Parameters
    ----------
    command
        The command that makes it.
    environment
        Of :func:`experiments.runs.environment.environment`.
    config
        The run's configuration.
    stops
        (source, solver, size, reason) of solvers that were asked for no larger size.
    missing
        Solvers left out -> why.
    silent
        Simulated loads without anything to solve.
    summary
        Flat metrics so far.
    """

    command: str
    environment: Mapping[str, Any]
    config: DictConfig
    stops: Sequence[tuple[str, str, int, str]]
    missing: Mapping[str, str]
    silent: Sequence[str]
    summary: Mapping[str, float]


def draw(rows: pl.DataFrame, facts: Facts, folder: Path) -> dict[str, Path]:
    """
    Draw what there are rows for: ``profile``, ``gap_vs_time`` and ``time``.

    Parameters
    ----------
    rows
        The portfolio's rows.
    facts
        What else the figures need.
    folder
        Where ``solvers_*.png`` go.

    Returns
    -------
    dict[str, Path]
        Name -> file.
    """
    shown = facts.config.portfolio.shown
    core, family = _parts(rows, facts)
    paths = {"profile": folder / "solvers_profile.png"}
    profiles.draw_profiles(core, shown.within_percent, paths["profile"])
    if not family.is_empty():
        paths |= {name: folder / f"solvers_{name}.png" for name in ("gap_vs_time", "time")}
        profiles.draw_gaps(family.filter("core"), shown.family, shown.panels, paths["gap_vs_time"])
        found = profiles.exponents(family, shown.fit_from)
        profiles.draw_scaling(family, found, shown.family, paths["time"])
    return paths


def headline(rows: pl.DataFrame, facts: Facts) -> dict[str, float]:
    """Ratios to ``exact`` and exponents as flat metrics, named as in ``summary.json``."""
    portfolio = facts.config.portfolio
    _, family = _parts(rows, facts)
    numbers: dict[str, float] = {}
    if not family.is_empty():
        size = _largest_panel(family, portfolio.shown)
        for line in tables.speed_ups(family, portfolio.shown.family, size).iter_rows(named=True):
            numbers[f"{line['solver']}_time_ratio_all_b"] = line["ratio"]
        for name, fit in profiles.exponents(family, portfolio.shown.fit_from).items():
            numbers[f"{name}_exponent"] = fit.value
    alone = tables.one_batch(tables.prepared(rows), portfolio.one_batch.family)
    for line in alone.iter_rows(named=True):
        numbers[f"{line['solver']}_time_ratio_one_b"] = line["ratio"]
    return numbers


def document(rows: pl.DataFrame, facts: Facts, links: Mapping[str, str]) -> str:
    """
    The document as Markdown.

    Parameters
    ----------
    rows
        The portfolio's rows.
    facts
        What else it says.
    links
        Name of a figure, as :func:`draw` gives it -> its address as the document sees it.
    """
    shown = facts.config.portfolio.shown
    core, family = _parts(rows, facts)
    sections = [
        _header(rows, facts),
        _overview_section(core, shown, links),
        _one_batch_section(tables.prepared(rows), facts),
        *_size_sections(family, shown, links),
        *_source_sections(core, facts),
    ]
    if facts.stops:
        sections.append(
            "## Who was not asked on\n\nA solver that answered no core instance of a size "
            "in time, or refused them all, was asked for no larger size of that family.\n\n"
            + _table(tables.stop_table(facts.stops))
        )
    return "\n\n".join(part for part in sections if part) + "\n"


def _parts(rows: pl.DataFrame, facts: Facts) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Over all batch sizes: the core instances, and all of the family that is shown."""
    rows = tables.prepared(rows)
    whole = rows.filter(~pl.col("source").str.ends_with(ONE_BATCH))
    family = whole.filter(pl.col("source") == facts.config.portfolio.shown.family)
    return whole.filter("core"), family


def _largest_panel(family: pl.DataFrame, shown: DictConfig) -> int:
    """The largest size that the figures pick out and that was solved; else the largest."""
    sizes = sorted(family["requests"].unique())
    return int(max((size for size in sizes if size in shown.panels), default=sizes[-1]))


def _picture(name: str, links: Mapping[str, str], text: str) -> str:
    return f"![{text}]({links[name]})" if name in links else ""


def _overview_section(core: pl.DataFrame, shown: DictConfig, links: Mapping[str, str]) -> str:
    problems = core.select("source", "instance").n_unique()
    return (
        f"## All families and sizes\n\n{problems} problems, put to every solver. Not asked, "
        "refused or out of time counts as not done; gaps and times are over what was answered.\n\n"
        + _table(tables.overview(core, shown.within_percent))
        + "\n\n"
        + _picture("profile", links, "Performance profiles of all solvers")
        + "\n\nPerformance profiles (Dolan and Moré, Math. Programming 91, 2002) of the same "
        "problems: how many a solver does within so many times the fastest solver's time."
    )


def _one_batch_section(rows: pl.DataFrame, facts: Facts) -> str:
    setting = facts.config.portfolio.one_batch
    table = tables.one_batch(rows, setting.family)
    if table.is_empty():
        return ""
    return (
        f"## One batch size, N = {setting.requests}\n\nThe back-ends get the best batch size "
        f"alone, `exact` finds it among all of them (family {setting.family}; limit "
        f"{setting.time_limit_s:g} s, one thread, gap 0). The ratio is their solving time, without "
        "building the model, to the whole call of `exact` on the same instance: median, least "
        "and most over the instances; where the limit was hit it is too low.\n\n" + _table(table)
    )


def _size_sections(family: pl.DataFrame, shown: DictConfig, links: Mapping[str, str]) -> list[str]:
    """Family ``shown.family``: ratios at its largest panel, then times and gaps by size."""
    if family.is_empty():
        return []
    sizes = sorted(family["requests"].unique())
    size = _largest_panel(family, shown)
    core = family.filter("core")
    certified = 100 * pl.col("certified").mean()
    found = profiles.exponents(family, shown.fit_from)
    return [
        f"## All batch sizes, N = {size}\n\nTime of a call in units of that of `exact` on the same "
        f"instance (family {shown.family}): median, least, most.\n\n"
        + _table(tables.speed_ups(family, shown.family, size)),
        f"## {shown.family}, by size\n\nThe certified solver, all instances:\n\n"
        + _table(tables.by_size(family, "exact")),
        "Median time of a call in ms, by N, core instances:\n\n"
        + _table(tables.by_column(core, "requests", MS.median(), sizes), decimals=2),
        "Certified optima in %:\n\n"
        + _table(tables.by_column(core, "requests", certified, sizes), decimals=0),
        "Mean gap to the optimum in %:\n\n"
        + _table(
            tables.by_column(core, "requests", pl.col("gap_percent").mean(), sizes), decimals=4
        ),
        _picture("gap_vs_time", links, "Mean gap against median time"),
        _picture("time", links, "Median time against N"),
        "Time proportional to N to the power of the exponent, from a log-log fit over single "
        f"calls from N = {shown.fit_from} on, at sizes where no call hit the limit; 95 % "
        "intervals.\n\n" + _table(tables.exponent_table(found))
        if found
        else "",
    ]


def _source_sections(core: pl.DataFrame, facts: Facts) -> list[str]:
    """Families side by side at one size, the simulated loads, build and solve times."""
    shown = facts.config.portfolio.shown
    sections = []
    at_size = core.filter(~is_captured() & (pl.col("requests") == shown.requests))
    captured = core.filter(is_captured())
    for title, rows in (
        (f"Families at N = {shown.requests}", at_size),
        ("Scheduling steps of simulated loads", captured),
    ):
        if rows.is_empty():
            continue
        sources = rows["source"].unique(maintain_order=True).to_list()
        gap = tables.by_column(rows, "source", pl.col("gap_percent").mean(), sources)
        ms = tables.by_column(rows, "source", MS.median(), sources)
        largest = max(rows["requests"].to_list())
        note = f" Up to {largest} requests each." if rows is captured else ""
        sections.append(
            f"## {title}\n\nMean gap to the optimum in %, core instances.{note}\n\n"
            + _table(gap, decimals=4)
            + "\n\nMedian time of a call in ms:\n\n"
            + _table(ms, decimals=2)
        )
    family = at_size.filter(pl.col("source") == shown.family)
    if not family.is_empty():
        columns = {"wall": "wall_s", "CPU": "cpu_s", "build": "build_s", "solve": "solve_s"}
        parts = (
            family.filter(pl.col("wall_s").is_not_null())
            .group_by("solver")
            .agg((1000 * pl.col(c).median()).alias(f"{name} ms") for name, c in columns.items())
            .sort("wall ms")
        )
        sections.append(
            f"## Building and solving, {shown.family}, N = {shown.requests}\n\nMedians over the "
            "core instances. Build is making models for the back-end, solve the rest of its "
            "work, our bounds on batch sizes included; wall and CPU are of the whole call, with "
            "child processes.\n\n" + _table(parts, decimals=3)
        )
    return sections


def _header(rows: pl.DataFrame, facts: Facts) -> str:
    environment, config = facts.environment, facts.config
    load = rows["load"].drop_nulls()
    least, median, most = (load.quantile(q) for q in (0.0, 0.5, 1.0))
    loads = "-" if load.is_empty() else f"{least:.1f} / {median:.1f} / {most:.1f}"
    versions = environment["versions"]
    back_ends = ("python", "numpy", "scipy", "numba", "ortools", "pulp", "highsbox", "torch")
    listed = ", ".join(f"{name} {versions[name]}" for name in back_ends if name in versions)
    count = rows.select("source", "instance").n_unique()
    lines = [
        "# Solvers compared",
        "",
        f"Written by `{facts.command}`; do not edit. Run it again to go on after an interruption.",
        "",
        f"- Processor: {environment['cpu']}, {environment['cores_usable']} cores usable; one "
        f"thread per solver, one solver at a time. Load (least / median / most): {loads}.",
        f"- {rows.height} calls on {count} instances, "
        f"{facts.summary['calls_s'] / 60:.1f} minutes of calls; limit {config.time_limit_s:g} s a "
        "call for every solver; solvers in alternating order.",
        f"- {config.count} core instances per family and size or load{_doubled(config)} go to "
        f"every solver. One that takes at most {1000 * config.portfolio.fast_call_s:g} ms on "
        f"average gets {config.portfolio.more} times as many on top.",
        "- Every plan was verified: constraints, value recomputed, bound not below the value. "
        f"Plans that beat another solver's bound: {facts.summary['contradictions']}; calls that "
        f"failed: {facts.summary['failed']}.",
        "- Times are wall-clock unless they say CPU, after a first call that is not counted "
        "(compilation). A gap is to the certified optimum, or to the best bound where no solver "
        f"certified one ({_uncertified(rows)} instances).",
        f"- Commit {commit_words(environment)}; {listed}; started {environment['started']}.",
    ]
    lines += [f"- Left out: {name}: {reason}" for name, reason in facts.missing.items()]
    lines += [f"- Never under pressure, so nothing to solve: {name}." for name in facts.silent]
    return "\n".join(lines)


def _doubled(config: DictConfig) -> str:
    factors = config.portfolio.core_factor.items()
    return "".join(f" ({config.count * factor} of {family})" for family, factor in factors)


def _uncertified(rows: pl.DataFrame) -> int:
    return rows.filter(~pl.col("reference_certified")).select("source", "instance").n_unique()


def _table(table: pl.DataFrame, *, decimals: int | None = None) -> str:
    """Markdown with decimals by what a column holds."""
    places = {}
    for name, dtype in table.schema.items():
        if not dtype.is_float():
            continue
        places[name] = decimals if decimals is not None else _decimals(name)
    return markdown(table, places)


def _decimals(name: str) -> int:
    if "gap" in name:
        return 4
    if "ms" in name:
        return 2
    if name in ("exponent", "low", "high"):
        return 2
    return 1
