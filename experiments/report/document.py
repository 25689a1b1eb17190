"""The document of a report: one table of many runs, compared, drawn and written down."""

from __future__ import annotations

import shlex
from html import escape
from typing import TYPE_CHECKING, Any

import polars as pl

from experiments.analysis.document import bullets, paragraphs, section, write
from experiments.analysis.figures import drawn, looks
from experiments.analysis.markdown import markdown
from experiments.configuration.errors import UsageError, not_understood
from experiments.report import studies
from experiments.report import tables as shown
from experiments.report.figures import save_for_print
from experiments.report.page import page
from experiments.report.reading import read
from experiments.report.sections import SectionData, sections
from experiments.report.series import together
from experiments.report.statistics import compare, metrics_of
from experiments.runs.environment import commit_words
from experiments.runs.files import TOKENS, printable, write_atomically, write_text
from experiments.runs.progress import bar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from experiments.report.reading import Results, ServedRun
    from experiments.report.sections import Section, View

#: What others are compared with unless somebody says otherwise.
USUAL_BASELINE, USUAL_SOLVER = "fcfs", "greedy"

#: Longer tables are folded up on the page.
_LONG_TABLE = 40


def report(folders: Sequence[Path], output: Path, **options: Any) -> str:
    """
    Read runs, compare them, and write the report.

    Parameters
    ----------
    folders
        Folders of runs or of sweeps.
    output, **options
        As for :func:`write_report`.

    Raises
    ------
    FileNotFoundError, ValueError
        As :func:`experiments.report.reading.read`.
    UsageError
        As :func:`write_report`.
    """
    return write_report(read(folders), folders, output, **options)


def write_report(
    results: Results,
    folders: Sequence[Path],
    output: Path,
    *,
    baseline: str | None = None,
    request: int | None = None,
) -> str:
    """
    Compare the runs that were read, and write the report.

    Parameters
    ----------
    results
        What was read.
    folders
        From which folders.
    output
        Where ``report.html``, ``report.md``, CSV files and ``figures/`` go.
    baseline
        The policy, as rows show it, or solver that others are compared with; None for fcfs
        and greedy where there are such.
    request
        The request whose timeline is shown; None to choose one.

    Returns
    -------
    str
        What was read and the comparison, as text.

    Raises
    ------
    UsageError
        If nothing is named like the baseline, or the request has no timeline.
    """
    arms = sorted({run.arm for run in results.runs})
    solvers = sorted(set(results.answers["solver"])) if results.answers.height else []
    studied = list(studies.arms(results.measured))
    compared = {"policies": arms, "solvers": solvers, "arms of studies": studied}
    known = list(dict.fromkeys(name for names in compared.values() for name in names))
    if baseline is not None and baseline not in known:
        raise not_understood("--baseline", baseline, known, " ")
    if request is not None:
        _check_request(results.runs, request)
    base = _first_of(arms, baseline, USUAL_BASELINE)
    base_solver = _first_of(solvers, baseline, USUAL_SOLVER)
    look = looks(arms if base is None else [base, *(arm for arm in arms if arm != base)])

    (output / "figures").mkdir(parents=True, exist_ok=True)
    tables: dict[str, pl.DataFrame] = {}
    comparison = pl.DataFrame()
    if base is not None:
        metrics = metrics_of(results.runs).sort("setting", "rate", "arm", "seed")
        names = [name for name in metrics.columns[4:] if metrics[name].null_count() < len(metrics)]
        ordered = metrics.sort(
            "setting", "rate", pl.col("arm").replace_strict({a: k for k, a in enumerate(look)})
        )
        comparison = compare(ordered, names, base, by=["setting", "rate"])
        _write_csv(output, {"runs": metrics, "comparison": comparison})
        tables |= _policy_tables(comparison, base)
    if base_solver is not None:
        of_solvers = shown.compare_solvers(results.answers, base_solver)
        _write_csv(output, {"solvers": of_solvers})
        tables["Solvers"] = shown.solvers(of_solvers, results.answers, base_solver)

    base_study = _first_of(studied, baseline, USUAL_BASELINE)
    if base_study is not None:
        of_studies = studies.statistics(results.measured, base_study)
        _write_csv(output, {"studies": of_studies})
        tables |= studies.tables(of_studies, base_study)

    data = SectionData(results, comparison, look, looks(solvers), base, request)
    made, missing = sections(data)
    pictures = _draw(made, output / "figures")
    sentences = _sentences(results, base, base_solver)
    used = dict(zip(compared, (base, base_solver, base_study), strict=True))
    if baseline in arms or baseline in studied:
        del used["solvers"]  # nobody means a solver then
    elif baseline in solvers:
        used = {}
    sentences += [
        f"None of the {kind} is called {baseline}: they are compared with {name}."
        for kind, name in used.items()
        if baseline is not None and name not in (None, baseline)
    ]
    text = _markdown_report(folders, sentences, tables, pictures, missing)
    write(text, output / "report.md")
    opening = _opening(folders, sentences, tables, missing)
    html = page("andes-opt report", opening, look, made)
    write_text(output / "report.html", html)
    printed = (f"{name}\n\n{markdown(table, {})}" for name, table in tables.items())
    lacking = "\n".join(["Left out for want of data", *missing]) if missing else ""
    return paragraphs("\n".join(sentences), *printed, lacking)


