"""
The documents of a live study, one for each of its parts, and a page that leads to them.

A part's document has QoE, differences to baselines, what planning cost, and a figure. Parts may be
made on different days, by different commits: each says which.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from andes_opt.metrics import mean_ci, paired_difference
from experiments.analysis import document
from experiments.analysis.intervals import interval
from experiments.analysis.markdown import markdown
from experiments.analysis.statistics import with_baseline
from experiments.live.document_header import COMMAND, header, several_seeds
from experiments.live.figures import draw
from experiments.runs.files import write_atomically

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from experiments.live.document_header import LiveStudyFacts

_NAME = "live"
#: Column of the first table -> metric, decimals.
_QOE = {
    "area": ("qoe_area_mean", 3),
    "delay": ("qoe_delay_mean", 3),
    "window": ("qoe_window_mean", 3),
    "window = 0": ("qoe_window_share_0", 3),
    "TTFT p90 s": ("ttft_p90_s", 2),
    "TTFT p99 s": ("ttft_p99_s", 2),
    "longest delay s": ("completion_delay_max_s", 1),
    "tokens/s": ("tokens_per_s", 1),
    "preemptions/request": ("preemptions_per_request", 2),
    "rejected": ("rejected", 1),
    "unfinished": ("unfinished", 1),
}
#: Its columns that have intervals, where there are seeds enough.
_WITH_INTERVAL = ("area", "delay", "window")
#: Column of the second table -> tokens/s, of which the loss against the baseline is shown.
_THROUGHPUT = {
    "tokens/s lost while requests arrive %": "tokens_per_s_arriving",
    "over the makespan %": "tokens_per_s",
}
#: Column of the second table: whether 0 lies outside of the interval.
_DIFFERS = "differs from 0"
#: Column of the third table -> metric, factor, decimals.
COST = {
    "planning share %": ("planning_share", 100.0, 2),
    "adapter share %": ("adapter_share", 100.0, 2),
    "adapter ms/iteration": ("adapter_iteration_mean_s", 1000.0, 3),
    "p99 ms": ("adapter_iteration_p99_s", 1000.0, 2),
    "engine's iteration ms": ("adapter_engine_iteration_s", 1000.0, 1),
    "plans on the engine's thread": ("adapter_plans", 1.0, 0),
    "background plans": ("adapter_late_plans", 1.0, 0),
    "their age s": ("adapter_late_age_mean_s", 1.0, 2),
    "oldest s": ("adapter_late_age_max_s", 1.0, 2),
    "turned down": ("adapter_late_rejected", 1.0, 0),
    "fallbacks": ("adapter_fallbacks", 1.0, 1),
    "rescues": ("adapter_rescues", 1.0, 1),
    "vLLM's preemptions": ("adapter_engine_preemptions", 1.0, 1),
    "resumed from prefix cache %": ("adapter_resumed_cached_share", 100.0, 1),
    "client late p99 ms": ("send_lag_p99_s", 1000.0, 1),
}
_COST_WORDS = """\
What planning took. Both shares are of the engine thread's time. *Planning share*: the plans that
this thread makes itself, which `planning_share_limit` bounds. *Adapter share*: all that the adapter
does there, tracking requests and applying plans included; *adapter ms/iteration*: the same in
absolute terms; *p99*: the same in one iteration. The
engine's own iterations are longer for a larger batch, for more recomputation, and on a slower
machine. Where there are background plans, those on the engine's thread are the fast policy's,
greedy packing, which takes in newcomers meanwhile.
Turned down: background plans that came too late or did not fit any more.
Fallbacks: events such as errors, after which vLLM's own order or an older plan was followed, and
slow plans. Rescues: plans that moved nothing, each of them a fault. A client that
is late measures itself."""
_AGAINST_WORDS = (
    "On the same requests: ratio of mean QoE (`area`), paired difference, and tokens/s lost: "
    "between the first and the last arrival, and until the last token."
)
_INTERVAL_WORDS = (
    "Of the difference of `area` two things are told apart: whether half of its 95 % interval is "
    "at most {half_width:g}, the precision aimed at, and whether the interval leaves 0 out, which "
    "one in twenty does by chance alone. A wide interval may leave 0 out all the same; one that "
    "holds 0 is not to say that there is no difference."
)
_ONE_PAIR_WORDS = (
    "One pair of runs has no interval: how much of a difference is chance can't be said."
)


def baselines(study: DictConfig, part: str) -> list[str]:
    """The arms that a part's others are compared with."""
    return list(study.parts[part].get("against") or [study.baseline])


