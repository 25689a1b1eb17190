"""vLLM's own ``serve``, and what is told before an engine starts."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from engine_adapter.serve import complaint_about
from engine_adapter.settings import describe

if TYPE_CHECKING:
    from live_stepping import Start

OURS = "engine_adapter.scheduler.AndesScheduler"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vLLM with everything, whatever is installed."""
    monkeypatch.setattr("engine_adapter.internals.check_installed", lambda: None)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"scheduling_policy": "priority"}, "--scheduling-policy priority not understood"),
        ({"scheduling_policy": "priority", "scheduler_cls": None}, None),
        ({"additional_config": {"andes_opt": {"polcy": 1}}}, "andes_opt.polcy not understood"),
        (
            {
                "scheduling_policy": "priority",
                "additional_config": {"andes_opt": {"on_mismatch": "fall_back"}},
            },
            None,
        ),
    ],
)
def test_flags_are_checked(changes: dict[str, Any], expected: str | None) -> None:
    """
    What the flags tell is told by the flags, and only about our scheduler.

    A regression test: a scheduling policy was refused after two minutes, inside a log.
    """
    arguments = {"scheduler_cls": OURS, "scheduling_policy": "fcfs", "additional_config": {}}
    found = complaint_about(SimpleNamespace(**{**arguments, **changes}))
    assert (found is None) == (expected is None)
    assert expected is None or expected in str(found)


def test_a_vllm_that_lacks_something(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused before it starts, unless vLLM's own scheduling is asked for in that case."""
    from engine_adapter.internals import Incompatible

    def lacking() -> None:
        raise Incompatible("vLLM 9 lacks what the adapter touches: wheels.")

    monkeypatch.setattr("engine_adapter.internals.check_installed", lacking)
    arguments = SimpleNamespace(
        scheduler_cls=OURS, scheduling_policy="fcfs", additional_config=None
    )
    found = complaint_about(arguments)
    assert found is not None and "lacks" in found and "fall_back" in found
    arguments.additional_config = {"andes_opt": {"on_mismatch": "fall_back"}}
    assert complaint_about(arguments) is None


def test_a_policy_in_words() -> None:
    """The log names a policy with its solver and objective."""
    spec = {"_target_": "a.Andes", "solver": {"_target_": "b.Exact", "dt": 3}, "share": 0.1}
    assert describe(spec) == "a.Andes (solver b.Exact)"
    assert describe({"_target_": "a.FCFS"}) == "a.FCFS"


@pytest.mark.live
@pytest.mark.parametrize("slow", [False, True])
def test_compiling_is_said(slow: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A cold start has a line in the log while it lasts, a warm one has none."""
    from engine_adapter.scheduler import said_if_slow

    logging.getLogger("vllm").propagate = True
    with (
        caplog.at_level(logging.INFO, logger="vllm.andes_opt"),
        said_if_slow(0.05 if slow else 30.0),
    ):
        time.sleep(0.5)
        said = caplog.text
    assert ("first start only" in said) is slow


@pytest.mark.live
def test_the_log_names_both_planners(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """A regression test: the log named the fast policy only."""
    logging.getLogger("vllm").propagate = True
    background = {"policy": {"_target_": "live_policies.Sleepy"}}
    with caplog.at_level(logging.INFO, logger="vllm.andes_opt"):
        start({"_target_": "andes_opt.policy.fcfs.FCFS"}, adapter={"background": background})
    assert "Scheduling by andes_opt.policy.fcfs.FCFS" in caplog.text
    assert "Planning in the background by live_policies.Sleepy" in caplog.text


def ask(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the module with an installed vLLM."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "engine_adapter.serve", *words],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "VLLM_LOGGING_LEVEL": "WARNING"},
    )


@pytest.mark.live
@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["m", "--scheduler-cls", OURS, "--scheduling-policy", "priority"], "needs fcfs"),
        (["m", "--headless", "--api-server-count", "2", "--no-such-flag"], "no-such-flag"),
        (["m", "--enable-log-outputs"], "--enable-log-requests"),
    ],
)
def test_the_installed_vllm_parses(words: list[str], expected: str) -> None:
    """Wrong flags end the command by a sentence, with any wheel of vLLM's."""
    done = ask(*words)
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr.strip().splitlines()[-1]
