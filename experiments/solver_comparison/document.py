"""The portfolio's document: what the numbers say, as tables and figures, none typed in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from experiments.analysis import document
from experiments.analysis.document import paragraphs, section
from experiments.analysis.markdown import markdown
from experiments.solver_comparison import profiles, tables
from experiments.solver_comparison.groups import FAMILY, LOAD, ONE_BATCH
from experiments.solver_comparison.tables import MS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from omegaconf import DictConfig

    from experiments.solver_comparison.tables import Stop


@dataclass(frozen=True, slots=True)
class PortfolioFacts:
    """
    How the portfolio was made: what its document says beside the rows.

    Parameters
    ----------
    command
        The command that makes it.
    environment
        Of :func:`experiments.runs.environment.environment`.
    config
        The run's configuration.
    stops
        Solvers that were asked for no larger size.
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
    stops: Sequence[Stop]
    missing: Mapping[str, str]
    silent: Sequence[str]
    summary: Mapping[str, float]


def write(rows: pl.DataFrame, facts: PortfolioFacts, folder: Path, docs: str | None) -> list[Path]:
    """
    Write ``solvers.md`` and its figures.

    Parameters
    ----------
    rows
        The portfolio's rows.
    facts
        What else the document says.
    folder
        The run's folder.
    docs
        Folder whose ``results/`` and ``figures/`` get copies; None for no copies.

    Returns
    -------
    list of Path
        What was written into ``docs``.
    """
    figures = _draw(rows, facts, folder)
    text = _text(rows, facts, figures)
    return document.publish(text, "solvers", folder, docs, figures.values())


def _draw(rows: pl.DataFrame, facts: PortfolioFacts, folder: Path) -> dict[str, Path]:
    """Draw what there are rows for: ``profile``, ``gap_vs_time`` and ``time``; name -> file."""
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


def headline(rows: pl.DataFrame, facts: PortfolioFacts) -> dict[str, float]:
    """Return ratios to ``exact`` and exponents as flat metrics, named as in ``summary.json``."""
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


def _text(rows: pl.DataFrame, facts: PortfolioFacts, figures: Mapping[str, Path]) -> str:
    shown = facts.config.portfolio.shown
    core, family = _parts(rows, facts)
    stopped = ""
    if facts.stops:
        stopped = section(
            "Who was not asked on",
            "A solver that answered no core instance of a size in time, or refused them all, was "
            "asked for no larger size of that family.",
            _table(tables.stop_table(facts.stops)),
        )
    return paragraphs(
        _header(rows, facts),
        _overview_section(core, shown, figures),
        _one_batch_section(tables.prepared(rows), facts),
        *_size_sections(family, shown, figures),
        *_source_sections(core, facts),
        stopped,
    )


