"""What a policy costs on the virtual clock, and what is counted of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from andes_opt.plan import Plan, Status
from andes_opt.snapshot import Decision
from engine_adapter.emulator.charged_policy import Account, ChargedPolicy, charged
from engine_adapter.emulator.virtual_clock import VirtualClock
from engine_adapter.settings import KEY, instantiate, read_settings

if TYPE_CHECKING:
    from collections.abc import Callable

FCFS = {"_target_": "andes_opt.policy.fcfs.FCFS"}


class Turns:
    """A plan, none, and an error, in turn."""

    def __init__(self) -> None:
        self.asked = 0
        self.left: list[int] = []

    def decide(self, snapshot: Any) -> Decision:
        """By turns."""
        self.asked += 1
        if self.asked == 3:
            raise RuntimeError("no more")
        serve = np.ones(2, dtype=np.bool_)
        plan = Plan(serve, 2, 0.0, 0.0, Status.OPTIMAL, build_s=0.1, solve_s=0.2, info={})
        return Decision(plan=plan if self.asked == 1 else None)

    def finished(self, request_id: int) -> None:
        """Note it."""
        self.left.append(request_id)


@pytest.mark.parametrize("charge_s", [0.0, 0.25])
def test_only_decisions_with_a_plan_are_charged(
    make_snapshot: Callable[..., Any], charge_s: float
) -> None:
    """Stated seconds go to the clock of the engine's thread, once for each plan."""
    clock = VirtualClock(charge_s, background_s=2.0)
    account = Account(clock, charge_s)
    policy = Turns()
    wrapped = ChargedPolicy(policy, account)
    readings = [clock.cost_s("")]
    for _ in range(2):
        wrapped.decide(make_snapshot(2))
        readings.append(clock.cost_s("decide"))
    assert np.diff(readings).tolist() == [charge_s, 0.0]
    counts = account.deciding
    assert (counts.decisions, counts.solves, counts.charged_s) == (2, 1, charge_s)
    assert counts.solver_s == pytest.approx(0.3)
    assert clock.solve_s(5.0) == 2.0
    assert clock.monotonic_s() == clock.time_s() == 0.0  # only the engine moves time

    with pytest.raises(RuntimeError, match="no more"):
        wrapped.decide(make_snapshot(2))
    assert isinstance(account.error, RuntimeError)
    wrapped.finished(7)
    assert policy.left == [7]
    account.open()
    assert account.error is None and account.deciding.decisions == 0


def test_measured_time_is_the_machines() -> None:
    """Readings go on by themselves, and a planner beside the engine takes what it takes."""
    clock = VirtualClock(None, None)
    first = clock.cost_s("")
    clock.spend(1000.0)
    assert 0 <= clock.cost_s("decide") - first < 100.0
    assert clock.solve_s(5.0) == 5.0


def test_settings_keep_all_but_the_policy() -> None:
    """The adapter builds the policy itself, on the account; what is wrong is refused."""
    account = Account(VirtualClock(), 0.0)
    settings = charged({"policy": FCFS, "headroom_blocks": 3}, account)
    read = read_settings({KEY: settings})
    assert read.headroom_blocks == 3
    assert isinstance(instantiate(read.policy), ChargedPolicy)
    with pytest.raises(ValueError, match="nonsense"):
        charged({"policy": FCFS, "nonsense": 1}, account)
