"""Stand-ins for solvers, which the tests of this package must not import."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from andes_opt.plan import Plan, make_plan

if TYPE_CHECKING:
    from andes_opt.instance import Instance


class Densest:
    """
    Packs by density what gains something, skipping misfits.

    Parameters
    ----------
    build_s, solve_s
        How long it says that a solve took.
    """

    exact = False

    def __init__(self, build_s: float = 0.0, solve_s: float = 0.0) -> None:
        self._times = {"build_s": build_s, "solve_s": solve_s}

    def solve(self, instance: Instance, *, time_limit_s: float | None = None) -> Plan:
        """A plan at the largest batch size."""
        batch_size = instance.max_batch
        gains = instance.gains_at(batch_size)
        serve = np.zeros(instance.num_requests, dtype=np.bool_)
        room, slots = instance.capacity, batch_size
        for i in np.argsort(-gains / instance.weights, kind="stable"):
            if gains[i] > 0 and slots > 0 and instance.weights[i] <= room:
                serve[i] = True
                room -= instance.weights[i]
                slots -= 1
        return replace(make_plan(instance, serve, batch_size), **self._times)
