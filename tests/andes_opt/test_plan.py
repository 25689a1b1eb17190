"""Plans, and the check that trusts nothing in them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from andes_opt.instance import GainTable, Instance
from andes_opt.plan import (
    TOLERANCE,
    TOLERANCE_MIP,
    InvalidPlan,
    Plan,
    Status,
    make_plan,
    no_solution,
    verify,
)

# Gains at B = 1 and 2; the optimum serves requests 1 and 2 at B = 2 for 5.
INSTANCE = Instance(
    weights=[30, 20, 10],
    capacity=40,
    min_batch=1,
    max_batch=2,
    gains=GainTable([[4.5, 4.0, 3.0], [4.0, 3.0, 2.0]], first_batch=1),
)
EXACTLY = dataclasses.replace(INSTANCE, exactly=True)
IMPOSSIBLE = dataclasses.replace(INSTANCE, capacity=5, exactly=True)


def chosen(*requests: int) -> Any:
    serve = np.zeros(3, dtype=np.bool_)
    serve[list(requests)] = True
    return serve


def plan(**changes: Any) -> Plan:
    fields: dict[str, Any] = {
        "serve": chosen(1, 2),
        "batch_size": 2,
        "value": 5.0,
        "bound": 5.0,
        "status": Status.OPTIMAL,
        "build_s": 0.0,
        "solve_s": 0.0,
    }
    return Plan(**(fields | changes))


def test_make_plan_recomputes_value_and_status() -> None:
    """The value is the sum of the gains; OPTIMAL needs a bound within the tolerance."""
    unproven = make_plan(INSTANCE, chosen(1, 2), 2, info={"nodes": 3.0}, solve_s=0.5)
    assert (unproven.value, unproven.bound) == (5.0, math.inf)
    assert unproven.status is Status.FEASIBLE
    assert (unproven.info["nodes"], unproven.solve_s) == (3.0, 0.5)

    slack = TOLERANCE * 5.0
    assert make_plan(INSTANCE, chosen(1, 2), 2, bound=5 + 0.9 * slack).status is Status.OPTIMAL
    assert make_plan(INSTANCE, chosen(1, 2), 2, bound=5 + 1.1 * slack).status is Status.FEASIBLE
    loose = make_plan(INSTANCE, chosen(1, 2), 2, bound=5 + 2e-6, tolerance=TOLERANCE_MIP)
    assert loose.status is Status.OPTIMAL


def test_make_plan_never_returns_a_bound_below_the_value() -> None:
    """A back-end's bound that rounding put below the value is lifted to it."""
    assert make_plan(INSTANCE, chosen(1, 2), 2, bound=5 - 1e-12).bound == 5.0


def test_make_plan_prefers_nothing_to_a_loss() -> None:
    """Where the empty plan is allowed, a selection of negative value becomes the empty plan."""
    gains = GainTable([[-1.0, 0.5, 0.0], [-1.0, 0.5, 0.0]], first_batch=1)
    losing = dataclasses.replace(INSTANCE, gains=gains)
    made = make_plan(losing, chosen(0, 2), 2)
    assert not made.serve.any()
    assert made.value == 0.0
    verify(losing, made)
    forced = make_plan(dataclasses.replace(losing, exactly=True), chosen(0, 2), 2)
    assert forced.value == -1.0


def test_make_plan_copies_the_selection() -> None:
    """A solver may reuse its buffers."""
    serve = chosen(1, 2)
    made = make_plan(INSTANCE, serve, 2)
    serve[:] = False
    verify(INSTANCE, made)


def test_gap() -> None:
    """The gap is relative to max(1, |value|); a proven absence of solutions has none."""
    assert plan(value=5.0, bound=6.0).gap == pytest.approx(0.2)
    assert plan(value=0.1, bound=0.2).gap == pytest.approx(0.1)
    assert plan(value=5.0, bound=5.0 - 1e-12).gap == 0.0
    assert plan(bound=math.inf).gap == math.inf
    assert no_solution(IMPOSSIBLE, proven=True).gap == 0.0
    assert no_solution(IMPOSSIBLE, proven=False).gap == math.inf


