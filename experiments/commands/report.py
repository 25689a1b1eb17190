"""``andes-opt report``: one table of many runs, compared, drawn and written down."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from experiments.configuration.errors import RunsFailed
from experiments.configuration.plain_arguments import PlainParser
from experiments.report.document import USUAL_BASELINE, USUAL_SOLVER, write_report
from experiments.report.reading import read
from experiments.runs.files import printable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


_ABOUT = """
Compare the runs in some folders: tables, figures, a page with plots.

Rows of any command are read; runs that are not complete are left out. Means come with 95 %
intervals (Student's t) over seeds, or over instances for solvers; differences are paired, and
p is that of the paired t-test, corrected by Holm for all comparisons of a metric.
"""
_EXAMPLES = """
andes-opt report demo_output --output demo_report --baseline "andes (greedy)"
andes-opt simulate --multirun policy=fcfs,andes tokens=true timeline=true hydra.sweep.dir=sweep
andes-opt report sweep --request 17
"""


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = PlainParser("report", _ABOUT, _EXAMPLES)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="runs or sweeps")
    parser.add_argument(
        "--baseline",
        metavar="NAME",
        help=f"policy or solver to compare with (default: {USUAL_BASELINE}, {USUAL_SOLVER})",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("report"), help="folder to write to (default: report)"
    )
    parser.add_argument("--request", type=int, metavar="N", help="request whose timeline is shown")
    return parser.parse_args(words)


def main(words: Sequence[str]) -> None:
    """
    Write the report that the command line asks for, and print the comparison.

    Raises
    ------
    UsageError, FileNotFoundError, ValueError
        As :func:`experiments.report.document.report`.
    RunsFailed
        If some runs could not be read, after the report on the others.
    """
    arguments = _arguments(words)
    results = read(arguments.folders)
    text = write_report(
        results,
        arguments.folders,
        arguments.output,
        baseline=arguments.baseline,
        request=arguments.request,
    )
    print(text)
    print()
    for path in sorted(arguments.output.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            print(printable(path))
    if results.unreadable:
        count = len(results.unreadable)
        runs = "a run is" if count == 1 else f"{count} runs are"
        raise RunsFailed(f"{runs} left out: {' '.join(results.unreadable)}")
