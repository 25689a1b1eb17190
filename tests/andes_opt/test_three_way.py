"""Serve, hold or evict: the pair of types and its check."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from andes_opt.instance import GainTable
from andes_opt.plan import InvalidPlan, Status
from andes_opt.snapshot import Action
from andes_opt.three_way import (
    ThreeWayInstance,
    ThreeWayPlan,
    make_three_way_plan,
    verify_three_way,
)

FIELDS = {
    "serve_weights": np.array([4, 4, 6]),
    "hold_weights": np.array([3, 0, 5]),
    "capacity": 9,
    "min_batch": 1,
    "max_batch": 2,
    "serve_gains": GainTable([[3.0, 2.0, 4.0], [2.5, 1.5, 3.5]], 1),
    "hold_gains": np.array([1.0, 0.0, 2.0]),
    "resident": np.array([True, False, True]),
}


@pytest.fixture
def instance():
    """Three requests, of which the second is not resident."""
    return ThreeWayInstance(**FIELDS)


def test_plan_is_recomputed(instance):
    """Value and status come from the instance: serve one, hold another."""
    plan = make_three_way_plan(
        instance, np.array([Action.SERVE, Action.WAIT, Action.HOLD]), 1, bound=5.0
    )
    verify_three_way(instance, plan)
    assert plan.value == 5.0
    assert plan.status is Status.OPTIMAL
    assert plan.gap == 0.0
    assert plan.action.dtype == np.int8


def test_worse_than_nothing_becomes_nothing():
    """Actions that lose against evicting everybody are replaced by that."""
    gains = GainTable([[-3.0, 2.0, 4.0]], 1)
    instance = ThreeWayInstance(**{**FIELDS, "max_batch": 1, "serve_gains": gains})
    plan = make_three_way_plan(instance, np.array([1, 0, 0]), 1)
    verify_three_way(instance, plan)
    assert plan.value == 0.0
    assert (plan.action == Action.WAIT).all()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"hold_weights": np.array([3, 1])}, r"hold_weights of shape \(2,\)"),
        ({"hold_weights": np.array([3, 1, 0])}, "hold_weights must be >= 1 .* smallest is 0"),
        ({"hold_weights": np.array([3.0, 1.0, 5.0])}, "hold_weights must be integers"),
        ({"hold_gains": np.array([1.0, math.nan, 0.0])}, "hold_gains must be finite"),
        ({"hold_gains": np.zeros(4)}, r"hold_gains of shape \(4,\)"),
        ({"resident": np.array([1, 0, 1])}, "resident must be bool"),
        ({"resident": np.array([True])}, r"resident of shape \(1,\)"),
        ({"serve_weights": np.array([0, 1, 1])}, "weights must be >= 1"),
        ({"capacity": -1}, "capacity = -1"),
        ({"max_batch": 3}, "covers batch sizes 1 to 2"),
    ],
)
def test_malformed_instances_are_refused(change, sentence):
    """Each field is checked, with a sentence that holds the offending value."""
    with pytest.raises(ValueError, match=sentence):
        ThreeWayInstance(**{**FIELDS, **change})


def test_instance_keeps_its_own_arrays(instance):
    """What the caller changes later does not reach the instance."""
    weights = np.array([4, 4, 6])
    mine = ThreeWayInstance(**{**FIELDS, "serve_weights": weights})
    weights[0] = 99
    assert mine.serve_weights[0] == 4
    for array in (mine.serve_weights, mine.hold_weights, mine.hold_gains, mine.resident):
        assert not array.flags.writeable


def plan_of(action, value, *, dtype=np.int8, **fields):
    """A plan as a third party might hand it in."""
    made = ThreeWayPlan(
        np.array(action, dtype=dtype), 1, value, math.inf, Status.FEASIBLE, 0.0, 0.0
    )
    return replace(made, **fields)


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        (plan_of([1, 0], 3.0), r"action is int8\(2,\)"),
        (plan_of([1, 0, 0], 3.0, dtype=np.int64), r"action is int64\(3,\)"),
        (plan_of([3, 0, 0], 3.0), "not all of 0, 1, 2"),
        (plan_of([0, 2, 0], 0.0), "request 1 is held but not resident"),
        (plan_of([1, 0, 0], 3.0, batch_size=3), r"batch_size 3 is outside \[1, 2\]"),
        (plan_of([1, 1, 0], 5.0), "serves 2 > batch_size 1"),
        (plan_of([1, 0, 1], 6.0, batch_size=2), "needs 10 KV tokens of 9"),
        (plan_of([1, 1, 2], 7.0, batch_size=2), "serves 2 and holds 1 > max_batch 2"),
        (plan_of([1, 0, 2], 4.0), "states value 4.0; its gains sum to 5.0"),
        (plan_of([1, 0, 2], 5.0, bound=4.0), "bound 4.0 is below"),
        (plan_of([1, 0, 2], 5.0, bound=6.0, status=Status.OPTIMAL), "status OPTIMAL"),
        (plan_of([0, 0, 0], 0.0, status=Status.NO_SOLUTION), "NO_SOLUTION"),
    ],
)
def test_invalid_plans_are_caught(instance, plan, sentence):
    """Every constraint, the value, the bound and the status are checked."""
    with pytest.raises(InvalidPlan, match=sentence):
        verify_three_way(instance, plan)


def test_memory_counts_what_is_held(instance):
    """Held tokens and served tokens share the memory: 4 + 5 fit into 9, 4 + 6 do not."""
    verify_three_way(instance, plan_of([1, 0, 2], 5.0))
    smaller = ThreeWayInstance(**{**FIELDS, "capacity": 8})
    with pytest.raises(InvalidPlan, match="needs 9 KV tokens of 8"):
        verify_three_way(smaller, plan_of([1, 0, 2], 5.0))
