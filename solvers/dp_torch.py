"""Algorithm 2 of the paper in PyTorch, for several batch sizes at once, on CPU or GPU."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from andes_opt import checks
from solvers.backend import load_back_end
from solvers.dp import MAX_CELLS, Problem, reduce_problem, require_cells
from solvers.knapsack import packed_by_density
from solvers.sweep import Outcome, sweep_together

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from andes_opt.instance import Instance
    from andes_opt.plan import Plan


class DPTorch:
    """
    Algorithm 2 of the paper as tensors, batched over batch sizes.

    The recursion of :class:`~solvers.dp.DP` in float64, with the tables of the most
    promising batch sizes stacked. Use it on a GPU, where a table that takes the CPU seconds
    takes milliseconds; on a CPU ``dp`` is faster, unless many cores are free. Its limit is
    memory, one bit per cell for the choices and 8 bytes per (B + 1) * (M + 1) for the
    values; tables beyond ``max_cells`` are refused.

    Parameters
    ----------
    device
        PyTorch's name of the device: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` ...
    batch_sizes
        Batch sizes per stack, >= 1. More fill a large GPU; those that one at a time would
        have been pruned are wasted.
    max_cells
        Most cells k * n * (B + 1) * (M + 1) of a stack of k tables, >= 1.

    Raises
    ------
    ImportError
        If PyTorch is not installed.
    ValueError
        If an option is out of range, or PyTorch has no such device.
    """

    exact = True

    def __init__(
        self, *, device: str = "cpu", batch_sizes: int = 4, max_cells: int = 4 * MAX_CELLS
    ) -> None:
        checks.whole("batch_sizes", batch_sizes, 1)
        checks.whole("max_cells", max_cells, 1)
        self._torch: Any = load_back_end("torch", "torch>=2.4")
        try:
            self._device: Any = self._torch.device(device)
            self._torch.empty(0, device=self._device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"device = {device!r} not understood: {reason}") from error
        self.device = device
        self.batch_sizes = batch_sizes
        self.max_cells = max_cells

    def solve(self, instance: Instance, *, time_limit_s: float | None = None) -> Plan:
        """
        Fill the tables; see :class:`~andes_opt.solver.Solver`.

        The time limit is looked at after every eighth request's pass over a stack. At the
        limit requests are packed by gain per token instead.

        Raises
        ------
        ValueError
            If a stack would have more than ``max_cells`` cells.
        """

        def solve_many(
            batch_sizes: Sequence[int],
            gains: NDArray[np.float64],
            cutoff: float,
            time_left_s: float | None,
        ) -> Sequence[Outcome]:
            started = time.perf_counter()
            deadline_s = math.inf if time_left_s is None else started + time_left_s
            problem = reduce_problem(instance, max(batch_sizes), gains)
            require_cells(problem.cells, self.max_cells)
            solved = self._solve_stack(problem, batch_sizes, instance.exactly, deadline_s)
            share_s = (time.perf_counter() - started) / len(batch_sizes)
            cells = problem.cells / len(batch_sizes)
            outcomes = []
            for (selected, bound), size, row in zip(solved, batch_sizes, gains, strict=True):
                if selected is None:
                    serve = packed_by_density(instance, size, row)
                else:
                    serve = np.zeros(instance.num_requests, dtype=np.bool_)
                    serve[problem.items[selected]] = True
                outcomes.append(Outcome(serve, bound, solve_s=share_s, info={"cells": cells}))
            return outcomes

        return sweep_together(
            instance, solve_many, width=self.batch_sizes, time_limit_s=time_limit_s
        )

    def _solve_stack(
        self, problem: Problem, batch_sizes: Sequence[int], exactly: bool, deadline_s: float
    ) -> list[tuple[NDArray[np.bool_] | None, float]]:
        """Selection among ``problem.items`` and bound, for each batch size."""
        torch = self._torch
        stack, num_items = problem.gains.shape
        table = (stack, problem.slots + 1, problem.capacity + 1)
        gains = torch.tensor(problem.gains, device=self._device)
        # values[k, c, m]: most that exactly c of the requests so far are worth within m
        # tokens at the k-th batch size.
        values = torch.full(table, -math.inf, dtype=torch.float64, device=self._device)
        values[:, 0] = 0.0
        choices = torch.zeros(
            ((num_items + 7) // 8, *table), dtype=torch.uint8, device=self._device
        )
        for item in range(num_items):
            if deadline_s < math.inf and item % 8 == 0:
                if self._device.type == "cuda":
                    torch.cuda.synchronize(self._device)
                if time.perf_counter() >= deadline_s:
                    return [(None, math.inf)] * stack
            weight = int(problem.weights[item])
            if weight > problem.capacity:
                continue
            most = min(item + 1, problem.slots)  # count so many requests at most by now
            before = values[:, :most, : problem.capacity + 1 - weight]
            without = values[:, 1 : most + 1, weight:]
            new = before + gains[:, item, None, None]
            chosen = (new > without).to(torch.uint8)
            choices[item // 8, :, 1 : most + 1, weight:] |= chosen << item % 8
            torch.maximum(without, new, out=without)

        totals = values[:, :, -1].cpu().numpy()
        counts = np.empty(stack, dtype=np.int64)
        for row, batch_size in enumerate(batch_sizes):
            slots = min(batch_size, problem.slots)
            counts[row] = slots if exactly else totals[row, : slots + 1].argmax()
        selected = self._recover(problem, choices, counts)
        return [(selected[row], float(totals[row, counts[row]])) for row in range(stack)]

    def _recover(
        self, problem: Problem, choices: Any, counts: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Selections (k, items) behind the last column's values at ``counts``, (k,)."""
        torch = self._torch
        stack, num_items = problem.gains.shape
        rows = torch.arange(stack, device=self._device)
        count = torch.tensor(counts, device=self._device)
        memory = torch.full((stack,), problem.capacity, device=self._device)
        selected = torch.zeros((stack, num_items), dtype=torch.bool, device=self._device)
        for item in range(num_items - 1, -1, -1):
            # Row 0 of the tables (no request) never has a bit set, so the counts stay >= 0.
            taken = (choices[item // 8, rows, count, memory] >> item % 8) & 1
            selected[:, item] = taken.bool()
            count -= taken
            memory -= taken.long() * int(problem.weights[item])
        result: NDArray[np.bool_] = selected.cpu().numpy()
        return result
