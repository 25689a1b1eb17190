"""The conformance suite catches solvers that break the contract, and passes honest ones."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time

import numpy as np
import pytest

from andes_opt.instance import GainTable, Instance
from andes_opt.plan import Status, make_plan, no_solution
from andes_opt.testing import (
    CHECKS,
    NonConformance,
    cases,
    check_solver,
    enumerate_optimum,
)


class Honest:
    """Tries everything, with Python's own tools only."""

    exact = True

    def solve(self, instance, *, time_limit_s=None):
        best = None
        started = time.perf_counter()
        for batch_size in range(instance.min_batch, instance.max_batch + 1):
            gains = instance.gains_at(batch_size)
            least = batch_size if instance.exactly else 0
            for count in range(least, min(batch_size, instance.num_requests) + 1):
                for chosen in itertools.combinations(range(instance.num_requests), count):
                    if time_limit_s is not None and time.perf_counter() - started > time_limit_s:
                        return self.at_limit(instance)
                    if instance.weights[list(chosen)].sum() <= instance.capacity:
                        value = gains[list(chosen)].sum()
                        if best is None or value > best[0]:
                            best = value, batch_size, chosen
        if best is None:
            return no_solution(instance, proven=True)
        serve = np.zeros(instance.num_requests, dtype=bool)
        serve[list(best[2])] = True
        return make_plan(instance, serve, best[1], bound=best[0])

    def at_limit(self, instance):
        if instance.exactly:
            return no_solution(instance, proven=False)
        return make_plan(instance, np.zeros(instance.num_requests, dtype=bool), instance.min_batch)


class Idle:
    """Serves nobody: a poor heuristic, but an honest one."""

    exact = False

    def solve(self, instance, *, time_limit_s=None):
        return Honest().at_limit(instance)


class Broken:
    """An honest solver whose plans go through a saboteur."""

    exact = True

    def __init__(self, sabotage):
        self.sabotage = sabotage

    def solve(self, instance, *, time_limit_s=None):
        return self.sabotage(instance, Honest().solve(instance, time_limit_s=time_limit_s))


def low_bound(instance, plan):
    """A bound below the value, as a back-end with loose tolerances might state."""
    return dataclasses.replace(plan, bound=plan.value - 1.0)


def wrong_value(instance, plan):
    """A value taken from the back-end instead of the gains."""
    return dataclasses.replace(plan, value=plan.value + 1e-3, bound=plan.bound + 1e-3)


def only_smallest_batch(instance, plan):
    """An optimum over the smallest batch size only, claimed for all of them."""
    narrowed = dataclasses.replace(instance, max_batch=instance.min_batch)
    return Honest().solve(narrowed)


def unproven(instance, plan):
    """An optimal plan without a proof."""
    if plan.status is Status.OPTIMAL:
        return dataclasses.replace(plan, bound=math.inf, status=Status.FEASIBLE)
    return plan


def gives_up(instance, plan):
    """No plan although there is one."""
    return no_solution(instance, proven=False) if instance.exactly else plan


def overfull(instance, plan):
    """Everybody is served, whatever the memory."""
    return dataclasses.replace(plan, serve=np.ones(instance.num_requests, dtype=bool))


def meddles(instance, plan):
    """The solver scales the weights in place."""
    instance.weights.flags.writeable = True
    instance.weights[:] += 1
    return plan


@pytest.mark.parametrize("make_solver", [Honest, Idle])
def test_honest_solvers_pass(make_solver):
    """A solver that does what it says passes everything, good or poor."""
    check_solver(make_solver, num_requests=10)


@pytest.mark.parametrize(
    "sabotage",
    [low_bound, wrong_value, only_smallest_batch, unproven, gives_up, overfull],
)
def test_wrong_plans_are_caught(sabotage):
    """Each way of being wrong about a plan fails the cases."""
    with pytest.raises(NonConformance):
        CHECKS["cases"](lambda: Broken(sabotage))


def test_meddling_is_caught():
    """A solver that changes the instance fails."""
    with pytest.raises(NonConformance, match="changed the instance"):
        CHECKS["leaves the instance alone"](lambda: Broken(meddles))
    cases.cache_clear()  # they have been meddled with


def test_reused_arrays_are_caught():
    """A solver that hands out the same array twice fails."""

    class Reuses(Idle):
        def __init__(self):
            self.calls = 0
            self.serve = np.zeros(0, dtype=bool)

        def solve(self, instance, *, time_limit_s=None):
            plan = Idle().solve(instance)
            if self.serve.size != instance.num_requests:
                self.serve = plan.serve
            elif instance.num_requests:
                self.serve[0] = True
            return dataclasses.replace(plan, serve=self.serve)

    with pytest.raises(NonConformance, match="older plan"):
        CHECKS["leaves the instance alone"](Reuses)


def test_chance_is_caught():
    """A solver without a seed fails."""
    draws = itertools.count()

    class Moody(Idle):
        def solve(self, instance, *, time_limit_s=None):
            return Honest().solve(instance) if next(draws) % 2 else Idle().solve(instance)

    with pytest.raises(NonConformance, match="different plans"):
        CHECKS["deterministic"](Moody)


def test_late_plans_are_caught():
    """A solver that ignores its time limit fails."""

    class Late(Idle):
        def solve(self, instance, *, time_limit_s=None):
            time.sleep(0.02)
            return super().solve(instance)

    with pytest.raises(NonConformance, match="late"):
        CHECKS["time limit"](Late, late_s=0.01)


def test_missing_members_are_caught():
    """An object that is no solver fails, and so does an `exact` that isn't a bool."""
    with pytest.raises(NonConformance, match="lacks"):
        CHECKS["contract"](object)
    sometimes = type("Sometimes", (Idle,), {"exact": "sometimes"})
    with pytest.raises(NonConformance, match="not a bool"):
        CHECKS["contract"](sometimes)


def test_enumeration_refuses_large_instances():
    """More than 12 requests are refused in one sentence."""
    instance = Instance(np.ones(13, dtype=int), 5, 1, 1, GainTable(np.ones((1, 13)), 1))
    with pytest.raises(ValueError, match="13 requests are too many"):
        enumerate_optimum(instance)


def test_cases_cover_what_they_promise():
    """Among the cases: infeasible, negative, non-monotone, empty, more slots than requests."""
    instances = [case.instance for case in cases()]
    assert any(case.optimum == -math.inf for case in cases())
    assert any(i.num_requests == 0 for i in instances)
    assert any(i.max_batch > i.num_requests for i in instances)
    assert any(not i.gains.monotone and i.exactly for i in instances)
    assert any((i.gains.values < 0).any() for i in instances if i.num_requests)
    assert len({case.name for case in cases()}) == len(cases())
