"""Decisions about snapshots as plans about requests."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from andes_opt.snapshot import Decision
from engine_adapter.plan_in_force import fit_to_now, plan_of


def test_plan_of() -> None:
    """Actions and order are found under the engine's ids."""
    decision = Decision(
        action=np.array([0, 1, 2, 1], dtype=np.int8), order=np.array([3, 1, 2, 0]), replan_after=5
    )
    plan = plan_of(decision, ["a", "b", "c", "d"], newest=9, made_s=2.5)
    assert (plan.wait, plan.serve, plan.hold) == ({"a"}, {"b", "d"}, {"c"})
    assert plan.rank == {"d": 0, "b": 1, "c": 2, "a": 3}
    assert (plan.newest, plan.made_s, plan.late) == (9, 2.5, False)


def test_spares() -> None:
    """Whoever has to wait comes up once, the most urgent first, and may be put back."""
    decision = Decision(action=np.array([0, 1, 0, 0], dtype=np.int8), order=np.array([3, 1, 0, 2]))
    plan = plan_of(decision, ["a", "b", "c", "d"], newest=4, made_s=0.0)
    assert plan.size == 1
    assert plan.next_spare() == "d"
    plan.put_back("d")
    assert [plan.next_spare() for _ in range(5)] == ["d", "a", "c", None, None]


def test_whoever_was_let_in_since_keeps_room() -> None:
    """A resident that a plan does not know counts: it will be there when the plan is followed."""
    decision = Decision(action=np.array([1, 1, 0], dtype=np.int8), order=np.arange(3))
    plan = plan_of(decision, ["a", "b", "c"], newest=3, made_s=0.0)
    need = {"a": 4, "b": 4, "c": 4, "new": 4}
    assert fit_to_now(plan, {"a", "c", "new"}, need.__getitem__, 8, places=3)
    assert (plan.serve, plan.wait) == ({"a"}, {"b", "c"})
    assert not fit_to_now(plan, {"a", "new"}, need.__getitem__, 7, places=3)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9), st.booleans()), max_size=12),
    st.integers(0, 5),
    st.integers(0, 13),
)
def test_fit(requests: list[tuple[int, int, bool]], headroom: int, places: int) -> None:
    """
    After fitting, the plan fits cache and batch, and the least urgent newcomers were put back.

    Residents may have grown into the head-room, for which newcomers get no place.
    """
    n, capacity = len(requests), 20
    keys = [str(i) for i in range(n)]
    need = {key: blocks for key, (_, blocks, _) in zip(keys, requests, strict=True)}
    resident = {key for key, (_, _, inside) in zip(keys, requests, strict=True) if inside}
    decision = Decision(
        action=np.array([action for action, _, _ in requests], dtype=np.int8), order=np.arange(n)
    )
    plan = plan_of(decision, keys, newest=n, made_s=0.0)
    before = set(plan.serve)
    stay = sum(need[key] for key in (plan.serve | plan.hold) & resident)
    ok = fit_to_now(plan, resident, need.__getitem__, capacity, headroom, places=places)
    inside = len((before | plan.hold) & resident)
    fits = stay <= capacity + headroom and inside <= places
    assert ok == (fits and bool(plan.serve))
    if ok:
        served = sum(need[key] for key in plan.serve | (plan.hold & resident))
        assert served <= max(capacity, stay)
        assert len(plan.serve | (plan.hold & resident)) <= places
        assert before - plan.serve <= plan.wait - resident
        put_back = [int(key) for key in before - plan.serve]
        newcomers = sorted(int(key) for key in before - resident)
        for key in put_back:
            ahead = [need[str(i)] for i in newcomers if i < key and str(i) in plan.serve]
            no_room = stay + sum(ahead) + need[str(key)] > capacity
            assert no_room or inside + len(ahead) >= places


def test_a_late_plan_that_would_serve_nobody() -> None:
    """
    It is not used: the batch is full of those that it holds and of those let in since.

    A held request keeps its place in the batch.
    """
    decision = Decision(action=np.array([2, 1], dtype=np.int8), order=np.arange(2))
    for places, ok in ((2, True), (1, False)):
        plan = plan_of(decision, ["held", "served"], newest=2, made_s=0.0)
        need = {"held": 1, "served": 1}
        assert fit_to_now(plan, {"held"}, need.__getitem__, 100, places=places) is ok
