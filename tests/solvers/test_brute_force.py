"""Brute force: the optimum, its limits, and independence from every bound."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andes_opt.instance import GainTable, Instance
from andes_opt.plan import Status, verify
from andes_opt.testing import KINDS, enumerate_optimum, large_instance, random_instance
from solvers.brute_force import BruteForce


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(KINDS), st.booleans())
def test_equals_enumeration(seed, kind, exactly):
    """The compiled enumeration in two halves equals NumPy's in one."""
    instance = random_instance(seed, kind=kind, exactly=exactly)
    plan = BruteForce().solve(instance)
    verify(instance, plan)
    assert plan.value == pytest.approx(enumerate_optimum(instance), rel=1e-12, abs=1e-12)
    assert plan.status is not Status.FEASIBLE


def test_twenty_requests_and_no_more():
    """Twenty requests are enumerated; one more is refused in one sentence."""
    plan = BruteForce().solve(large_instance(20))
    assert plan.status is Status.OPTIMAL
    with pytest.raises(ValueError, match="21 requests are too many for brute force"):
        BruteForce().solve(large_instance(21))


def test_out_of_time():
    """Before the first batch size nothing is known: the empty plan, or no plan, unproven."""
    weights, gains = np.array([1, 2]), GainTable([[1.0, 2.0]], 1)
    plan = BruteForce().solve(Instance(weights, 3, 1, 1, gains), time_limit_s=0.0)
    assert (plan.value, plan.bound, plan.status) == (0.0, math.inf, Status.FEASIBLE)
    plan = BruteForce().solve(Instance(weights, 3, 1, 1, gains, exactly=True), time_limit_s=0.0)
    assert (plan.bound, plan.status) == (math.inf, Status.NO_SOLUTION)
