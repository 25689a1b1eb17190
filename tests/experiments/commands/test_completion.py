"""Completion by tab: what is offered, and that real shells take it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from experiments import ROOT
from experiments.cli import main
from experiments.commands.completion import SCRIPTS, candidates
from experiments.commands.registry import COMMANDS
from experiments.configuration.compose import groups
from experiments.configuration.launchers import LAUNCHERS

#: How a shell is asked what it would offer for a line; bash's function is called as tab calls it.
ASK = {
    "bash": """
eval "$(andes-opt completion bash)"
COMP_LINE=$LINE COMP_POINT=${#LINE} _andes_opt
printf '%s\\n' "${COMPREPLY[@]}"
""",
    "fish": 'andes-opt completion fish | source; complete -C "$LINE"',
    "zsh": """
autoload -Uz compinit && compinit -u -D
eval "$(andes-opt completion zsh)"
compadd() { shift 4; print -l -- "$@" }  # -Q -S '' --
words=(${(z)LINE}) CURRENT=${#words}
_andes_opt
""",
}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("andes-opt sim", ["simulate "]),
        ("andes-opt simulate pol", ["policy=", "policy."]),
        ("andes-opt simulate policy=b", ["policy=buffer_aware"]),
        ("andes-opt simulate --multirun policy=fcfs,thr", ["policy=fcfs,thrift"]),
        ("andes-opt simulate workload.ra", ["workload.rate="]),
        ("andes-opt simulate policy=round_robin policy.", ["policy.quantum_tokens="]),
        ("andes-opt simulate policy=nosuch policy.pree", ["policy.preemption_cap="]),
        ("andes-opt simulate oracle=", ["oracle=true", "oracle=false"]),
        ("andes-opt simulate --mul", ["--multirun "]),
        ("andes-opt simulate workload.rate=3", []),
        ("andes-opt bench hydra/launcher=", ["hydra/launcher=basic"]),
        ("andes-opt list solv", ["solvers "]),
        ("andes-opt completion z", ["zsh "]),
        ("andes-opt nosuch x", []),
        ("andes-opt simulate 'policy=fc", ["policy=fcfs"]),
    ],
)
def test_what_is_offered(line, found):
    """Commands, groups, names, options of what was chosen before, switches, kinds."""
    assert candidates(line) == found


def test_everything_is_offered():
    """All commands, all names of a group, all launchers; no command twice."""
    commands = candidates("andes-opt ")
    assert [name.strip() for name in commands[:-2]] == list(COMMANDS)
    assert candidates("andes-opt quality engine=") == [f"engine={n}" for n in groups()["engine"]]
    launchers = [f"hydra/launcher={name}" for name in LAUNCHERS]
    assert candidates("andes-opt simulate hydra/launcher=") == launchers
    for name, command in COMMANDS.items():
        assert not command.hydra or "hydra.run.dir=" in candidates(f"andes-opt {name} ")


# CI has bash; the others are tried where they are.
@pytest.mark.parametrize(
    "shell", [shell for shell in ASK if shell == "bash" or shutil.which(shell)]
)
def test_a_shell_completes(shell, tmp_path):
    """The script as the help says to use it, in the real shell."""
    (tmp_path / "andes-opt").write_text(
        f'#!/bin/sh\nexec {sys.executable} -m experiments.cli "$@"\n'
    )
    (tmp_path / "andes-opt").chmod(0o755)
    arguments = {"zsh": ["-f"], "bash": ["--norc"], "fish": ["--no-config"]}[shell]
    for line, expected in (
        ("andes-opt simulate policy=round", "policy=round_robin"),
        ("andes-opt versio", "versions"),
    ):
        done = subprocess.run(
            [shell, *arguments, "-c", ASK[shell]],
            env={
                **os.environ,
                "PATH": f"{tmp_path}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "LINE": line,
                "HOME": str(tmp_path),
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.stderr == ""
        offered = [word.strip() for word in done.stdout.splitlines() if word.strip()]
        # Bash breaks words at = and is given what follows.
        assert offered == [expected.partition("=")[2] or expected if shell == "bash" else expected]


@pytest.mark.parametrize("shell", SCRIPTS)
def test_the_script_of_each_shell_asks_for_the_line(shell, capsys):
    """What is printed calls the query."""
    assert main(["completion", shell]) == 0
    assert "andes-opt completion query" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [([], "required: shell"), (["tcsh"], "'tcsh' (choose from"), (["bash", "zsh"], "zsh")],
)
def test_a_wrong_shell_is_told_in_one_line(arguments, said, capsys):
    """No shell, an unknown one with the valid ones, two."""
    assert main(["completion", *arguments]) == 2
    message = capsys.readouterr().err
    assert said in message
    assert len(message.splitlines()) == 1
