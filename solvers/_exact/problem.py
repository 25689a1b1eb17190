"""
What the compiled functions work on: an instance, one of its batch sizes, and the best plan.

:class:`Counts` and :class:`Best` list the fields of records, which compiled code changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from andes_opt.gains import fill_gains
from solvers._exact.jit import inner, part
from solvers.clock import now_s

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

UNIT_ROUNDOFF = 2.0**-53


class Model(NamedTuple):
    """The gains of the requests that fit at all, as compiled code evaluates them."""

    kind: int  # kind, params and scalars: see andes_opt.gains
    params: NDArray[np.float64]
    scalars: NDArray[np.float64]
    concave: bool  # the gains are concave in the token rate that the scalars describe
    requests: NDArray[np.int64]  # (m,): the requests that fit, of all n
    whole: NDArray[np.float64]  # scratch, (n,)
    scale: int  # batch sizes are in units of this


class Step(NamedTuple):
    """An instance without its gains: the requests that fit, and the batch sizes to consider."""

    weights: NDArray[np.float64]  # (m,), whole numbers
    capacity: float  # whole number
    most: int  # most requests that fit together
    first: int
    last: int
    exactly: bool
    monotone: bool  # no gain rises with the batch size


class Knapsack(NamedTuple):
    """One batch size: at most, or exactly, ``slots`` requests within the capacity."""

    gains: NDArray[np.float64]  # (m,)
    weights: NDArray[np.float64]  # (m,), whole numbers
    capacity: float  # whole number
    slots: int
    exactly: bool


class Dual(NamedTuple):
    """Prices of a KV token and of a slot, and the upper bound that they prove."""

    bound: float
    memory_price: float
    slot_price: float


class Counts:
    """What has been done, as ``Plan.info`` reports it."""

    batch_sizes_examined: int
    searched: int
    states: int
    deepened: int
    priced: int
    jumps: int


class Effort(NamedTuple):
    """When to stop, and what has been done."""

    deadline_s: float
    clock: NDArray[np.int64]  # scratch of now_s
    counts: Counts


class Best:
    """The best plan so far (its requests are in ``Sweep.serve``), and what has been proved."""

    value: float
    batch_size: int
    memory_price: float  # where the plan was found
    settled: float  # the largest bound of a batch size that has been settled
    depth: float  # total loss of the plan that was found last


class Scratch(NamedTuple):
    """Arrays to work in."""

    gains: NDArray[np.float64]  # (m,)
    neighbour: NDArray[np.float64]  # (m,): the gains at another batch size
    work: NDArray[np.float64]  # (5, m): of the price search
    chosen: NDArray[np.bool_]  # (m,): a plan


class Sweep(NamedTuple):
    """A sweep over the batch sizes of an instance."""

    model: Model
    step: Step
    search: bool  # if False batch sizes are not searched, only rounded
    gap: float  # plans that are better by less than this share of max(1, |value|) don't count
    best: Best
    serve: NDArray[np.bool_]  # (m,): the best plan
    scratch: Scratch
    effort: Effort


@part
def out_of_time(effort: Effort) -> bool:
    """Whether the deadline has passed."""
    return now_s(effort.clock) > effort.deadline_s


@inner
def gains_into(model: Model, batch: int, out: NDArray[np.float64]) -> None:
    """Write the gains at a batch size to ``out``, (m,)."""
    batch *= model.scale
    if model.requests.size == model.whole.size:
        fill_gains(model.kind, model.params, model.scalars, batch, out)
        return
    fill_gains(model.kind, model.params, model.scalars, batch, model.whole)
    for i in range(out.size):
        out[i] = model.whole[model.requests[i]]


@part
def knapsack_at(model: Model, step: Step, batch: int, out: NDArray[np.float64]) -> Knapsack:
    """
    The knapsack at a batch size, with its gains in ``out``, (m,).

    If no gain rises with B, "at most B" may be read as "exactly B" for every B above the
    smallest: fewer requests are worth at least as much at a smaller batch size.
    """
    gains_into(model, batch, out)
    exactly = step.exactly or (step.monotone and batch > step.first)
    return Knapsack(out, step.weights, step.capacity, min(batch, step.most), exactly)


@inner
def plan_value(gains: NDArray[np.float64], plan: NDArray[np.bool_]) -> float:
    """The sum of the gains of a plan's requests."""
    value = 0.0
    for i in range(gains.size):
        value += gains[i] if plan[i] else 0.0
    return value


@inner
def copy_plan(source: NDArray[np.bool_], target: NDArray[np.bool_]) -> None:
    """``target[:] = source``, which takes Numba a second longer to compile."""
    for i in range(source.size):
        target[i] = source[i]


@inner
def largest_size(values: NDArray[np.float64]) -> float:
    """The largest absolute value."""
    largest = 0.0
    for i in range(values.size):
        largest = max(largest, abs(values[i]))
    return largest