def write(
    results: pl.DataFrame, facts: LiveStudyFacts, folder: Path, docs: str | None
) -> tuple[str, list[Path]]:
    """
    Write ``live_PART.md`` and its figure for each part, ``live.md`` and ``table.csv``.

    Parameters
    ----------
    results
        A line per run: ``part``, ``arm``, ``load``, ``seed``, ``commit``,
        and what else :mod:`experiments.live.study` notes of it, and its summary.
    facts
        What else the documents say.
    folder
        The study's folder.
    docs
        Folder whose ``results/`` and ``figures/`` get copies; None for no copies.

    Returns
    -------
    tuple
        The tables, for the terminal; what was written into ``docs``.
    """
    write_atomically(folder / "table.csv", results.write_csv)
    texts: list[str] = []
    published: list[Path] = []
    for part in results["part"].unique(maintain_order=True):
        rows = results.filter(pl.col("part") == part)
        name = f"{_NAME}_{part}"
        picture = folder / f"{name}.png"
        draw(rows, picture)
        sections = _sections(rows, part, facts)
        texts += sections
        whole = [header(rows, part, facts), *sections, document.picture(part, picture)]
        text = document.paragraphs(*whole)
        published += document.publish(text, name, folder, docs, [picture])
    for place in [folder] if docs is None else [folder, Path(docs) / "results"]:
        document.write(_index(facts.study, place), place / f"{_NAME}.md")
    return "\n\n".join(texts), published + ([place / f"{_NAME}.md"] if docs is not None else [])


def _sections(rows: pl.DataFrame, part: str, facts: LiveStudyFacts) -> list[str]:
    half_width = facts.study.half_width
    qoe = qoe_table(rows)
    numbers = {
        name: decimals for name, (_, decimals) in _QOE.items() if qoe[name].dtype.is_numeric()
    }
    sections = ["## QoE at each load", markdown(qoe, numbers)]
    for baseline in baselines(facts.study, part):
        table = difference_table(rows, baseline, half_width)
        if table.is_empty():
            continue
        sections += [
            f"## Against {baseline}",
            f"{_AGAINST_WORDS} {_interval_words(table, half_width)}",
            markdown(table, {}),
        ]
    if "adapter_plans" in rows.columns:
        costs = {name: decimals for name, (_, _, decimals) in COST.items()}
        sections += [
            "## What planning took",
            _COST_WORDS,
            markdown(cost_table(rows), costs),
            faults(rows),
        ]
    return sections


def _interval_words(table: pl.DataFrame, half_width: float) -> str:
    if _DIFFERS in table.columns:
        return _INTERVAL_WORDS.format(half_width=half_width)
    return _ONE_PAIR_WORDS


def _index(study: DictConfig, folder: Path) -> str:
    """The page that leads to the parts whose documents lie in a folder."""
    lines = []
    for part, options in study.parts.items():
        if (folder / f"{_NAME}_{part}.md").exists():
            title = options.get("title", part)
            lines.append(f"[{part}]({_NAME}_{part}.md): {title}; engine {options.engine}")
    return document.paragraphs(
        f"# {study.question}",
        f"Written by `{COMMAND}`; do not edit. `live_study.part=NAME` makes one part.",
        document.bullets(lines),
    )


def qoe_table(rows: pl.DataFrame) -> pl.DataFrame:
    """
    Means over seeds at each load for each arm; of QoE with 95 % intervals, as text.

    Parameters
    ----------
    rows
        The runs of one part. With a single seed all columns are numbers.
    """
    metrics = [pl.col(metric).mean().alias(name) for name, (metric, _) in _QOE.items()]
    table: pl.DataFrame = _grouped(rows).agg(pl.len().alias("seeds"), *metrics)
    if not several_seeds(rows):
        return table
    intervals: dict[str, list[str]] = {name: [] for name in _WITH_INTERVAL}
    for _, group in _grouped(rows):
        for name, column in intervals.items():
            metric, decimals = _QOE[name]
            column.append(interval(*mean_ci(group[metric].to_numpy()), decimals))
    return table.with_columns(pl.Series(name, column) for name, column in intervals.items())


