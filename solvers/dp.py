"""Dynamic programming over requests, count and memory: Algorithm 2 of the paper."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from andes_opt import checks
from andes_opt.compilation import jit
from andes_opt.instance import Instance
from andes_opt.plan import Status, make_plan
from solvers.knapsack import packed_by_density
from solvers.packing import SKIP, greedy_plan
from solvers.sweep import Outcome, sweep, upper_bound

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from andes_opt.plan import Plan

#: Most table cells per batch size by default: 250 MB of choices, some seconds.
MAX_CELLS = 2_000_000_000


class DP:
    """
    Algorithm 2 of the paper: exact dynamic programming over (request, count, memory).

    One table per batch size says what c requests within m KV tokens are worth at most
    (Andes, arXiv 2404.16283, Algorithm 2); weights and capacity are divided by their
    greatest common divisor first, so weights in whole blocks cost a fraction. Use it as the
    paper's exact method and as an independent check up to a few hundred requests. Its
    limit is time and memory of the order n * B * M per batch size examined, about a
    nanosecond and a bit per cell; tables beyond ``max_cells`` are refused.

    Parameters
    ----------
    max_cells
        Most cells n * (B + 1) * (M + 1) of one batch size's table, >= 1.

    Raises
    ------
    ValueError
        If ``max_cells`` < 1.
    """

    exact = True

    def __init__(self, *, max_cells: int = MAX_CELLS) -> None:
        checks.whole("max_cells", max_cells, 1)
        self.max_cells = max_cells

    def solve(self, instance: Instance, *, time_limit_s: float | None = None) -> Plan:
        """
        Fill the tables; see :class:`~andes_opt.solver.Solver`.

        The time limit is looked at after every request's pass over a table. At the limit
        requests are packed by gain per token instead.

        Raises
        ------
        ValueError
            If a table would have more than ``max_cells`` cells.
        """

        def solve_one(
            batch_size: int,
            gains: NDArray[np.float64],
            cutoff: float,
            time_left_s: float | None,
        ) -> Outcome:
            started = time.perf_counter()
            deadline_s = math.inf if time_left_s is None else started + time_left_s
            problem = reduce_problem(instance, batch_size, gains[None, :])
            require_cells(problem.cells, self.max_cells)
            values = np.full((problem.slots + 1, problem.capacity + 1), -np.inf)
            values[0] = 0.0
            choices = np.zeros(((problem.items.size + 7) // 8, *values.shape), dtype=np.uint8)
            built = time.perf_counter()

            bound = math.inf
            if not _fill(problem, values, choices, deadline_s):
                serve = packed_by_density(instance, batch_size, gains)
            else:
                count = problem.slots if instance.exactly else int(values[:, -1].argmax())
                bound = float(values[count, -1])
                serve = np.zeros(instance.num_requests, dtype=np.bool_)
                serve[problem.items[_recover(problem.weights, choices, count)]] = True
            return Outcome(
                serve,
                bound,
                build_s=built - started,
                solve_s=time.perf_counter() - built,
                info={"cells": problem.cells},
            )

        return sweep(instance, solve_one, time_limit_s=time_limit_s)


class DPBlocks:
    """
    Algorithm 2 on memory in blocks: weights rounded up, capacity rounded down.

    The table shrinks by the block size, and every plan it finds is feasible in tokens. Use
    it where the engine allocates whole blocks anyway (nothing is lost if all weights are
    multiples of the block, and the plan is then proven optimal), or as a fast approximation
    where it doesn't: up to a block per request is wasted, and the bound is that of the
    dual prices. Its limit is that of :class:`DP` on the smaller table.

    Parameters
    ----------
    block_tokens
        KV tokens per block, >= 1.
    max_cells
        As for :class:`DP`, after rounding.

    Attributes
    ----------
    exact
        True only for blocks of one token.

    Raises
    ------
    ValueError
        If an option is out of range.
    """

    def __init__(self, *, block_tokens: int = 16, max_cells: int = MAX_CELLS) -> None:
        checks.whole("block_tokens", block_tokens, 1)
        self.block_tokens = block_tokens
        self._in_blocks = DP(max_cells=max_cells)
        self.exact = block_tokens == 1

    def solve(self, instance: Instance, *, time_limit_s: float | None = None) -> Plan:
        """
        Round and fill the tables; see :class:`~andes_opt.solver.Solver`.

        Raises
        ------
        ValueError
            If a table would have more than ``max_cells`` cells.
        """
        started = time.perf_counter()
        deadline_s = math.inf if time_limit_s is None else started + time_limit_s
        rounded = Instance(
            weights=-(-instance.weights // self.block_tokens),
            capacity=instance.capacity // self.block_tokens,
            min_batch=instance.min_batch,
            max_batch=instance.max_batch,
            gains=instance.gains,
            exactly=instance.exactly,
        )
        plan = self._in_blocks.solve(rounded, time_limit_s=time_limit_s)
        if plan.status is Status.NO_SOLUTION:
            # Too many requests for the rounded memory, but perhaps not for the true one.
            return greedy_plan(instance, rule=SKIP, proven_bound=True, time_limit_s=time_limit_s)

        if (instance.weights % self.block_tokens).any():
            bound = upper_bound(instance, above=plan.value, deadline_s=deadline_s)
        else:
            bound = plan.bound
        return make_plan(
            instance,
            plan.serve,
            plan.batch_size,
            bound=bound,
            build_s=plan.build_s,
            solve_s=time.perf_counter() - started - plan.build_s,
            info=plan.info,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """
    What of an instance the tables need, for k batch sizes at once.

    Parameters
    ----------
    items
        The requests that can be served with profit at any of the batch sizes, (m,).
    gains
        Their gains at each batch size, (k, m).
    weights, capacity
        Their weights, (m,), and the memory, in units of the weights' common divisor.
    slots
        Most requests that a plan can serve.
    """

    items: NDArray[np.int64]
    gains: NDArray[np.float64]
    weights: NDArray[np.int64]
    capacity: int
    slots: int

    @property
    def cells(self) -> int:
        """Cells of all tables together: batch sizes x requests x (slots + 1) x (memory + 1)."""
        return self.gains.size * (self.slots + 1) * (self.capacity + 1)


def reduce_problem(instance: Instance, batch_size: int, gains: NDArray[np.float64]) -> Problem:
    """
    Leave out what can't matter before tables are sized.

    Parameters
    ----------
    instance
        The instance.
    batch_size
        The largest of the batch sizes.
    gains
        Gains at the batch sizes, (k, n).
    """
    useful = instance.weights <= instance.capacity
    if not instance.exactly:
        useful &= (gains > 0).any(axis=0)
    items = np.flatnonzero(useful)
    weights = instance.weights[items]
    divisor = max(1, int(np.gcd.reduce(weights, initial=0)))
    weights = weights // divisor
    slots = min(batch_size, items.size)
    # More memory than the heaviest `slots` requests need is no use.
    heaviest = int(np.sort(weights)[items.size - slots :].sum())
    return Problem(
        items=items,
        gains=np.ascontiguousarray(gains[:, items]),
        weights=weights,
        capacity=min(instance.capacity // divisor, heaviest),
        slots=slots,
    )


def require_cells(cells: int, max_cells: int) -> None:
    """
    Refuse tables that are too large.

    Raises
    ------
    ValueError
        If ``cells`` exceeds ``max_cells``.
    """
    if cells > max_cells:
        raise ValueError(
            f"the dynamic program needs {cells:,} cells (requests x slots x memory), more than "
            f"max_cells = {max_cells:,}; raise it, or use dp_blocks or exact."
        )


def _fill(
    problem: Problem,
    values: NDArray[np.float64],
    choices: NDArray[np.uint8],
    deadline_s: float,
) -> bool:
    """Enter every request into the table; False if the deadline came first."""
    # Memory that the requests still to come can't bridge up to the capacity is never
    # looked up.
    later = np.concatenate((np.cumsum(problem.weights[::-1])[::-1][1:], [0]))
    for item in range(problem.items.size):
        if time.perf_counter() >= deadline_s:
            return False
        _enter(
            values[: item + 2],
            choices[item // 8],
            1 << item % 8,
            problem.gains[0, item],
            problem.weights[item],
            max(0, problem.capacity - int(later[item])),
        )
    return True


@jit
def _enter(
    values: NDArray[np.float64],
    choices: NDArray[np.uint8],
    bit: int,
    gain: float,
    weight: int,
    least_memory: int,
) -> None:
    # values[c, m]: most that exactly c of the requests so far are worth within m tokens.
    mark = np.uint8(bit)
    start = max(weight, least_memory)
    for count in range(values.shape[0] - 1, 0, -1):
        # Slices and no branch around the stores: the loop compiles to SIMD code.
        without = values[count, start:]
        before = values[count - 1, start - weight :]
        chosen = choices[count, start:]
        for memory in range(without.size):
            old = without[memory]
            new = before[memory] + gain
            without[memory] = new if new > old else old
            chosen[memory] |= mark if new > old else np.uint8(0)


def _recover(weights: NDArray[np.int64], choices: NDArray[np.uint8], count: int) -> list[int]:
    """The requests behind the last column's value at ``count``."""
    memory = choices.shape[2] - 1
    selected = []
    for item in range(weights.size - 1, -1, -1):
        if count > 0 and choices[item // 8, count, memory] >> item % 8 & 1:
            selected.append(item)
            count -= 1
            memory -= int(weights[item])
    return selected
