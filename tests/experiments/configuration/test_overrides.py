"""What users type, and files of their own: taken, or refused in one sentence that helps."""

from __future__ import annotations

import pytest

from experiments.cli import main
from experiments.configuration.compose import CONF_DIR, load
from experiments.configuration.errors import UsageError
from experiments.configuration.overrides import check_overrides, for_hydra

TRACE = "arrival_s,prompt_tokens,output_tokens\n0,3,4\n1,5,6\n"


def refusal(*words):
    """The sentence that a command line is refused with."""
    with pytest.raises(UsageError) as error:
        check_overrides(words[0], for_hydra(words[1:]))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "name", ["tr/rate=2.csv", "run (1).csv", "umläut.csv", "it's.csv", "~/x.csv"]
)
def test_a_trace_of_any_name_is_replayed(name, tmp_path, monkeypatch):
    """On the command line, in an output folder, and from Python."""
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / name.removeprefix("~/")
    path.parent.mkdir(exist_ok=True)
    path.write_text(TRACE)
    words = ["workload=trace", f"workload.path={name}", f"hydra.run.dir=out {name[:3]}=1"]
    assert main(["simulate", *words, "policy=fcfs"]) == 0
    assert load("simulate", words[:2]).workload.path.endswith(name.removeprefix("~"))


def test_a_home_in_a_file_of_ones_own_is_found(tmp_path, monkeypatch):
    """``~`` counts in configuration files, too, where no command line expands it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "t.csv").write_text(TRACE)
    folder = tmp_path / "own" / "workload"
    folder.mkdir(parents=True)
    text = (CONF_DIR / "workload" / "trace.yaml").read_text()
    (folder / "mine.yaml").write_text(text.replace("path: ???", "path: ~/t.csv"))
    words = ["--config-dir", str(folder.parent), "workload=mine", "policy=fcfs"]
    assert main(["simulate", *words, "hydra.run.dir=out"]) == 0


@pytest.mark.parametrize("url", ["http://[::1]:8000/v1", "http://h/v1?api-version=1"])
def test_an_address_needs_no_quotes(url):
    """Brackets and question marks are parts of addresses."""
    assert load("bench", [f"endpoint.url={url}"]).endpoint.url == url
    check_overrides("bench", for_hydra([f"endpoint.url={url}"]))


def test_what_may_mean_more_is_shown_quoted():
    """The line can be copied to the shell."""
    said = refusal("simulate", "workload.path=ä,b.csv")
    assert """write 'workload.path="ä,b.csv"'""" in said
    assert "need key=value" in refusal("simulate", "workload")


def test_options_may_stand_anywhere(tmp_path):
    """Hydra's own options may follow overrides, or stand between them."""
    words = [
        "seed=1",
        "--config-dir",
        str(tmp_path),
        "workload.rate=2",
        "--multirun",
        "policy=fcfs",
    ]
    assert for_hydra(words) == [
        *("--config-dir", str(tmp_path), "--multirun"),
        *("seed=1", "workload.rate=2", "policy=fcfs"),
    ]


@pytest.mark.parametrize("endpoint", ["vllm", "openai"])
def test_a_new_field_of_a_body_wants_a_plus(endpoint):
    """Where any field may be the sentence shows how to add one, elsewhere what there is."""
    said = refusal("bench", f"endpoint={endpoint}", "endpoint.body.top_p=0.9")
    assert "+endpoint.body.top_p=0.9" in said
    check_overrides("bench", [f"endpoint={endpoint}", "+endpoint.body.top_p=0.9"])
    assert "need one of endpoint." in refusal("bench", "endpoint.bodi=1")


BROKEN = [
    (b"a:\n\tb: 1\n", "engine/mine.yaml, line 2: no YAML"),
    (b"a: 1\na: 2\n", "engine/mine.yaml, line 2: no YAML: found duplicate key a"),
    (b"name: x\nsource: \xfcml\n", "engine/mine.yaml, line 2: no UTF-8 text"),
    (b"a: [1\n", "engine/mine.yaml, line 2: no YAML"),
    (b"\x00", "engine/mine.yaml: no YAML"),
    (b"a: *b\n", "engine/mine.yaml, line 1: no YAML"),
]
NO_ENGINE = [
    (b"", "engine/mine.yaml is empty"),
    (b"# nothing but words\n", "engine/mine.yaml is empty"),
]


@pytest.fixture
def own_folder(tmp_path):
    """A folder of configuration files with an experiment that builds on an engine."""
    for name in ("engine", "experiment"):
        (tmp_path / name).mkdir()
    (tmp_path / "experiment" / "outer.yaml").write_text(
        "# @package _global_\n# simulate: x\ndefaults:\n  - override /engine: mine\n"
    )
    return tmp_path


@pytest.mark.parametrize(("content", "words"), [*BROKEN, *NO_ENGINE])
def test_a_broken_file_of_ones_own_is_named(content, words, own_folder):
    """No YAML, no UTF-8, nothing in it, or not what it is chosen for: the file, and the line."""
    (own_folder / "engine" / "mine.yaml").write_bytes(content)
    assert words in refusal("simulate", "--config-dir", str(own_folder), "engine=mine")


@pytest.mark.parametrize(("content", "words"), BROKEN)
def test_a_broken_file_below_another_is_named(content, words, own_folder):
    """Also where no word of the command line names it."""
    (own_folder / "engine" / "mine.yaml").write_bytes(content)
    assert words in refusal("simulate", "--config-dir", str(own_folder), "experiment=outer")


def test_a_file_without_a_class_is_told(own_folder, capsys):
    """What it is for, and what it lacks."""
    (own_folder / "engine" / "mine.yaml").write_bytes(b"name: x\n")
    assert main(["simulate", "--config-dir", str(own_folder), "engine=mine"]) == 2
    assert "engine: its file has no _target_" in capsys.readouterr().err


def test_an_experiment_of_ones_own_that_can_not_be_read_is_named(tmp_path, capsys):
    """Latin-1 in its first line, on simulate and on study."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_bytes(b"# simulate: \xfcml\nseed: 3\n")
    words = ["--config-dir", str(tmp_path), "experiment=mine"]
    assert main(["simulate", *words]) == 2
    assert "mine.yaml, line 1: no UTF-8 text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["bench", "prompt_seed=-1"], "prompt_seed = -1 not understood"),
        (["bench", "timeout_s=-1"], "timeout_s = -1"),
        (["bench", "wait_s=-1"], "wait_s = -1"),
        (["bench", "idle_cost=-1"], "idle_cost = -1"),
        (["bench", "seed=-1"], "seed = -1"),
        (["simulate", "seed=-1"], "seed = -1"),
        (["simulate", f"seed={2**63}"], f"seed = {2**63}"),
        (["simulate", "workload.requests=99999999999999"], "Unable to allocate"),
        (["capture", "capture=-1"], "capture"),
        (["quality", "count=-1", "families=[hard]"], "count"),
        (["quality", "seed=-1", "families=[hard]"], "seed"),
        (["quality", "capture=0"], "capture"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(words, said, capsys):
    """Before anything is sent or solved."""
    assert main(words) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count("\n") == 1