def _check_request(runs: Sequence[ServedRun], request: int) -> None:
    """
    Refuse a request that has no timeline.

    Raises
    ------
    UsageError
        If no run holds it, or none delivered anything to it.
    """
    # Where runs recorded tokens only these are shown.
    timelines = [run for group in together(runs, TOKENS) for run in group] or runs
    if not timelines:
        raise UsageError(f"--request={request} not understood: no run has rows per request.")
    rows = pl.concat([run.rows.select("request", "first_token_s") for run in timelines])
    of_request = rows.filter(pl.col("request") == request)
    if of_request.is_empty():
        numbers = rows["request"].to_list()
        raise UsageError(
            f"--request={request} not understood: "
            f"runs hold requests {min(numbers)} to {max(numbers)}."
        )
    if of_request["first_token_s"].null_count() == of_request.height:
        raise UsageError(f"--request={request} has no timeline: no run delivered a token to it.")


def _first_of(names: Sequence[str], wanted: str | None, usual: str) -> str | None:
    for name in (wanted, usual):
        if name in names:
            return name
    return names[0] if names else None


def _policy_tables(comparison: pl.DataFrame, baseline: str) -> dict[str, pl.DataFrame]:
    tables = {}
    for setting in comparison["setting"].unique(maintain_order=True):
        tables[f"QoE: {setting}"] = shown.levels(comparison, setting)
        differences = shown.differences(comparison, setting, baseline)
        if differences.height:
            tables[f"Difference to {baseline}: {setting}"] = differences
    return tables


def _draw(made: Sequence[Section], folder: Path) -> list[tuple[str, str]]:
    """Draw what is printed, as PNG and PDF; titles and names of the PNG files."""
    pictures = []
    with bar(sum(view.printed for each in made for view in each.views), "drawing") as progress:
        for each in made:
            views = [view for view in each.views if view.printed]
            for k, view in enumerate(views, start=1):
                stem = each.key if len(views) == 1 else f"{each.key}_{k}"
                name = f"{stem}.png"

                def draw(view: View = view, stem: str = stem) -> None:
                    save_for_print(view.draw(), folder / stem)

                if drawn(folder / name, draw):
                    title = f"{each.title}: {view.label}" if view.label else each.title
                    pictures.append((title, name))
                progress.update()
    return pictures


def _write_csv(output: Path, tables: Mapping[str, pl.DataFrame]) -> None:
    for name, table in tables.items():
        write_atomically(output / f"{name}.csv", table.write_csv)


def _paired_seeds(runs: Sequence[ServedRun], base: str) -> int:
    """How many seeds some other arm has in common with the baseline at one setting and rate."""
    at_base = {(run.setting, run.rate, run.seed) for run in runs if run.arm == base}
    others = {(run.setting, run.rate, run.seed) for run in runs if run.arm != base}
    return len({seed for _, _, seed in at_base & others})


def _sentences(results: Results, base: str | None, base_solver: str | None) -> list[str]:
    seeds = {run.seed for run in results.runs}
    commits = {
        commit_words(environment) for environment in results.environments if environment.get("git")
    }
    count = len(results.environments)
    said = [f"{count} complete run{'s' if count != 1 else ''}."]
    if base is not None:
        pairs = _paired_seeds(results.runs, base)
        words = f"{pairs} seed{'s' if pairs != 1 else ''}"
        said.append(f"Policies are compared with {base}, paired over {words}.")
        if len(seeds) < 2:
            said.append("One seed says nothing about spread: no intervals, no tests.")
        else:
            said.append(
                "± is the half-width of the 95 % interval; p is the paired t-test's, corrected "
                f"by Holm, with a star below {shown.SIGNIFICANT}."
            )
    if base_solver is not None:
        said.append(f"Solvers are compared with {base_solver}, paired over instances.")
    if results.measured.height:
        said.append("Studies' numbers are means over seeds, paired where they are compared.")
    if commits:
        said.append(f"Code: {', '.join(sorted(commits))}.")
    return said + list(results.notes)


def _command(folders: Sequence[Path]) -> str:
    return shlex.join(["andes-opt", "report", *(str(printable(folder)) for folder in folders)])


def _markdown_report(
    folders: Sequence[Path],
    sentences: Sequence[str],
    tables: Mapping[str, pl.DataFrame],
    pictures: Sequence[tuple[str, str]],
    missing: Sequence[str],
) -> str:
    return paragraphs(
        "# andes-opt report",
        f"`{_command(folders)}`",
        bullets(sentences),
        *(section(name, markdown(table, {})) for name, table in tables.items()),
        *(section(title, f"![{title}](figures/{name})") for title, name in pictures),
        section("Left out for want of data", bullets(missing)) if missing else "",
    )


def _opening(
    folders: Sequence[Path],
    sentences: Sequence[str],
    tables: Mapping[str, pl.DataFrame],
    missing: Sequence[str],
) -> str:
    parts = [f"<p><code>{escape(_command(folders))}</code></p>"]
    parts += [f"<p>{escape(' '.join(sentences))}</p>"]
    for name, table in tables.items():
        is_open = " open" if table.height <= _LONG_TABLE else ""
        parts.append(
            f"<details{is_open}><summary>{escape(name)}</summary>\n"
            f'<div class="scroll">{shown.html(table)}</div></details>'
        )
    if missing:
        items = "".join(f"<li>{escape(sentence)}</li>" for sentence in missing)
        parts.append(f"<h3>Left out for want of data</h3><ul>{items}</ul>")
    return "\n".join(parts)
