"""Algorithm 2: exact in tokens, feasible in blocks, refused where it can't work."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andes_opt.instance import GainTable, Instance
from andes_opt.plan import Status, verify
from andes_opt.testing import KINDS, enumerate_optimum, large_instance, random_instance
from solvers.dp import DP, DPBlocks, reduce_problem

random_cases = given(st.integers(0, 2**32), st.sampled_from(KINDS), st.booleans())


@settings(max_examples=60, deadline=None)
@random_cases
def test_dp_is_exact(seed, kind, exactly):
    """The table's best is the optimum, and the recovered selection is worth just that."""
    instance = random_instance(seed, kind=kind, exactly=exactly)
    plan = DP().solve(instance)
    verify(instance, plan)
    assert plan.value == pytest.approx(enumerate_optimum(instance), rel=1e-12, abs=1e-12)
    assert plan.status is not Status.FEASIBLE


@settings(max_examples=60, deadline=None)
@random_cases
def test_blocks_are_feasible_and_bounded(seed, kind, exactly):
    """Rounded to blocks, plans fit in tokens, exist where any does, and are bracketed."""
    instance = random_instance(seed, kind=kind, exactly=exactly)
    optimum = enumerate_optimum(instance)
    for block_tokens in (1, 7, 64):
        plan = DPBlocks(block_tokens=block_tokens).solve(instance)
        verify(instance, plan)
        assert (plan.status is Status.NO_SOLUTION) == (optimum == -np.inf)
        assert plan.value <= optimum + 1e-12
        assert plan.bound >= optimum - 1e-12
        if block_tokens == 1:
            assert plan.value == pytest.approx(optimum, rel=1e-12, abs=1e-12)


@settings(max_examples=30, deadline=None)
@random_cases
def test_whole_blocks_lose_nothing(seed, kind, exactly):
    """If all weights are multiples of the block, the plan in blocks is proven optimal."""
    tokens = random_instance(seed, kind=kind, exactly=exactly)
    instance = dataclasses.replace(
        tokens, weights=tokens.weights * 16, capacity=tokens.capacity * 16 + 5
    )
    plan = DPBlocks(block_tokens=16).solve(instance)
    verify(instance, plan)
    assert plan.status is not Status.FEASIBLE
    assert plan.value == pytest.approx(enumerate_optimum(tokens), rel=1e-12, abs=1e-12)


def test_exact_is_said_of_the_object():
    """Blocks of one token are exact; larger ones are not, whatever an instance proves."""
    assert DP().exact
    assert DPBlocks(block_tokens=1).exact
    assert not DPBlocks().exact


def test_common_divisor_shrinks_the_table():
    """Weights in whole blocks cost as many cells as there are blocks."""
    fine = large_instance(12)
    coarse = dataclasses.replace(fine, weights=fine.weights * 16, capacity=fine.capacity * 16 + 7)
    gains = fine.gains_at(3)[None, :]
    assert reduce_problem(coarse, 3, gains).cells == reduce_problem(fine, 3, gains).cells
    assert DP().solve(coarse).value == pytest.approx(DP().solve(fine).value)


def test_what_can_not_matter_is_left_out():
    """Misfits and losses don't enter the table; memory that nobody can use is cut."""
    table = GainTable([[1.0, 2.0, 3.0, -1.0]], 2)
    instance = Instance(np.array([3, 5, 99, 1]), 50, 2, 2, table)
    problem = reduce_problem(instance, 2, instance.gains_at(2)[None, :])
    assert problem.items.tolist() == [0, 1]
    assert (problem.capacity, problem.slots) == (8, 2)
    exactly = dataclasses.replace(instance, exactly=True)
    assert reduce_problem(exactly, 2, table(2)[None, :]).items.tolist() == [0, 1, 3]


@pytest.mark.parametrize("make", [DP, DPBlocks])
def test_large_tables_are_refused(make):
    """A table beyond max_cells is refused in one sentence with its size."""
    with pytest.raises(ValueError, match=r"needs [\d,]+ cells .* more than max_cells = 1,000"):
        make(max_cells=1000).solve(large_instance(30))


def test_options_out_of_range():
    """Wrong options are named in one sentence."""
    with pytest.raises(ValueError, match="max_cells = 0 not understood"):
        DP(max_cells=0)
    with pytest.raises(ValueError, match="block_tokens = 0 not understood"):
        DPBlocks(block_tokens=0)


def test_time_limit_interrupts_a_table():
    """A limit in the middle of a table gives a packing by density and the dual bound."""
    DP().solve(large_instance(10))  # compiled or loaded now, not within the limit
    instance = large_instance(300)
    plan = DP().solve(instance, time_limit_s=0.03)
    verify(instance, plan)
    assert plan.status is Status.FEASIBLE
    assert plan.value > 0.3 * plan.bound
    better = DPBlocks(block_tokens=64).solve(instance)
    verify(instance, better)
    assert plan.value < better.value <= plan.bound
    assert better.gap < 0.1
