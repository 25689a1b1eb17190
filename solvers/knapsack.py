"""
One batch size as a plain knapsack: the form in which third-party back-ends get it.

    maximise  profits . x   s.t.   weights . x <= capacity,   sum x <= slots (or == slots)

This is the strongest compact formulation for fixed B: two rows, no big-M, a linear
relaxation with at most two fractional requests. A joint model with B as a variable needs
products of x and B; it does not close at 50 requests, so
:mod:`solvers.sweep` sweeps B outside and prunes by bounds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from solvers.packing import SKIP, pack_in_order
from solvers.sweep import Outcome, sweep

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from andes_opt.instance import Instance
    from andes_opt.plan import Plan

#: Values closer than this to 0 or 1 are integer as far as any back-end can tell.
_INTEGRALITY = 1e-5


@dataclass(frozen=True, slots=True, eq=False)
class Knapsack:
    """
    The packing problem at one batch size, without the requests that can't be packed.

    Parameters
    ----------
    requests
        Positions of the remaining requests in the instance, (k,).
    profits
        Their gains at this batch size, (k,); positive unless ``exactly``.
    weights
        KV tokens they need, (k,).
    capacity
        KV tokens there are.
    slots
        Most requests to take, <= k; with ``exactly`` their number.
    exactly
        Whether exactly ``slots`` requests have to be taken.
    """

    requests: NDArray[np.int64]
    profits: NDArray[np.float64]
    weights: NDArray[np.int64]
    capacity: int
    slots: int
    exactly: bool

    @property
    def size(self) -> int:
        """Number of remaining requests k."""
        return int(self.requests.size)


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """
    What a back-end says about a knapsack.

    Parameters
    ----------
    values
        Its x, (k,), integer up to its tolerance or fractional; None if it has none.
    bound
        Upper bound on the optimum in units of gain, slack included; inf if none.
    build_s, solve_s
        Wall-clock seconds to build the model and to solve it.
    info
        Its own numbers; they are summed over the batch sizes.
    """

    values: NDArray[np.float64] | None
    bound: float
    build_s: float = 0.0
    solve_s: float = 0.0
    info: Mapping[str, float] = field(default_factory=dict)


class Pack(Protocol):
    """A back-end: answers a knapsack, may stop at the cutoff, has so much time left."""

    def __call__(
        self, knapsack: Knapsack, cutoff: float, time_left_s: float | None, /
    ) -> Answer: ...


def sweep_knapsacks(
    instance: Instance, pack: Pack, *, tolerance: float, time_limit_s: float | None
) -> Plan:
    """
    Solve an instance with a back-end that packs one knapsack at a time.

    Parameters
    ----------
    instance
        The instance.
    pack
        The back-end. Its values are rounded, and repaired if that breaks a constraint. Where
        time was too short for any, requests are packed by gain per token instead.
    tolerance, time_limit_s
        As for :func:`solvers.sweep.sweep`.

    Returns
    -------
    Plan
        ``info`` has ``repaired`` and ``unanswered``, the numbers of batch sizes where the
        back-end's values could not be taken as given, and where there were none.
    """

    def solve_one(
        batch_size: int,
        gains: NDArray[np.float64],
        cutoff: float,
        time_left_s: float | None,
    ) -> Outcome:
        started = time.perf_counter()
        knapsack = at_batch_size(instance, batch_size, gains)
        if knapsack.size == 0 or knapsack.slots == 0:
            return Outcome(np.zeros(instance.num_requests, dtype=np.bool_), 0.0)

        prepared_s = time.perf_counter() - started
        if time_left_s is not None:
            time_left_s -= prepared_s
        answer = pack(knapsack, cutoff, time_left_s)
        values = answer.values
        # No values, and no proof that none are needed: out of time.
        unanswered = values is None and answer.bound > cutoff
        if unanswered:
            values = np.zeros(knapsack.size)
        serve = None
        repaired = False
        if values is not None:
            chosen = rounded(knapsack, values)
            repaired = not unanswered and bool((chosen != (values > 0.5)).any())
            serve = np.zeros(instance.num_requests, dtype=np.bool_)
            serve[knapsack.requests[chosen]] = True
        return Outcome(
            serve,
            answer.bound,
            answer.build_s + prepared_s,
            answer.solve_s,
            {**answer.info, "repaired": int(repaired), "unanswered": int(unanswered)},
        )

    return sweep(instance, solve_one, tolerance=tolerance, time_limit_s=time_limit_s)


def at_batch_size(instance: Instance, batch_size: int, gains: NDArray[np.float64]) -> Knapsack:
    """
    The knapsack of an instance at one batch size.

    Requests that don't fit on their own are left out, and so are those without a positive
    gain unless ``exactly`` may force them in.

    Parameters
    ----------
    instance
        The instance.
    batch_size
        The batch size B.
    gains
        Gains at B, (n,).
    """
    useful = instance.weights <= instance.capacity
    if not instance.exactly:
        useful = useful & (gains > 0)
    requests = np.flatnonzero(useful)
    return Knapsack(
        requests=requests,
        profits=gains[requests],
        weights=instance.weights[requests],
        capacity=instance.capacity,
        slots=batch_size if instance.exactly else min(batch_size, requests.size),
        exactly=instance.exactly,
    )


def packed_by_density(
    instance: Instance, batch_size: int, gains: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """
    A feasible selection at one batch size by gain per token: what to say when out of time.

    Parameters
    ----------
    instance
        The instance.
    batch_size, gains
        A batch size at which some selection fits, and the gains there, (n,).
    """
    knapsack = at_batch_size(instance, batch_size, gains)
    serve = np.zeros(instance.num_requests, dtype=np.bool_)
    if knapsack.size > 0:
        serve[knapsack.requests[rounded(knapsack, np.zeros(knapsack.size))]] = True
    return serve


def rounded(knapsack: Knapsack, values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """
    A feasible selection near a back-end's values: 0.9999s, fractions, broken limits and all.

    Requests are taken by decreasing value, equal ones by profit per token, as long as they
    fit; with ``exactly`` only while the open slots can still be filled. An integer
    solution comes back as it is, plus what still fits beside it.

    Parameters
    ----------
    knapsack
        The knapsack; with ``exactly`` its lightest ``slots`` requests must fit.
    values
        The back-end's x, (k,).
    """
    near = np.rint(values)
    values = np.where(np.abs(values - near) <= _INTEGRALITY, near, values)
    density = knapsack.profits / knapsack.weights
    order = np.lexsort((-density, -values))
    chosen = np.zeros(knapsack.size, dtype=np.bool_)
    pack_in_order(
        order,
        knapsack.profits,
        knapsack.weights,
        np.argsort(knapsack.weights, kind="stable"),
        knapsack.capacity,
        knapsack.slots,
        knapsack.exactly,
        SKIP,
        chosen,
    )
    return chosen