def _parts(rows: pl.DataFrame, facts: PortfolioFacts) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Over all batch sizes: the core instances, and all of the family that is shown."""
    rows = tables.prepared(rows)
    whole = rows.filter(pl.col("kind") != ONE_BATCH)
    family = whole.filter(pl.col("source") == facts.config.portfolio.shown.family)
    return whole.filter("core"), family


def _largest_panel(family: pl.DataFrame, shown: DictConfig) -> int:
    """The largest size that the figures pick out and that was solved; else the largest."""
    sizes = sorted(family["requests"].unique())
    return int(max((size for size in sizes if size in shown.panels), default=sizes[-1]))


def _picture(name: str, figures: Mapping[str, Path], words: str) -> str:
    return document.picture(words, figures[name]) if name in figures else ""


def _overview_section(core: pl.DataFrame, shown: DictConfig, figures: Mapping[str, Path]) -> str:
    problems = core.select("source", "instance").n_unique()
    return section(
        "All families and sizes",
        f"{problems} problems, put to every solver. Not asked, refused or out of time counts as "
        "not done; gaps and times are over what was answered.",
        _table(tables.overview(core, shown.within_percent)),
        _picture("profile", figures, "Performance profiles of all solvers"),
        "Performance profiles (Dolan and Moré, Math. Programming 91, 2002) of the same problems: "
        "how many a solver does within so many times the fastest solver's time.",
    )


def _one_batch_section(rows: pl.DataFrame, facts: PortfolioFacts) -> str:
    setting = facts.config.portfolio.one_batch
    table = tables.one_batch(rows, setting.family)
    if table.is_empty():
        return ""
    return section(
        f"One batch size, N = {setting.requests}",
        "The back-ends get the best batch size alone, `exact` finds it among all of them (family "
        f"{setting.family}; limit {setting.time_limit_s:g} s, one thread, gap 0). The ratio is "
        "their solving time, without building the model, to the whole call of `exact` on the same "
        "instance: median, least and most over the instances; where the limit was hit it is too "
        "low.",
        _table(table),
    )


def _size_sections(
    family: pl.DataFrame, shown: DictConfig, figures: Mapping[str, Path]
) -> list[str]:
    """Family ``shown.family``: ratios at its largest panel, then times and gaps by size."""
    if family.is_empty():
        return []
    size = _largest_panel(family, shown)
    fitted = ""
    if found := profiles.exponents(family, shown.fit_from):
        fitted = paragraphs(
            "Time proportional to N to the power of the exponent, from a log-log fit over single "
            f"calls from N = {shown.fit_from} on, at sizes where no call hit the limit; 95 % "
            "intervals.",
            _table(tables.exponent_table(found)),
        )
    return [
        section(
            f"All batch sizes, N = {size}",
            "Time of a call in units of that of `exact` on the same instance (family "
            f"{shown.family}): median, least, most.",
            _table(tables.speed_ups(family, shown.family, size)),
        ),
        section(
            f"{shown.family}, by size",
            "The certified solver, all instances:",
            _table(tables.by_size(family, "exact")),
            _by_size(family),
        ),
        _picture("gap_vs_time", figures, "Mean gap against median time"),
        _picture("time", figures, "Median time against N"),
        fitted,
    ]


def _by_size(family: pl.DataFrame) -> str:
    """Times, certificates and gaps of all solvers, a column per size."""
    core, sizes = family.filter("core"), sorted(family["requests"].unique())
    parts: list[str] = []
    for words, value, decimals in (
        ("Median time of a call in ms, by N, core instances:", MS.median(), 2),
        ("Certified optima in %:", 100 * pl.col("certified").mean(), 0),
        ("Mean gap to the optimum in %:", pl.col("gap_percent").mean(), 4),
    ):
        table = tables.by_column(core, "requests", value, sizes)
        parts += [words, _table(table, decimals=decimals)]
    return paragraphs(*parts)


def _source_sections(core: pl.DataFrame, facts: PortfolioFacts) -> list[str]:
    """Families side by side at one size, the simulated loads, build and solve times."""
    shown = facts.config.portfolio.shown
    loads = core.filter(pl.col("kind") == LOAD)
    at_size = core.filter(pl.col("kind") == FAMILY, pl.col("requests") == shown.requests)
    note = "Mean gap to the optimum in %, core instances."
    most = max(loads["requests"].to_list(), default=0)
    return [
        _side_by_side(f"Families at N = {shown.requests}", note, at_size),
        _side_by_side(
            "Scheduling steps of simulated loads", f"{note} Up to {most} requests each.", loads
        ),
        _build_and_solve(at_size.filter(pl.col("source") == shown.family), shown),
    ]


def _side_by_side(title: str, note: str, rows: pl.DataFrame) -> str:
    """Gaps and times, a column per source."""
    if rows.is_empty():
        return ""
    sources = rows["source"].unique(maintain_order=True).to_list()
    gap = tables.by_column(rows, "source", pl.col("gap_percent").mean(), sources)
    ms = tables.by_column(rows, "source", MS.median(), sources)
    words = "Median time of a call in ms:"
    return section(title, note, _table(gap, decimals=4), words, _table(ms, decimals=2))


def _build_and_solve(rows: pl.DataFrame, shown: DictConfig) -> str:
    """Where the time goes, of one family at one size."""
    if rows.is_empty():
        return ""
    columns = {"wall": "wall_s", "CPU": "cpu_s", "build": "build_s", "solve": "solve_s"}
    parts = (
        rows.filter(pl.col("wall_s").is_not_null())
        .group_by("solver")
        .agg((1000 * pl.col(c).median()).alias(f"{name} ms") for name, c in columns.items())
        .sort("wall ms")
    )
    return section(
        f"Building and solving, {shown.family}, N = {shown.requests}",
        "Medians over the core instances. Build is making models for the back-end, solve the rest "
        "of its work, our bounds on batch sizes included; wall and CPU are of the whole call, "
        "with child processes.",
        _table(parts, decimals=3),
    )


def _header(rows: pl.DataFrame, facts: PortfolioFacts) -> str:
    environment, config = facts.environment, facts.config
    load = rows["load"].drop_nulls()
    least, median, most = (load.quantile(q) for q in (0.0, 0.5, 1.0))
    loads = "-" if load.is_empty() else f"{least:.1f} / {median:.1f} / {most:.1f}"
    packages = ("python", "numpy", "scipy", "numba", "ortools", "pulp", "highsbox", "torch")
    count = rows.select("source", "instance").n_unique()
    lines = [
        f"{document.processor(environment)}; one "
        f"thread per solver, one solver at a time. Load (least / median / most): {loads}.",
        f"{rows.height} calls on {count} instances, "
        f"{facts.summary['calls_s'] / 60:.1f} minutes of calls; limit {config.time_limit_s:g} s a "
        "call for every solver; solvers in alternating order.",
        f"{config.count} core instances per family and size or load{_doubled(config)} go to "
        f"every solver. One that takes at most {1000 * config.portfolio.fast_call_s:g} ms on "
        f"average gets {config.portfolio.more} times as many on top.",
        "Every plan was verified: constraints, value recomputed, bound not below the value. "
        f"Plans that beat another solver's bound: {facts.summary['contradictions']}; calls that "
        f"failed: {facts.summary['failed']}.",
        "Times are wall-clock unless they say CPU, after a first call that is not counted "
        "(compilation). A gap is to the certified optimum, or to the best bound where no solver "
        f"certified one ({_uncertified(rows)} instances).",
        document.code(environment, packages),
    ]
    lines += [f"Left out: {name}: {reason}" for name, reason in facts.missing.items()]
    lines += [f"Never under pressure, so nothing to solve: {name}." for name in facts.silent]
    if config.portfolio.tiny:
        lines.append(document.TINY)
    return document.how_made("Solvers compared", facts.command, lines)


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
