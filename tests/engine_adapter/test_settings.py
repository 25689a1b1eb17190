"""The adapter's options."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import OmegaConf

import conf
from andes_opt.latency import LatencyModel
from andes_opt.policy.andes import Andes
from andes_opt.policy.round_robin import RoundRobin
from andes_opt.qoe import QoETarget
from engine_adapter.settings import KEY, Background, Settings, instantiate, read_settings

SOME = {"_target_": "x.Y"}


@pytest.mark.parametrize("config", [None, {}, {"other plug-in": 1}, {KEY: {}}, object()])
def test_defaults(config: Any) -> None:
    """Nothing has to be said."""
    settings = read_settings(config)
    assert settings == Settings()
    assert settings.target == QoETarget(1.0, 4.8)


def test_all() -> None:
    """What comes as JSON arrives as objects."""
    config = {
        "policy": {"_target_": "andes_opt.policy.round_robin.RoundRobin", "quantum_tokens": 7},
        "background": {"policy": {"_target_": "x.Y"}, "deadline_s": 2, "duty_cycle": 0.1},
        "target": {"ttft_s": 2.0, "tds": 3.0},
        "latency": {
            "base_s": 0.02,
            "per_request_s": 0.0,
            "per_context_token_s": 0.0,
            "per_prefill_token_s": 1e-4,
        },
        "learn_latency": False,
        "headroom_blocks": 3,
        "max_candidates": 10,
        "planning_share_limit": 0.5,
        "on_mismatch": "fall_back",
        "report_path": "adapter.json",
    }
    settings = read_settings({KEY: json.loads(json.dumps(config))})
    assert settings.background == Background({"_target_": "x.Y"}, deadline_s=2, duty_cycle=0.1)
    assert settings.target == QoETarget(2.0, 3.0)
    assert settings.latency == LatencyModel(0.02, 0.0, 0.0, 1e-4)
    assert isinstance(instantiate(settings.policy), RoundRobin)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("fast", "need a mapping"),
        ({"polciy": {}}, "polciy not understood: need one of policy"),
        ({"planning_share_limit": 0.0}, "planning_share_limit = 0.0 not understood"),
        ({"planning_share_limit": 1.5}, "planning_share_limit = 1.5 not understood"),
        ({"headroom_blocks": -1}, "headroom_blocks = -1 not understood"),
        ({"max_candidates": 0}, "max_candidates = 0 not understood"),
        ({"on_mismatch": "hope"}, "need one of refuse, fall_back"),
        ({"target": {"ttft_s": -1, "tds": 1}}, "ttft_s"),
        ({"target": {"speed": 1}}, "speed"),
        ({"background": {"policy": SOME, "duty_cycle": 2}}, "background.duty_cycle = 2"),
        ({"background": {"policy": SOME, "deadline_s": 0}}, "background.deadline_s = 0"),
        ({"background": {}}, "policy"),
        ({"background": {"policy": "thrift"}}, "background.policy = 'thrift' not understood"),
        ({"background": True}, "background = True not understood: need a mapping"),
        ({"target": 5}, "target = 5 not understood: need a mapping"),
        ({"latency": [1]}, r"latency = \[1\] not understood: need a mapping"),
        ({"policy": "thrift"}, "policy = 'thrift' not understood: need a mapping with _target_"),
        ({"policy": {"solver": SOME}}, "policy = .* not understood: need a mapping with _target_"),
    ],
)
def test_wrong(config: Any, sentence: str) -> None:
    """A wrong option is named in one sentence."""
    with pytest.raises(ValueError, match=sentence):
        read_settings({KEY: config})


@pytest.mark.parametrize("name", ["default", "background"])
def test_conf(name: str) -> None:
    """The files of conf/live name every option, and the first of them its default."""
    folder = Path(conf.__file__).parent
    with hydra.initialize_config_dir(str(folder), version_base="1.3"):
        composed = hydra.compose(
            overrides=[
                f"+live={name}",
                "+policy=round_robin",
                "+solver=greedy",
                "+objective=average_qoe",
            ]
        )
    config = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(config, dict)
    options = config["live"]
    settings = read_settings({KEY: options})
    assert set(options) == {item.name for item in fields(Settings)} | {"planner_share"}
    for item in fields(Settings):
        if item.name not in {"policy", "background"}:
            assert getattr(settings, item.name) == getattr(Settings(), item.name), item.name
    if name == "default":
        assert isinstance(instantiate(settings.policy), RoundRobin)
        assert settings.background is None
    else:
        assert isinstance(instantiate(settings.policy), Andes)
        assert settings.background == Background(config["policy"])


def test_the_old_name_of_the_limit(caplog: pytest.LogCaptureFixture) -> None:
    """For one release ``planner_share`` is taken for ``planning_share_limit``, and says so once."""
    assert read_settings({KEY: {"planner_share": None}}) == Settings()
    assert not caplog.messages
    assert read_settings({KEY: {"planner_share": 0.2}}) == Settings(planning_share_limit=0.2)
    assert caplog.messages == [
        "andes_opt.planner_share is now planning_share_limit; the next release drops the old name."
    ]


def test_default_policy() -> None:
    """Told nothing, the adapter packs greedily, as the paper does."""
    assert isinstance(instantiate(Settings().policy), Andes)


def test_latency_of_an_engine_profile() -> None:
    """A latency that a configuration builds elsewhere will do."""
    spec = {
        "_target_": "andes_opt.latency.LatencyModel",
        "base_s": 1.0,
        "per_request_s": 0.0,
        "per_context_token_s": 0.0,
        "per_prefill_token_s": 0.0,
    }
    assert read_settings({KEY: {"latency": spec}}).latency == LatencyModel(1.0, 0.0, 0.0, 0.0)


def test_instantiate_nested() -> None:
    """Objects are built from the inside out, in lists too; what has no target stays as it is."""
    spec = {"a": [{"_target_": "andes_opt.qoe.QoETarget", "ttft_s": 1.0, "tds": 2.0}], "b": 3}
    assert instantiate(spec) == {"a": [QoETarget(1.0, 2.0)], "b": 3}


@pytest.mark.parametrize(
    "target", ["nothing", "no.such.module.Class", "andes_opt.qoe.NoSuchClass", ""]
)
def test_unknown_target(target: str) -> None:
    """A name that can't be found is named."""
    with pytest.raises(ValueError, match="_target_ = "):
        instantiate({"_target_": target})


def test_wrong_argument() -> None:
    """An argument that a class does not take is named together with the class."""
    with pytest.raises(ValueError, match=r"RoundRobin.*quantum"):
        instantiate({"_target_": "andes_opt.policy.round_robin.RoundRobin", "quantum": 1})
