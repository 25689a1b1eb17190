"""Loading, scaling and bounds of third-party back-ends."""

from __future__ import annotations

import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from solvers.backend import (
    check_options,
    integer_bound,
    integer_profits,
    load_back_end,
    scale_exponent,
    unscaled_bound,
)

profits_of_any_size = st.lists(
    st.floats(-1e6, 1e6, allow_subnormal=False).map(lambda x: 0.0 if abs(x) < 1e-9 else x),
    min_size=1,
    max_size=30,
)


def test_missing_back_end_is_named_with_what_to_install():
    """One sentence says which module is missing and what provides it."""
    with pytest.raises(ImportError, match=r"no_such_module .*pip install 'such>=1'"):
        load_back_end("no_such_module", "such>=1")


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ({"threads": 0}, "threads = 0 not understood"),
        ({"seed": -1}, "seed = -1"),
        ({"seed": 2**31}, "seed = 2147483648"),
        ({"relative_gap": 1.0}, "relative_gap = 1.0"),
        ({"relative_gap": -0.1}, "relative_gap = -0.1"),
    ],
)
def test_options_out_of_range(option, sentence):
    """Options that no back-end understands are refused with their value."""
    with pytest.raises(ValueError, match=sentence):
        check_options(**option)


@given(profits_of_any_size)
@example([0.0])
@example([1e-300])
@example([1e-310])
def test_scaled_profits_end_just_below_ten_thousand(profits):
    """The largest |coefficient| lands in (5000, 10000], exactly scaled."""
    exponent = scale_exponent(np.array(profits))
    largest = max(map(abs, profits))
    scaled = math.ldexp(largest, exponent)
    assert scaled <= 1e4
    if largest > 1e-290:
        assert scaled > 4999
    assert math.ldexp(scaled, -exponent) == largest


@given(profits_of_any_size)
@example([0.0, 0.0])
@example([0.1] * 10)
@example([2.0**52, 2.0**52])
def test_integer_profits_fit_and_use_the_bits(profits):
    """Integers sum to less than 2**53, and the scale could not be twice as large."""
    integers, _ = integer_profits(np.array(profits))
    total = sum(abs(int(i)) for i in integers)
    assert total < 2**53
    if any(profits):
        assert 2 * total >= 2**53 - 4 * len(profits)


@settings(max_examples=100)
@given(profits_of_any_size, st.integers(0, 2**30 - 1))
def test_integer_bound_covers_the_true_sum(profits, subset):
    """The bound made of an integer sum is never below the exact sum of the gains."""
    integers, exponent = integer_profits(np.array(profits))
    chosen = [i for i in range(len(profits)) if subset >> i & 1]
    exact = sum((Fraction(profits[i]) for i in chosen), Fraction(0))
    bound = integer_bound(sum(int(integers[i]) for i in chosen), exponent, len(chosen))
    assert Fraction(bound) >= exact
    slack = Fraction(len(chosen) + 2) / Fraction(2) ** exponent
    assert Fraction(bound) <= exact + slack + abs(exact) * Fraction(2) ** -52


def test_mip_bound_is_widened_by_the_tolerances():
    """A MIP bound comes back in units of gain with its slack on top, infinity as infinity."""
    assert unscaled_bound(8000.0, 13, 10, absolute_slack=1e-3) > 8000.0 / 2**13
    assert unscaled_bound(8000.0, 13, 10, absolute_slack=1e-3) < 8000.0 / 2**13 + 1e-6
    assert unscaled_bound(-5.0, 0, 1, absolute_slack=0.0) > -5.0
    for unknown in (math.inf, -math.inf, math.nan):
        assert unscaled_bound(unknown, 3, 1, absolute_slack=0.0) == math.inf


def test_solver_files_import_without_their_back_ends():
    """Naming a solver costs nothing: back-ends are imported by constructors only."""
    program = (
        "import sys, solvers.cp_sat, solvers.mip_scip, solvers.lp_rounding, "
        "solvers.knapsack_ortools, solvers.pulp_family, solvers.highs, solvers.three_way\n"
        "assert not {'ortools', 'pulp', 'highspy', 'highsbox'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
