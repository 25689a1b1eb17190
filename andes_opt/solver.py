"""The contract every solver fulfils: two members, nothing to inherit from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from andes_opt.instance import Instance
    from andes_opt.plan import Plan


@runtime_checkable
class Solver(Protocol):
    """
    Anything that answers an instance with a plan.

    Options and seeds go into the constructor, so that constructor, YAML file and
    documentation say the same. A solver may keep state between calls (prices of the
    previous step, say), but that must not change the value of an optimal plan.

    Attributes
    ----------
    exact
        True if this *object* proves optimality when time suffices.
    """

    @property
    def exact(self) -> bool: ...

    def solve(self, instance: Instance, *, time_limit_s: float | None = None) -> Plan:
        """
        Solve one instance.

        Parameters
        ----------
        instance
            The instance.
        time_limit_s
            Wall-clock limit in seconds; None for no limit. At the limit the incumbent
            comes back as FEASIBLE with the bound proven so far.

        Returns
        -------
        Plan
            A plan that passes :func:`andes_opt.plan.verify`.
        """
        ...
