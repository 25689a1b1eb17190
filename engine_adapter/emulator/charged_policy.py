"""A policy whose work is counted and charged, and whose errors end the run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from andes_opt.simulator import Deciding
from engine_adapter.settings import KEY, read_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from andes_opt.snapshot import Decision, Policy, Snapshot
    from engine_adapter.emulator.virtual_clock import VirtualClock


class Account:
    """
    What the policy of one engine was asked and charged.

    Parameters
    ----------
    clock
        Where it is charged.
    charge_s
        Of :func:`andes_opt.simulator.seconds_per_solve`.

    Attributes
    ----------
    deciding
        The counts.
    error
        What the policy raised last; None if nothing.
    """

    def __init__(self, clock: VirtualClock, charge_s: float | None) -> None:
        self._clock = clock
        self._charge_s = charge_s
        self.open()

    def open(self) -> None:
        """Begin to count: what policies did to get ready is forgotten."""
        self.deciding = Deciding(self._charge_s)
        self.error: Exception | None = None

    def decide(self, policy: Policy, snapshot: Snapshot) -> Decision:
        """Ask a policy, count and charge."""
        try:
            decision, cost_s = self.deciding.ask(policy, snapshot)
        except Exception as error:
            self.error = error
            raise
        self._clock.spend(cost_s)
        return decision


class ChargedPolicy:
    """
    Another policy, on an account.

    Parameters
    ----------
    policy
        The policy.
    account
        The account.
    """

    def __init__(self, policy: Policy, account: Account) -> None:
        self._policy = policy
        self._account = account

    def decide(self, snapshot: Snapshot) -> Decision:
        """Returns the policy's decision."""
        return self._account.decide(self._policy, snapshot)

    def finished(self, request_id: int) -> None:
        """Tell the policy that a request has left."""
        self._policy.finished(request_id)


def charged(settings: Mapping[str, Any], account: Account) -> dict[str, Any]:
    """
    Returns the adapter's settings with the policy of the engine's thread on an account.

    Raises
    ------
    ValueError
        If a setting is unknown or wrong.
    """
    name = f"{ChargedPolicy.__module__}.{ChargedPolicy.__qualname__}"
    policy = read_settings({KEY: settings}).policy
    return {**settings, "policy": {"_target_": name, "policy": policy, "account": account}}
