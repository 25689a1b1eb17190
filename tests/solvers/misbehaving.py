"""Solvers that go wrong in every way, for workers; imported by dotted path like a third party's."""

from __future__ import annotations

import itertools
import os
import signal
import time

import numpy as np

from andes_opt.plan import Plan, Status, make_plan


class Misbehaving:
    """
    Serves nobody; misbehaves on instances whose capacity is 13.

    Parameters
    ----------
    how
        What it does then: one of the methods.
    """

    exact = False

    def __init__(self, how: str = "nothing") -> None:
        self.how = how
        if how == "refuse":
            raise ValueError("how = 'refuse' not understood.")
        if how == "die on starting":
            os.kill(os.getpid(), signal.SIGKILL)

    def solve(self, instance, *, time_limit_s=None):
        """An empty plan with a bound of 99, unless the capacity is 13."""
        if instance.capacity == 13:
            lie = getattr(self, self.how.replace(" ", "_"))(instance)
            if lie is not None:
                return lie
        return make_plan(instance, np.zeros(instance.num_requests, bool), 1, bound=99.0)

    def nothing(self, instance):
        """Behave."""

    def hang(self, instance):
        """Sleep for ever."""
        time.sleep(3600)

    def hang_in_native_code(self, instance):
        """Never give the interpreter back: no signal handler and no other thread runs."""
        sum(itertools.repeat(0))

    def throw(self, instance):
        """Raise."""
        raise ZeroDivisionError("a back-end fell over")

    def babble(self, instance):
        """Answer what is no plan."""
        return "no plan"

    def die(self, instance):
        """Crash as native code does."""
        os.kill(os.getpid(), signal.SIGSEGV)

    def allocate(self, instance):
        """Ask for four gigabytes."""
        np.ones(2**29)

    def lie(self, instance):
        """A plan that serves everybody."""
        everybody = np.ones(instance.num_requests, bool)
        return Plan(everybody, 1, 1e6, 1e6, Status.OPTIMAL, 0.0, 0.0)
