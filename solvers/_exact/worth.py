"""What a plan must be worth to be wanted beside the best one known."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from andes_opt.compilation import jit
from solvers._exact.jit import part
from solvers._exact.problem import largest_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from solvers._exact.problem import Sweep

#: Plans that are better by less than this share of max(1, |value|) are not worth finding.
SLACK = 2e-10


class Worth(NamedTuple):
    """What is known about the values of plans at one batch size."""

    bound: float  # what the prices prove
    unit: float  # values are multiples of this; 0 if there is no unit
    noise: float  # ... but for so much rounding
    gap: float  # plans better by less than this share of max(1, |value|) are not wanted


@part
def cutoff_of(value: float, gap: float) -> float:
    """What a plan must be worth more than to be wanted beside one of ``value``."""
    return value + gap * max(1.0, abs(value))


@part
def cutoff(sweep: Sweep) -> float:
    """What a plan must be worth more than to be wanted beside the best one so far."""
    return cutoff_of(sweep.best.value, sweep.gap)


@part
def widest_loss(worth: Worth, value: float) -> float:
    """
    The largest total loss of a plan that is wanted beside one of ``value``.

    If values are multiples of a unit, the next multiple is what is wanted. The incumbent may
    come from another batch size, whose gains have another unit or none, so it need not be a
    multiple itself.
    """
    cutoff = cutoff_of(value, worth.gap)
    unit, noise = worth.unit, worth.noise
    if unit == 0.0:
        return worth.bound - cutoff
    least = unit * (np.ceil((cutoff - noise) / unit - 1e-9) - 1e-6) - noise
    return worth.bound - max(cutoff, least)


@part
def bound_in_units(worth: Worth) -> float:
    """The bound, rounded down to a multiple of the unit."""
    bound, unit, noise = worth.bound, worth.unit, worth.noise
    if unit == 0.0:
        return bound
    return min(bound, unit * np.floor((bound + noise) / unit + 1e-9) + noise)


@jit(error_model="numpy")
def common_unit(g: NDArray[np.float64]) -> tuple[float, float]:
    """The largest number of which all gains are whole multiples, and what rounding may add.

    Gains that count requests, say, have a unit. (0, 0) means that there is none worth the
    name: gains that are real numbers share no unit, which shows after two or three of them.
    """
    largest = largest_size(g)
    least = 1e-5 * largest
    unit = 0.0
    for i in range(g.size):
        a, b = abs(g[i]), unit
        while b > 0.0:
            rest = abs(a - b * np.round(a / b))
            a, b = b, (rest if rest > 1e-8 * largest else 0.0)
        unit = a
        if 0.0 < unit < least:
            return 0.0, 0.0
    if unit == 0.0:
        return 0.0, 0.0
    unit = largest / np.round(largest / unit)
    noise = 0.0
    for i in range(g.size):
        noise += abs(g[i] - unit * np.round(g[i] / unit))
    if noise > 1e-10 * largest:
        return 0.0, 0.0
    return unit, noise