def test_verify_accepts_what_is_right() -> None:
    """Optimal, feasible and empty plans pass, and fewer requests than the batch size."""
    verify(INSTANCE, plan())
    verify(INSTANCE, plan(bound=math.inf, status=Status.FEASIBLE))
    verify(INSTANCE, plan(serve=chosen(0), value=4.0, bound=9.0, status=Status.FEASIBLE))
    verify(INSTANCE, plan(serve=chosen(), value=0.0, bound=9.0, status=Status.FEASIBLE))
    verify(EXACTLY, plan())
    verify(INSTANCE, plan(serve=[False, True, True]))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"serve": chosen(1, 2)[:2]}, r"serve is bool\(2,\)"),
        ({"serve": chosen(1, 2).astype(int)}, "serve is int"),
        ({"serve": [1, 2]}, "serve is int"),
        ({"serve": None}, r"serve is object\(\)"),
        ({"batch_size": 2.0}, "batch_size 2.0 is no whole number"),
        ({"status": "optimal"}, "status 'optimal' is no Status"),
        ({"batch_size": 0}, r"batch_size 0 is outside \[1, 2\]"),
        ({"batch_size": 3}, r"batch_size 3 is outside \[1, 2\]"),
        ({"serve": chosen(0, 1), "value": 7.0, "bound": 7.0}, "needs 50 KV tokens of 40"),
        ({"batch_size": 1, "value": 7.0, "bound": 7.0}, "serves 2 > batch_size 1"),
        ({"value": 5.1, "bound": 5.1}, "states value 5.1; its gains sum to 5.0"),
        ({"value": math.nan}, "states value nan"),
        ({"bound": 4.9, "status": Status.FEASIBLE}, "bound 4.9 is below the value"),
        ({"bound": math.nan, "status": Status.FEASIBLE}, "bound nan is below the value"),
        ({"bound": 5.1}, "status OPTIMAL with bound 5.1"),
        ({"status": Status.NO_SOLUTION}, "whose empty plan is feasible"),
    ],
)
def test_verify_refuses(changes: dict[str, Any], sentence: str) -> None:
    """Each way in which a plan can be wrong is caught, and said."""
    with pytest.raises(InvalidPlan, match=sentence):
        verify(INSTANCE, plan(**changes))


def test_verify_counts_exactly() -> None:
    """With exactly=True fewer requests than the batch size are too few."""
    wrong = plan(serve=chosen(0), value=4.0, bound=9.0, status=Status.FEASIBLE)
    with pytest.raises(InvalidPlan, match="serves 1, not exactly 2"):
        verify(EXACTLY, wrong)


def test_no_solution() -> None:
    """NO_SOLUTION serves nobody at min_batch with value -inf and bound -inf, or inf unproven."""
    for proven, bound in ((True, -math.inf), (False, math.inf)):
        made = no_solution(IMPOSSIBLE, proven=proven)
        assert (made.batch_size, made.value, made.bound) == (1, -math.inf, bound)
        assert not made.serve.any()
        verify(IMPOSSIBLE, made)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"serve": chosen(2)}, "must serve nobody"),
        ({"batch_size": 2}, "must serve nobody at batch_size min_batch"),
        ({"value": 0.0}, "must have value -inf"),
        ({"bound": 0.0}, "bound -inf or inf"),
    ],
)
def test_verify_refuses_a_wrong_no_solution(changes: dict[str, Any], sentence: str) -> None:
    """Any other form of NO_SOLUTION is refused."""
    wrong = dataclasses.replace(no_solution(IMPOSSIBLE, proven=True), **changes)
    with pytest.raises(InvalidPlan, match=sentence):
        verify(IMPOSSIBLE, wrong)


def test_verify_refuses_a_false_proof_of_no_solution() -> None:
    """Calling it proven that nothing fits is a lie if the lightest requests do."""
    with pytest.raises(InvalidPlan, match="some batch size fits"):
        verify(EXACTLY, no_solution(EXACTLY, proven=True))
    verify(EXACTLY, no_solution(EXACTLY, proven=False))
