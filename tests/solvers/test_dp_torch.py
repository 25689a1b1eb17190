"""Algorithm 2 in PyTorch equals Algorithm 2 in NumPy; without PyTorch it says what to do."""

from __future__ import annotations

import importlib
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andes_opt.plan import Status, verify
from andes_opt.testing import KINDS, enumerate_optimum, large_instance, random_instance
from solvers.dp import DP
from solvers.dp_torch import DPTorch


def devices():
    """The processor, and a GPU where there is one that PyTorch can use."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return ["cpu"]
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def test_missing_torch_names_the_extra(monkeypatch):
    """Without PyTorch, constructing the solver fails with one sentence that helps."""
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"pip install 'torch>=2\.4'"):
        DPTorch()


@pytest.mark.parametrize("option", [{"batch_sizes": 0}, {"max_cells": 0}])
def test_options_out_of_range(option):
    """Wrong options are named in one sentence, before PyTorch is looked for."""
    with pytest.raises(ValueError, match=f"{next(iter(option))} = 0 not understood"):
        DPTorch(**option)


@pytest.mark.torch
@pytest.mark.parametrize("device", devices())
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(KINDS), st.booleans(), st.sampled_from([1, 2, 5]))
def test_stacks_are_exact(device, seed, kind, exactly, batch_sizes):
    """However many batch sizes are stacked, the plan is the optimum and proven."""
    instance = random_instance(seed, kind=kind, exactly=exactly)
    plan = DPTorch(device=device, batch_sizes=batch_sizes).solve(instance)
    verify(instance, plan)
    assert plan.value == pytest.approx(enumerate_optimum(instance), rel=1e-12, abs=1e-12)
    assert plan.status is not Status.FEASIBLE


@pytest.mark.torch
def test_equals_dp():
    """Value and bound are those of the compiled program."""
    instance = large_instance(40)
    plan, reference = DPTorch().solve(instance), DP().solve(instance)
    assert plan.value == pytest.approx(reference.value, rel=1e-12)
    assert plan.bound == pytest.approx(reference.bound, rel=1e-12)
    assert plan.status is Status.OPTIMAL


@pytest.mark.torch
@pytest.mark.parametrize("limit_s", [0.0, 1e-4])
@pytest.mark.parametrize("device", devices())
def test_a_limit_that_is_over_at_once(device, limit_s):
    """However short the limit, there is a feasible plan with a valid bound."""
    instance = large_instance(40)
    plan = DPTorch(device=device).solve(instance, time_limit_s=limit_s)
    verify(instance, plan)
    assert plan.bound >= DP().solve(instance).value * (1 - 1e-12)


@pytest.mark.torch
def test_time_limit_interrupts_a_stack():
    """A limit in the middle of a stack gives a packing by density and the dual bound."""
    DPTorch().solve(large_instance(10))  # compiled or loaded now, not within the limit
    instance = large_instance(300)
    plan = DPTorch().solve(instance, time_limit_s=0.2)
    verify(instance, plan)
    assert plan.status is Status.FEASIBLE
    assert plan.value > 0.3 * plan.bound


@pytest.mark.torch
def test_large_stacks_are_refused():
    """A stack beyond max_cells is refused in one sentence with its size."""
    with pytest.raises(ValueError, match="more than max_cells = 1,000"):
        DPTorch(max_cells=1000).solve(large_instance(30))


@pytest.mark.torch
def test_unknown_device():
    """A device that PyTorch doesn't know is named in one sentence."""
    with pytest.raises(ValueError, match="device = 'abacus' not understood"):
        DPTorch(device="abacus")


@pytest.mark.torch
def test_cuda_equals_cpu():
    """On a GPU, if there is one, value and bound are the CPU's; else CUDA is refused."""
    torch = importlib.import_module("torch")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device = 'cuda' not understood"):
            DPTorch(device="cuda")
        return
    instance = large_instance(40)
    plan, reference = DPTorch(device="cuda").solve(instance), DPTorch().solve(instance)
    assert plan.value == pytest.approx(reference.value, rel=1e-12)
    assert plan.bound == pytest.approx(reference.bound, rel=1e-12)
