"""The commands there are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Command:
    """
    A command: its line in the help, and its module.

    ``hydra`` tells apart commands with a configuration file, whose ``run`` takes the
    configuration, from plain ones, whose ``main`` takes the list of arguments.
    """

    help: str
    module: str
    hydra: bool = True


COMMANDS = {
    "simulate": Command(
        "serve a workload on a simulated engine under a policy", "experiments.commands.simulate"
    ),
    "emulate": Command(
        "serve a workload by vLLM's own scheduler in virtual time", "experiments.commands.emulate"
    ),
    "quality": Command(
        "compare solvers on instances: gap, certificate, time", "experiments.commands.quality"
    ),
    "capture": Command(
        "write the instances that a simulation solves to .npz files", "experiments.commands.capture"
    ),
    "hindsight": Command(
        "bound the window QoE of every scheduler, and the gap of policies to it",
        "experiments.commands.hindsight",
    ),
    "study": Command(
        "answer a question of conf/experiment: many runs, one document",
        "experiments.commands.study",
        False,
    ),
    "tune": Command(
        "search a policy's options on some seeds, report on others", "experiments.commands.tune"
    ),
    "calibrate": Command(
        "fit an engine profile to measured iterations", "experiments.commands.calibrate"
    ),
    "demo": Command(
        "run the main job: solver table, QoE table, figures", "experiments.commands.demo"
    ),
    "bench": Command(
        "send a workload to a live server and score its readers", "experiments.commands.bench"
    ),
    "live": Command(
        "run a workload on a live engine of its own, once", "experiments.commands.live"
    ),
    "serve": Command(
        "start vLLM's server with our scheduler in it", "experiments.commands.serve", False
    ),
    "live-demo": Command(
        "serve a real model: an answer, an overload, the QoE table",
        "experiments.commands.live_demo",
    ),
    "smollm": Command(
        "write a small real model for live runs to a folder", "experiments.commands.smollm", False
    ),
    "report": Command(
        "compare runs: tables, figures, a page with plots", "experiments.commands.report", False
    ),
    "list": Command(
        "show what conf/ offers: solvers, policies, engines ...",
        "experiments.commands.listing",
        False,
    ),
    "completion": Command(
        "print a shell's script for completion by tab", "experiments.commands.completion", False
    ),
    "versions": Command(
        "print the versions of everything that matters", "experiments.commands.versions", False
    ),
}