def difference_table(rows: pl.DataFrame, baseline: str, half_width: float) -> pl.DataFrame:
    """
    Each arm against the baseline at each load.

    Parameters
    ----------
    rows
        The runs of one part.
    baseline
        The arm to compare with.
    half_width
        Of the 95 % interval that is narrow enough. Whether it is, and whether the interval leaves
        0 out, are columns of their own, if any arm has an interval.
    """
    narrow = f"± ≤ {half_width:g}"
    lines = []
    for (load, arm), _ in _grouped(rows):
        if arm == baseline:
            continue
        area, base = paired(rows, arm, baseline, load, "qoe_area_mean")
        window, window_base = paired(rows, arm, baseline, load, "qoe_window_mean")
        if not area.size:
            continue
        difference, width = paired_difference(area, base)
        losses = {}
        for name, metric in _THROUGHPUT.items():
            rate, base_rate = paired(rows, arm, baseline, load, metric)
            # Very short runs deliver nothing before the last arrival.
            kept = np.divide(rate, base_rate, out=np.full(rate.shape, np.nan), where=base_rate > 0)
            losses[name] = interval(*mean_ci(100 * (1 - kept)), 1)
        lines.append(
            {
                "load": load,
                "arm": arm,
                "pairs": area.size,
                "ratio": f"{area.mean() / base.mean():.2f}",
                "difference": interval(difference, width, 3),
                narrow: _yes(width <= half_width) if np.isfinite(width) else None,
                _DIFFERS: _yes(abs(difference) > width) if np.isfinite(width) else None,
                "window difference": interval(*paired_difference(window, window_base), 3),
                **losses,
            }
        )
    table = pl.DataFrame(lines)
    if table.is_empty() or (table["pairs"] > 1).any():
        return table
    return table.drop(narrow, _DIFFERS)


def cost_table(rows: pl.DataFrame) -> pl.DataFrame:
    """What the adapter and the client took, for each arm at each load."""
    rows = rows.filter(pl.col("adapter_plans").is_not_null()).with_columns(
        (pl.col("adapter_engine_s") / pl.col("adapter_iterations")).alias(
            "adapter_engine_iteration_s"
        ),
        (pl.col("adapter_s") / pl.col("adapter_iterations")).alias("adapter_iteration_mean_s"),
    )
    metrics = [
        (factor * pl.col(metric).cast(pl.Float64)).fill_nan(None).mean().alias(name)
        for name, (metric, factor, _) in COST.items()
    ]
    table: pl.DataFrame = _grouped(rows).agg(metrics)
    return table


def faults(rows: pl.DataFrame) -> str:
    """
    Say in which runs vLLM had to take over because a plan moved nothing.

    Parameters
    ----------
    rows
        The runs of one part.
    """
    bad = rows.filter(pl.col("adapter_rescues").cast(pl.Float64).fill_null(0.0) > 0)
    if bad.is_empty():
        return "No faults: vLLM never had to take over because a plan moved nothing."
    runs = [
        f"{line['arm']} at load {line['load']:g}, seed {line['seed']}: "
        f"{line['adapter_rescues']:.0f} rescues"
        for line in bad.iter_rows(named=True)
    ]
    return f"**Faults.** Plans moved nothing and vLLM's own order took over: {'; '.join(runs)}."


def summary(results: pl.DataFrame) -> dict[str, float]:
    """Flat metrics: mean QoE, tokens/s and adapter share of each arm at each load."""
    found: dict[str, float] = {}
    metrics = ["qoe_area_mean", "qoe_window_mean", "tokens_per_s", "adapter_share"]
    present = [metric for metric in metrics if metric in results.columns]
    means = results.group_by("part", "arm", "load", maintain_order=True).agg(
        pl.col(present).cast(pl.Float64).mean()
    )
    for line in means.iter_rows(named=True):
        place = f"{line['part']}_{line['arm']}_at_{line['load']:g}"
        found |= {f"{place}_{name}": line[name] for name in present if line[name] is not None}
    return found


def _grouped(rows: pl.DataFrame) -> Any:
    order = {arm: k for k, arm in enumerate(rows["arm"].unique(maintain_order=True))}
    ordered = rows.with_columns(pl.col("arm").replace_strict(order).alias("_order"))
    return ordered.sort("load", "_order", "seed").group_by("load", "arm", maintain_order=True)


def paired(
    results: pl.DataFrame, arm: str, baseline: str, load: float, metric: str
) -> tuple[Any, Any]:
    """A metric of an arm and of the baseline on the seeds that both have, (k,) each."""
    there = pl.col("load") == load, pl.col("arm").is_in([arm, baseline])
    rows = results.filter(*there).select("arm", "seed", metric)
    both = with_baseline(rows, baseline, ["seed"], column=metric).drop_nulls().sort("seed")
    return both[metric].to_numpy(), both["base"].to_numpy()


def _yes(true: bool) -> str:
    return "yes" if true else "no"
