"""Engine files of one's own: what is missing is told in a sentence, before anything starts."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from experiments.cli import main
from experiments.commands import live
from experiments.configuration.compose import CONF_DIR, build, load_choice
from experiments.configuration.errors import UsageError
from experiments.live import run_store
from experiments.live.engine import check_engine

NEEDED = ("_target_", "name", "model", "flags", "profile", "saturated_tokens_per_s")


@pytest.fixture
def mine(tmp_path):
    """Write ``live_engine/mine.yaml``, the small OPT's file without some keys; its folder."""

    def write(*left_out, **other):
        config = OmegaConf.load(CONF_DIR / "live_engine" / "opt_tiny.yaml")
        for key in left_out:
            del config[key]
        path = tmp_path / "own" / "live_engine" / "mine.yaml"
        path.parent.mkdir(parents=True)
        OmegaConf.save(OmegaConf.merge(config, other), path)
        return str(tmp_path / "own")

    return write


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch):
    """A run that begins fails the test."""
    for module in (live, run_store):
        monkeypatch.setattr(module, "serve", lambda *_: pytest.fail("a run began"))


def say(capsys):
    """What stands on stderr: one line."""
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("key", NEEDED)
def test_a_missing_key_is_named(key, mine, capsys):
    """The file, the key, what it needs and where to begin: a sentence of ours, and status 2."""
    command = ["live", "--config-dir", mine(key), "live_engine=mine", "workload.rate=2"]
    assert main(command) == 2
    said = say(capsys)
    assert said.startswith(f"andes-opt live: live_engine/mine.yaml lacks {key} (")
    assert "): start from a copy of conf/live_engine/opt_tiny.yaml, which has all" in said


@pytest.mark.parametrize(
    "words",
    [
        ["live_overload", "live_study.parts.overload.engine=mine"],
        # Found although the part comes last.
        ["live_overload", "live_study.parts.smollm2.engine=mine"],
        ["live_fidelity", "live_engine=mine"],
        ["live_fidelity", "live_fidelity.engine=mine"],
    ],
)
def test_studies_find_it_before_their_first_run(words, mine, tmp_path, capsys):
    """A study looks at the files of all its engines at once, and keeps what it made before."""
    summary = tmp_path / "outputs" / words[0] / "summary.json"
    summary.parent.mkdir(parents=True)
    summary.write_text("{}")
    assert main(["study", *words, "--config-dir", mine("name")]) == 2
    assert "live_engine/mine.yaml lacks name (what results call the engine)" in say(capsys)
    assert summary.exists()


def test_a_part_that_is_not_made_needs_no_engine(mine, capsys):
    """With live_study.part only that part's engine is looked at."""
    words = ["live_overload", "live_study.parts.smollm2.engine=mine"]
    words += ["live_study.part=overload", "live_study.minutes=0"]
    assert main(["study", *words, "--config-dir", mine("name")]) == 1
    assert "no run was made; minutes = 0" in capsys.readouterr().err


def test_an_unknown_engine_of_a_study_is_told(capsys):
    """The names that there are, and the nearest."""
    words = ["live_overload", "live_study.parts.overload.engine=opt_tny"]
    assert main(["study", *words]) == 2
    assert "did you mean opt_tiny?" in say(capsys)


def test_all_that_is_missing_is_told_at_once(mine, capsys):
    """Several missing keys make one sentence; what is null counts as missing, the rate aside."""
    folder = mine("name", flags=None, model="facebook/opt-125m")
    assert main(["live", "--config-dir", folder, "live_engine=mine"]) == 2
    said = say(capsys)
    assert "lacks name (" in said
    assert ", model (a mapping" in said
    assert ", flags (" in said
    assert "profile" not in said
    assert "saturated_tokens_per_s" not in said


def test_complete_files_pass():
    """Ours pass, as does one that the command line completed; another class has other keys."""
    for path in (CONF_DIR / "live_engine").glob("*.yaml"):
        check_engine(path.stem)
    node = load_choice("live_engine", "opt_tiny")
    OmegaConf.set_struct(node, False)
    del node["name"]
    with pytest.raises(UsageError, match=r"live_engine/mine\.yaml lacks name"):
        check_engine("mine", node)
    check_engine("mine", OmegaConf.merge(node, {"name": "${oc.env:NAME}"}))
    check_engine("mine", OmegaConf.create({"_target_": "my.module.Engine"}))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("    base_s: 0.01\n", "", "live_engine: LatencyModel lacks 'base_s'."),
        ("start_s: 300.0", "start_sec: 3.0", "live_engine: LiveEngine has no 'start_sec'."),
    ],
)
def test_a_constructor_s_options_are_told_in_our_words(old, new, said):
    """What a class lacks, or does not have, is named without Python's words on calls."""
    text = (CONF_DIR / "live_engine" / "opt_tiny.yaml").read_text(encoding="utf-8")
    assert old in text
    node = OmegaConf.create(text.replace(old, new, 1))
    with pytest.raises(UsageError) as caught:
        build(OmegaConf.create({"live_engine": node}), "live_engine")
    assert str(caught.value) == said
