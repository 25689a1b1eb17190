"""``andes-opt study``: a question of ``conf/experiment``, answered by many runs and a document."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

from experiments.configuration.compose import CONF_DIR
from experiments.configuration.errors import UsageError, not_understood
from experiments.configuration.experiment import experiments, studies
from experiments.configuration.hydra_run import run_by_hydra
from experiments.configuration.overrides import beside_overrides, config_folders, hydra_options
from experiments.configuration.values import quoted
from experiments.runs.resume import resumable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from omegaconf import DictConfig

    from experiments.configuration.experiment import Experiment

_USAGE = """\
usage: andes-opt study NAME [key=value ...] [--multirun]

Answer a question by a grid of runs; what is there already is not made again. Writes NAME.md,
tables and figures to outputs/NAME and says which. Without options that change the study the
document also goes to docs/results; study.docs=FOLDER sends it elsewhere, and changed ones as well.

Studies
"""
#: What the help of one study ends with.
_HELP = """\
Examples
  andes-opt study {name}
  andes-opt study {name} study.tiny=true
  andes-opt study {name} study.docs=my_docs

study.tiny=true shows the form in seconds (live ones: minutes); study.docs=FOLDER is where the
document goes beside outputs/{name}; study.OPTION stands for {node}.OPTION. While an
option is changed, docs/results is written only if study.docs=docs asks for it."""
_EXAMPLES = """
andes-opt study NAME --help shows a study's options. Those of simulations take seconds to half an
hour of CPU time (docs/results says how long each took), portfolio 25 minutes, live ones hours.

Examples
  andes-opt study paper_rates study.tiny=true
  andes-opt study paper_capacity 'study.variants=[kv_12k]'
  andes-opt study live_overload live_study.minutes=55
"""


def main(arguments: Sequence[str]) -> None:
    """
    Make the study that the first argument names, or list the studies.

    Raises
    ------
    UsageError
        If there is no such study, or an override is wrong.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE + _listed() + _EXAMPLES, end="")
        return
    asked, *rest = arguments
    known = experiments([CONF_DIR, *config_folders(hydra_options(rest))])
    ours = {name: entry for name, entry in known.items() if entry.is_study}
    for name in asked.split(","):  # several of them in a sweep
        if name in known and name not in ours:
            command = known[name].command or "COMMAND"
            raise UsageError(f"{name} is no study: andes-opt {command} experiment={name} runs it.")
        if name not in ours:
            raise not_understood("study", name, ours, " ")
    owners = {ours[name].command or "simulate" for name in asked.split(",")}
    if len(owners) > 1:
        raise UsageError(f"{asked} not understood: these studies have different options.")
    _make(owners.pop(), asked, rest, ours[asked.split(",")[0]])


def main_of_alias(command: str, arguments: Sequence[str]) -> bool:
    """
    Make the study that another command's ``experiment=NAME`` asks for, and say how to ask now.

    Returns
    -------
    bool
        False, and nothing is done, if no study of that command is asked for.
    """
    asked = next((word for word in arguments if word.startswith("experiment=")), "")
    known = experiments([CONF_DIR, *config_folders(hydra_options(arguments))]) if asked else {}
    name = asked.partition("=")[2]
    ours = [known[part] for part in name.split(",") if part in known]
    if not any(entry.is_study and entry.command in ("", command) for entry in ours):
        return False
    print(f"andes-opt {command} {asked} is now andes-opt study {name}.", file=sys.stderr)
    rest = [word for word in arguments if word != asked]
    if not ours[0].command:  # a file of the user's that names no command
        _make(command, name, rest, ours[0])
    else:
        main([name, *rest])
    return True


def _listed() -> str:
    """Return a line for each study."""
    lines = studies()
    width = max(map(len, lines))
    return "".join(f"  {name:<{width}}  {meaning}\n" for name, meaning in lines.items())


def _make(command: str, name: str, arguments: Sequence[str], entry: Experiment) -> None:
    """Run Hydra on the configuration of the command that the study's file names."""
    # Whatever the study's node is called, `study.tiny=true` means the same.
    arguments = [re.sub(r"^study\.", f"{entry.node}.", word) for word in arguments]
    options = hydra_options(arguments)
    words = [f"experiment={name}"]
    if options.help:
        words.append(f"hydra.help.header={quoted(f'andes-opt study {name}: {entry.meaning}.')}")
        examples = _HELP.format(name=name, node=entry.node)
        words.append(f"hydra.help.footer={quoted(examples)}")
    run_by_hydra(command, beside_overrides(arguments, words), lambda: run)


@resumable
def run(config: DictConfig) -> dict[str, float]:
    """Make what the study lacks, write its files and documents, and return its summary."""
    return _maker(config)(config)


def _maker(config: DictConfig) -> Callable[[DictConfig], dict[str, float]]:
    """
    Return what makes the study that a configuration describes.

    Imported here: studies of simulations do without the packages that live ones need.
    """
    if "portfolio" in config:
        from experiments.solver_comparison import portfolio

        return portfolio.run
    if "live_study" in config:
        from experiments.live import study as live_study

        return live_study.run
    if "live_fidelity" in config:
        from experiments.live import fidelity

        return fidelity.run
    from experiments.studies import exact_vs_greedy, hindsight, study

    kinds = {
        "grid": study.served_rows,
        "capacity": study.capacity_rows,
        "jitter": study.jitter_rows,
        "exact_vs_greedy": exact_vs_greedy.rows,
    }
    if "bound" in config:
        kinds["hindsight"] = hindsight.rows_of
    return lambda config: study.run(config, kinds)
